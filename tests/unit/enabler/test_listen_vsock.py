"""The vsock listener's address and socket. What comes by it is the lab's to show: this machine
need not have a transport for it.
"""

from __future__ import annotations

import socket

import pytest

from enabler.checks import Status
from enabler.checks.listeners import check_vsock
from enabler.errors import ConfigurationError, ListenError
from enabler.listen import VsockAddress, bind, parse


def test_the_address() -> None:
    assert parse("vsock:8777") == VsockAddress(8777)
    assert str(parse("vsock:8777")) == "vsock:8777"


@pytest.mark.parametrize(
    "text", ["vsock:", "vsock:0", "vsock:4294967295", "vsock://2:8777", "vsock:-1", "vsock:2:8777"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigurationError, match="write vsock:8777"):
        parse(text)


def has_vsock() -> bool:
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def test_the_socket() -> None:
    address = VsockAddress(87770)
    if not has_vsock():
        with pytest.raises(ListenError, match="modprobe vhost_vsock"):
            bind(address, 0, None)
        return
    assert check_vsock(address).status is Status.OK
    with bind(address, 0, None) as listener:
        assert listener.family == socket.AF_VSOCK
        assert listener.getsockname() == (socket.VMADDR_CID_ANY, 87770)
        assert "taken" in check_vsock(address).found
        with pytest.raises(ListenError, match="another program has vsock port 87770"):
            bind(address, 0, None)
