"""The guest listener: who is asking. Two real network namespaces, a real ``enabler serve``, curl.

The guest's namespace has the MAC that libvirt's test driver gives its one domain, so to the host it
is that VM.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.api.running import DEFAULT_VM, eventually

HOST, GUEST, PORT = "169.254.77.1", "169.254.77.2", 8777
MAC = "aa:bb:cc:dd:ee:ff"
"""The test driver's own, of its domain's interface."""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass
class Network:
    host: str
    guest: str
    url: str

    def curl(self, path: str, *more: str) -> tuple[int, dict[str, object]]:
        command = ["ip", "netns", "exec", self.guest, "curl", "-sS", "-g", "-w", "\n%{http_code}"]
        done = subprocess.run(
            [*command, *more, self.url + path], check=True, capture_output=True, text=True
        )
        body, _, status = done.stdout.rpartition("\n")
        return int(status), json.loads(body)

    def as_other_mac(self, mac: str) -> None:
        ip("-n", self.guest, "link", "set", "eth0", "address", mac)
        # The host would find out by itself, in its own time.
        ip("-n", self.host, "neigh", "flush", "all")


@pytest.fixture(params=["ipv4", "ipv6"])
def network(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Network]:
    host, guest = f"vmen-h{os.getpid()}", f"vmen-g{os.getpid()}"
    for name in (host, guest):
        ip("netns", "add", name)
    ip(
        "-n",
        host,
        "link",
        "add",
        "enabler0",
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        guest,
    )
    try:
        ip("-n", guest, "link", "set", "eth0", "address", MAC)
        for name, interface, address in ((host, "enabler0", HOST), (guest, "eth0", GUEST)):
            accept_dad = f"net.ipv6.conf.{interface}.accept_dad=0"
            subprocess.run(["ip", "netns", "exec", name, "sysctl", "-q", accept_dad], check=True)
            ip("-n", name, "address", "add", f"{address}/16", "dev", interface)
            ip("-n", name, "link", "set", interface, "up")
        ip("-n", host, "address", "add", "fe80::77:1/64", "dev", "enabler0", "nodad")
        listen, url = f"http://{HOST}:{PORT}", f"http://{HOST}:{PORT}"
        if request.param == "ipv6":
            listen, url = (
                f"http://[fe80::77:1%25enabler0]:{PORT}",
                f"http://[fe80::77:1%25eth0]:{PORT}",
            )
        running = Network(host, guest, url)
        serve = [sys.executable, "-m", "enabler", "serve", "--libvirt-uri", "test:///default"]
        environment = os.environ | {
            "ENABLER_MACHINE__SERIAL_NUMBER": "SN-0001",
            "ENABLER_MACHINE__MANUFACTURER": "Acme",
            "ENABLER_KEYS_DIRECTORY": str(tmp_path / "keys"),
        }
        with subprocess.Popen(
            ["ip", "netns", "exec", host, *serve, "--listen", listen],
            env=environment,
            stderr=(tmp_path / "log").open("w"),
        ) as process:
            try:
                eventually(lambda: is_ready(running))
                yield running
            finally:
                process.terminate()
                assert process.wait() == 0, (tmp_path / "log").read_text()
    finally:
        for name in (host, guest):
            ip("netns", "delete", name)


def is_ready(network: Network) -> bool:
    try:
        return network.curl("/readyz")[0] == 200
    except subprocess.CalledProcessError:
        return False


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
    for claim in (
        f"X-Forwarded-For: {GUEST}",
        "Forwarded: for=127.0.0.1",
        "Host: enabler",
        f"X-VM-UUID: {DEFAULT_VM}",
    ):
        assert network.curl("/v1/identity", "-H", claim)[0] == 403


def test_an_address_of_no_vm_is_refused(network: Network) -> None:
    network.as_other_mac("52:54:00:99:99:99")
    status, answer = network.curl("/v1/identity")
    assert (status, answer["type"]) == (403, "/problems/caller-unknown")
    assert DEFAULT_VM not in json.dumps(answer)
    # The VM is known by its MAC again, on whatever address.
    network.as_other_mac(MAC)
    assert network.curl("/v1/identity")[0] == 200


_TWO_REQUESTS_ON_ONE_CONNECTION = """
import socket, subprocess, sys
from http.client import HTTPConnection
host, zone, forget = sys.argv[1], sys.argv[2], sys.argv[3:]
connection = HTTPConnection("enabler")
scope = (0, socket.if_nametoindex(zone)) if zone else ()
connection.sock = socket.socket(socket.AF_INET6 if zone else socket.AF_INET)
connection.sock.connect((host, 8777, *scope))
for number in range(2):
    connection.request("GET", "/v1/identity")
    answer = connection.getresponse()
    answer.read()
    print(answer.status)
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
