"""Tokens against the running service: enrolled and revoked by the commands, on libvirt's test
driver. What the guest agent does is the lab's to show.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import libvirt
import pytest

from enabler import cli, enrolment, tokens
from tests.api.running import DEFAULT_VM, Enabler, eventually, free_port

URI = "test:///default"


@pytest.fixture
def port(hypervisor: libvirt.virConnect, tmp_path: Path) -> Iterator[int]:
    free = free_port()
    with Enabler(tmp_path, f"http://127.0.0.1:{free}", callers=("token",)).running():
        yield free


@pytest.fixture
def guest(port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        yield client


def ask(guest: httpx.Client, token: str) -> int:
    headers = {"Authorization": f"Bearer {token}"}
    return guest.get("/v1/identity", headers=headers).status_code


def test_without_a_token(guest: httpx.Client) -> None:
    answer = guest.get("/v1/identity")
    assert (answer.status_code, answer.json()["type"]) == (401, "/problems/token-needed")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="vm-enabler"'
    answer = guest.get("/v1/identity", headers={"Authorization": f"Bearer {tokens.make()}"})
    assert (answer.status_code, answer.json()["type"]) == (401, "/problems/token-refused")
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


def test_a_token_s_life(
    guest: httpx.Client, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    command = ["enroll", "--libvirt-uri", URI, "--print"]
    assert cli.main([*command, "test"]) == 0
    first = capsys.readouterr().out.strip()
    eventually(lambda: ask(guest, first) == 200)
    answer = guest.get("/v1/identity", headers={"Authorization": f"Bearer {first}"})
    assert answer.json()["vm"]["uuid"] == DEFAULT_VM
    # Again, by UUID: the new one replaces the old one, on the connection that the old one used.
    assert cli.main([*command, DEFAULT_VM]) == 0
    second = capsys.readouterr().out.strip()
    eventually(lambda: ask(guest, second) == 200)
    assert ask(guest, first) == 401
    assert cli.main(["revoke", "--libvirt-uri", URI, "test"]) == 0
    eventually(lambda: ask(guest, second) == 401)
    assert first not in caplog.text
    assert second not in caplog.text


def test_a_token_that_is_void_when_the_wait_ends(
    port: int, guest: httpx.Client, hypervisor: libvirt.virConnect
) -> None:
    token = enrolment.enroll(URI, "test").token
    eventually(lambda: ask(guest, token) == 200)
    headers = {"Authorization": f"Bearer {token}"}
    etag = guest.get("/v1/identity", headers=headers).headers["ETag"]
    headers |= {"If-None-Match": etag}

    def wait() -> httpx.Response:
        url = f"http://127.0.0.1:{port}/v1/identity?wait=60"
        return httpx.get(url, headers=headers, timeout=70)

    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(wait)
        # A later one that waits for a second: by its end the first has long been waiting.
        assert guest.get("/v1/identity?wait=1", headers=headers).status_code == 304
        assert not waiting.done()
        hypervisor.lookupByName("test").setVcpus(1)
        enrolment.enroll(URI, "test")
        assert waiting.result().status_code == 401


def test_only_the_hash_is_kept_live_and_for_the_next_start(
    port: int, hypervisor: libvirt.virConnect
) -> None:
    made = enrolment.enroll(URI, "test")
    assert made.not_handed_over is not None
    assert "guest agent" in made.not_handed_over
    assert made.token not in repr(made)
    domain = hypervisor.lookupByName("test")
    for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE):
        xml = domain.XMLDesc(flags)
        assert tokens.sha256_of(made.token) in xml
        assert made.token not in xml
    domain.destroy()
    assert enrolment.enroll(URI, "test").not_handed_over == "the VM does not run"


def test_a_clone_of_the_domain_voids_the_token(
    guest: httpx.Client, hypervisor: libvirt.virConnect
) -> None:
    made = enrolment.enroll(URI, "test")
    eventually(lambda: ask(guest, made.token) == 200)
    xml = hypervisor.lookupByName("test").XMLDesc()
    clone = xml.replace("<name>test<", "<name>clone<").replace(DEFAULT_VM, DEFAULT_VM[:-1] + "0")
    domain = hypervisor.createXML(clone.replace("aa:bb:cc:dd:ee:ff", "52:54:00:00:00:09"))
    eventually(lambda: ask(guest, made.token) == 401)
    domain.destroy()
    eventually(lambda: ask(guest, made.token) == 200)


def test_of_a_vm_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("enroll", "revoke"):
        assert cli.main([command, "--libvirt-uri", URI, "nobody"]) == 69
        assert "virsh list --all" in capsys.readouterr().err
