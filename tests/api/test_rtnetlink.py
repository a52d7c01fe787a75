"""What the kernel says by netlink, of a host and its guest in network namespaces."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from enabler.callers.rtnetlink import Rtnetlink, attributes, messages
from tests.api.network import HOST, HOST_V6, Network, ip, network, run_in

MAC = "52:54:00:00:00:01"
_ASK = """
import json, socket, sys
from enabler.callers.rtnetlink import Rtnetlink
index = socket.if_nametoindex("enabler0")
def mac(found): return found and found.mac
with Rtnetlink() as kernel:
    print(json.dumps({
        "one": {a: mac(kernel.neighbour(a, index)) for a in sys.argv[1:]},
        "any": {a: [mac(each) for each in kernel.neighbours(a)] for a in sys.argv[1:]},
        "with": {a: kernel.interface_with(a) == index for a in sys.argv[1:]},
    }))
"""


def asked(net: Network, *addresses: str) -> dict[str, dict[str, object]]:
    done = subprocess.run(
        run_in(net.host, sys.executable, "-c", _ASK, *addresses),
        check=True,
        capture_output=True,
        text=True,
    )
    said: dict[str, dict[str, object]] = json.loads(done.stdout)
    return said


def test_neighbours_and_addresses_are_told() -> None:
    guest, pinned, silent = "169.254.77.2", "fe80::5054:ff:fe00:1", "169.254.77.9"
    with network("vmrtnl", [MAC]) as net:
        neighbour = ("dev", "enabler0", "nud")
        ip("-n", net.host, "neigh", "add", pinned, "lladdr", MAC, *neighbour, "permanent")
        ip("-n", net.host, "neigh", "add", silent, *neighbour, "incomplete")
        # The guest makes itself known by asking somebody who does not answer.
        subprocess.run(run_in(net.guest, "curl", "-s", "-m", "5", f"http://{HOST}:1/"), check=False)
        said = asked(net, guest, pinned, silent, HOST, HOST_V6)
    assert said["one"] == {guest: MAC, pinned: MAC, silent: None, HOST: None, HOST_V6: None}
    assert said["any"] == {guest: [MAC], pinned: [MAC], silent: [None], HOST: [], HOST_V6: []}
    here = {guest: False, pinned: False, silent: False, HOST: True, HOST_V6: True}
    assert said["with"] == here


def test_what_the_kernel_refuses_is_an_error() -> None:
    with Rtnetlink() as kernel:
        number = max(index for index, _ in socket.if_nameindex()) + 1000
        with pytest.raises(OSError, match="No such device"):
            kernel.neighbour("169.254.77.2", number)
        assert kernel.interface_with("127.0.0.1") == socket.if_nametoindex("lo")


@pytest.mark.parametrize("received", [b"", b"\0" * 7, b"\0" * 64, b"\xff" * 40])
def test_what_is_cut_off_ends(received: bytes) -> None:
    list(messages(received))
    attributes(received)
