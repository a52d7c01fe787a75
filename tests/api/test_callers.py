"""The guest listener: who is asking. Two real network namespaces, a real ``enabler serve``, curl.

The guest's namespace has the MAC that libvirt's test driver gives its one domain, so to the host it
is that VM.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.network import DEFAULT_MAC, HOST, PORT, Network, serving
from tests.api.network import network as made
from tests.api.running import DEFAULT_VM

GUEST = "169.254.77.2"


@pytest.fixture(params=["ipv4", "ipv6"])
def network(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Network]:
    with made("vmen", family=request.param) as running, serving(running, tmp_path / "log"):
        yield running


def test_a_vm_sees_itself(network: Network) -> None:
    status, own = network.curl("/v1/identity")
    assert status == 200
    assert own["vm"]["uuid"] == DEFAULT_VM  # type: ignore[index]  # JSON, as the schema has it
    assert network.curl(f"/v1/vms/{DEFAULT_VM}/identity")[1]["residency"] == own["residency"]


def test_a_vm_sees_nobody_else(network: Network) -> None:
    status, answer = network.curl("/v1/vms/00000000-0000-4000-8000-000000000000/identity")
    assert (status, answer["type"]) == (404, "/problems/vm-not-found")
    for admins in ("/v1/vms", "/v1/host"):
        assert network.curl(admins)[0] == 404


def test_what_a_request_claims_is_nothing(network: Network) -> None:
    network.as_other_mac("52:54:00:99:99:99")
    assert network.curl("/v1/identity", "-H", f"X-VM-UUID: {DEFAULT_VM}")[0] == 403
    assert network.curl("/v1/identity", "-H", f"Authorization: Bearer {DEFAULT_VM}")[0] == 401


ANOTHER_WAY = [
    (f"X-Forwarded-For: {GUEST}", 403, "forwarded-request"),
    ("X-Forwarded-Host: enabler", 403, "forwarded-request"),
    ("Forwarded: for=127.0.0.1", 403, "forwarded-request"),
    ("Via: 1.1 proxy", 403, "forwarded-request"),
    ("X-Real-IP: 127.0.0.1", 403, "forwarded-request"),
    ("Host: evil.example", 421, "misdirected-request"),
    ("Host: localhost", 421, "misdirected-request"),
    (f"Host: 169.254.77.1:{PORT + 1}", 421, "misdirected-request"),
    ("Host:", 400, "malformed-host"),
]


def test_a_request_that_came_another_way_is_refused(network: Network) -> None:
    for path in ("/v1/identity", "/healthz", "/v1/nothing"):
        for header, status, problem in ANOTHER_WAY:
            answer = network.curl(path, "-H", header)
            assert (answer[0], answer[1]["type"]) == (status, f"/problems/{problem}"), header


def test_a_host_in_the_target_counts(network: Network) -> None:
    # As a proxy is asked: the target's host outweighs the Host header.
    for target, status in ((network.url.replace("%25eth0", ""), 200), ("http://evil.example", 421)):
        asked = ("--request-target", f"{target}/v1/identity")
        assert network.curl("/v1/identity", *asked)[0] == status


def test_an_address_of_no_vm_is_refused(network: Network) -> None:
    network.as_other_mac("52:54:00:99:99:99")
    status, answer = network.curl("/v1/identity")
    assert (status, answer["type"]) == (403, "/problems/caller-unknown")
    assert DEFAULT_VM not in json.dumps(answer)
    # The VM is known by its MAC again, on whatever address.
    network.as_other_mac(DEFAULT_MAC)
    assert network.curl("/v1/identity")[0] == 200


def test_a_kept_connection_is_whose_its_address_is(network: Network) -> None:
    """Whoever takes over a VM's address, and with it an open connection, is not taken for it."""
    zone = "eth0" if "fe80" in network.url else ""
    peer = "fe80::77:1" if zone else HOST
    script = [sys.executable, "-u", "-c", _ONE_REQUEST_A_LINE, peer, zone]
    asking = subprocess.Popen(
        ["ip", "netns", "exec", network.guest, *script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with asking:
        assert asking.stdin is not None
        assert asking.stdout is not None
        # Several: the later ones are answered without asking the kernel again.
        for mac, status in ((DEFAULT_MAC, 200), ("52:54:00:99:99:99", 403), (DEFAULT_MAC, 200)):
            network.as_other_mac(mac)
            for _ in range(4):
                asking.stdin.write("\n")
                asking.stdin.flush()
                assert int(asking.stdout.readline()) == status
        asking.stdin.close()


_CONNECTED = """
import socket, subprocess, sys
from http.client import HTTPConnection
host, zone, *forget = sys.argv[1:]
connection = HTTPConnection(host, 8777)
scope = (0, socket.if_nametoindex(zone)) if zone else ()
connection.sock = socket.socket(socket.AF_INET6 if zone else socket.AF_INET)
connection.sock.connect((host, 8777, *scope))
def ask():
    connection.request("GET", "/v1/identity")
    answer = connection.getresponse()
    answer.read()
    print(answer.status)
"""

_ONE_REQUEST_A_LINE = f"{_CONNECTED}\nfor _ in sys.stdin:\n    ask()\n"

_TWO_REQUESTS_ON_ONE_CONNECTION = f"""{_CONNECTED}
for _ in range(2):
    ask()
    subprocess.run(forget, check=True)
"""


def test_a_neighbour_that_the_kernel_forgot_is_called(network: Network) -> None:
    """A VM that went and came back asks on the connection it had: no ARP has been seen since."""
    zone = "eth0" if "fe80" in network.url else ""
    peer = "fe80::77:1" if zone else HOST
    forget = ["ip", "-n", network.host, "neigh", "flush", "all"]
    script = [sys.executable, "-c", _TWO_REQUESTS_ON_ONE_CONNECTION, peer, zone, *forget]
    done = subprocess.run(
        ["ip", "netns", "exec", network.guest, *script], capture_output=True, text=True
    )
    assert done.stdout.split() == ["200", "200"], done.stderr
