"""Listening where the host-only bridge has no VM yet."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.api.network import ip, run_in

_LISTEN = """
import sys
from enabler.checks.listeners import check_http
from enabler.errors import ListenError
from enabler.listen import bind, parse
address = parse(sys.argv[1])
print(check_http(address).found)
try:
    listening = bind(address, 0o600, None)
except ListenError as error:
    print(error)
else:
    print(listening.getsockname()[:2])
    print(check_http(address).found)
"""


@pytest.fixture
def host() -> Iterator[str]:
    name = f"vmlisten-{os.getpid()}"
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "add", "enabler0", "type", "bridge")
        ip("-n", name, "link", "set", "enabler0", "up")
        ip("-n", name, "address", "add", "fe80::77:1/64", "dev", "enabler0")
        yield name
    finally:
        ip("netns", "delete", name)


def listen(host: str, url: str) -> str:
    command = run_in(host, sys.executable, "-c", _LISTEN, url)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_an_address_that_the_kernel_has_not_made_sure_of_yet(host: str) -> None:
    shown = run_in(host, "ip", "-6", "address", "show", "dev", "enabler0")
    said = subprocess.run(shown, check=True, capture_output=True, text=True).stdout
    assert "fe80::77:1/64 scope link tentative" in said, "a bridge without a port has no carrier"
    free, bound, taken = listen(host, "http://[fe80::77:1%25enabler0]:8777").splitlines()
    assert free.endswith(": free")
    assert bound == "('fe80::77:1', 8777)"
    assert "once the bridge has a VM" in taken


def test_one_that_is_not_there_is_no_address_to_listen_on(host: str) -> None:
    said = listen(host, "http://[fe80::77:2%25enabler0]:8777")
    assert "the interface enabler0 does not have that address" in said
    assert "'enabler network'" in said
    assert "there is no interface br7" in listen(host, "http://[fe80::77:1%25br7]:8777")
