"""The status page in a real browser: live, without JavaScript, and with names that mean harm."""

from __future__ import annotations

from pathlib import Path

import httpx
import libvirt
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

from tests.api.running import DEFAULT_VM, MACHINE, Enabler, eventually
from tests.api.test_start import enabler as command
from tests.api.test_start import fails
from tests.ui.browser import chromium, complaints

# Libvirt takes no slash in a name.
EVIL = "<img src=x onerror=document.title='owned'><script>document.title='owned'"
DOMAIN = """
<domain type='test'><name>{name}</name><memory>1024</memory><vcpu>1</vcpu>
<os><type>hvm</type></os></domain>
"""


def text(browser: WebDriver, selector: str = "main") -> str:
    return str(browser.execute_script(f"return document.querySelector('{selector}').innerText"))


def start(hypervisor: libvirt.virConnect, name: str) -> libvirt.virDomain:
    escaped = name.replace("<", "&lt;").replace(">", "&gt;")
    return hypervisor.createXML(DOMAIN.format(name=escaped))


def test_live(enabler: Enabler, hypervisor: libvirt.virConnect, ui: str, tmp_path: Path) -> None:
    with chromium(tmp_path / "profile") as browser:
        browser.get(ui)
        assert MACHINE["serial_number"] in text(browser)
        assert DEFAULT_VM in text(browser, "#vm-rows")
        eventually(lambda: text(browser, "#indicator") == "live")
        browser.execute_script("window.unbroken = true")
        domain = start(hypervisor, EVIL)
        eventually(lambda: EVIL in text(browser, "#vm-rows"))
        eventually(lambda: f"{EVIL} started here" in news(browser))
        domain.destroy()
        eventually(lambda: EVIL not in text(browser, "#vm-rows"))
        assert text(browser, "#timeline").count(EVIL) == 2
        assert browser.execute_script("return window.unbroken"), "it was never loaded anew"
        assert "owned" not in browser.title
        assert browser.find_elements(By.CSS_SELECTOR, "main script, main img") == []
        assert complaints(browser) == []


def news(browser: WebDriver) -> str:
    return str(browser.execute_script("return document.getElementById('news').textContent"))


def test_the_enabler_goes_and_comes_back(
    hypervisor: libvirt.virConnect, ui: str, tmp_path: Path
) -> None:
    with chromium(tmp_path / "profile") as browser:
        browser.get(ui)
        assert "does not answer" in text(browser)
        for _ in range(2):
            with Enabler(tmp_path).running():
                eventually(lambda: DEFAULT_VM in text(browser))
                eventually(lambda: text(browser, "#indicator") == "live")
            eventually(lambda: "does not answer" in text(browser))
            assert DEFAULT_VM not in text(browser), "nothing old is repeated"


def test_without_javascript(
    enabler: Enabler, hypervisor: libvirt.virConnect, ui: str, tmp_path: Path
) -> None:
    start(hypervisor, EVIL)
    eventually(lambda: len(enabler.get("/v1/vms").json()["vms"]) == 2)
    with chromium(tmp_path / "profile", javascript=False) as browser:
        browser.get(ui)
        captions = [each.text for each in browser.find_elements(By.TAG_NAME, "caption")]
        assert captions == ["Virtual machines 2", "Arrivals and departures"]
        assert EVIL in browser.find_element(By.ID, "vm-rows").text
        assert browser.find_element(By.CSS_SELECTOR, "noscript a, header a").text == "Reload"
        assert browser.find_elements(By.CSS_SELECTOR, "meta[http-equiv=refresh]")
        assert not browser.find_element(By.ID, "pause").is_displayed()


def test_who_may_read(enabler: Enabler, ui: str) -> None:
    for headers, status in (
        ({"Host": "localhost:9000"}, 200),
        ({"Host": "[::1]"}, 200),
        ({"Host": "evil.example:8780"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": ""}, 421),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
    ):
        answer = httpx.get(ui, headers=headers)
        assert answer.status_code == status, headers
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_it_is_read_only(enabler: Enabler, ui: str) -> None:
    for path in ("/", "/events", "/static/ui.js"):
        assert httpx.post(ui + path).status_code == 405
    assert httpx.get(ui + "/static/../app.py").status_code == 404


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--listen", "0.0.0.0:8780"], 78, ["--expose", "ssh -L"]),
        (["--listen", "https://127.0.0.1:1"], 78, ["reverse proxy"]),
        (["--listen", "nonsense"], 78, ["ADDRESS:PORT"]),
    ],
)
def test_addresses_that_are_refused(arguments: list[str], code: int, words: list[str]) -> None:
    fails(command("ui", *arguments), code, *words)
