"""The status page of a host while a VM really moves away; `make screenshot` keeps it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.webdriver.remote.webdriver import WebDriver

from tests.lab.guest import Guest
from tests.lab.host import Host
from tests.lab.migration import migrate, start_slow
from tests.lab.processes import wait_until
from tests.ui.browser import chromium, complaints
from tests.ui.conftest import serving

pytestmark = pytest.mark.lab

PICTURE = os.environ.get("UI_SCREENSHOT")
PATIENCE = 60
NEIGHBOUR = """
<domain type='qemu'><name>{name}</name><memory unit='MiB'>{memory}</memory><vcpu>{cpus}</vcpu>
<os><type arch='x86_64'>hvm</type></os></domain>
"""


@contextmanager
def neighbours(host: Host) -> Iterator[None]:
    """Other VMs: without a disk they cost nothing, but are real."""
    made = [
        host.connection.createXML(NEIGHBOUR.format(name=name, memory=memory, cpus=cpus))
        for name, memory, cpus in (("db01", 192, 2), ("web01", 96, 1))
    ]
    try:
        yield
    finally:
        for domain in made:
            domain.destroy()


def shows(browser: WebDriver, selector: str, *words: str) -> bool:
    def text() -> str:
        script = f"return document.querySelector('{selector}')?.innerText ?? ''"
        return str(browser.execute_script(script))

    return wait_until(lambda: all(word in text() for word in words), PATIENCE, 0.2)


def test_a_migration_is_seen_as_it_happens(guest: Guest, a: Host, b: Host, tmp_path: Path) -> None:
    row = f"#vm-{guest.uuid}"
    holder = a.holder.process
    assert holder is not None
    as_host = ("nsenter", "-t", str(holder.pid), "-u", "--")  # with its host name
    with (
        neighbours(a),
        serving(a.admin_socket, before=as_host) as url,
        chromium(tmp_path / "profile") as browser,
    ):
        if PICTURE:
            migrate(guest, b)
            migrate(guest, a)
            guest.run(["guest-client", "identity"])
        browser.get(url)
        assert shows(browser, row, guest.name, "resident")
        assert shows(browser, "h1", a.name)
        assert shows(browser, "#indicator", "live")
        browser.execute_script("window.unbroken = true")
        with start_slow(guest, b) as move:
            assert shows(browser, row, "migrating")
            assert shows(browser, "#moving", guest.name, "still runs here")
            if PICTURE:
                browser.set_window_size(1280, 1180)
                Path(PICTURE).write_bytes(browser.get_screenshot_as_png())
            move.finish()
        assert shows(browser, "#timeline tr:first-child", guest.name, "left")
        assert shows(browser, "#moving", "No VM is being moved")
        assert not browser.execute_script(f"return document.querySelector('{row}')")
        assert browser.execute_script("return window.unbroken"), "it was never loaded anew"
        assert complaints(browser) == []
