"""Two guests on one host: each sees itself, by each way, and neither gets a word about the other.

The filters are those of `deploy/`. What vsock can be had of is at the end: this machine's kernel
has no vhost-vsock, so a guest is both ends of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt
import pytest

from tests.lab.guest import Guest
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.migration import migrate
from tests.lab.processes import wait_until
from tests.lab.scans import GatedScan

pytestmark = pytest.mark.lab

DEPLOY = Path(__file__).parents[2] / "deploy"
FILTER = "vm-enabler-guest"
URL = "http://169.254.77.1:8777"
NOBODY = "00000000-0000-4000-8000-000000000000"


class Asked:
    """What a guest was told: the status (0: nothing), and the document."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        self.status = status
        self.body = body

    @property
    def said(self) -> str:
        """The cell of the matrix."""
        if self.status == 200:
            return f"200 {self.body['vm']['name']}"
        return f"{self.status} {self.body['type'].rpartition('/')[2]}" if self.status else "nothing"

    def names(self, guest: Guest) -> bool:
        return any(word in json.dumps(self.body) for word in (guest.uuid, guest.mac))


def ask(guest: Guest, path: str = "/v1/identity", token: str | None = None) -> Asked:
    """Ask with curl, on a connection of its own."""
    command = ["curl", "-sS", "--max-time", "4", "-w", "\n%{http_code}", URL + path]
    if token is not None:
        command += ["-H", f"Authorization: Bearer {token}"]
    done = guest.run(command)
    body, _, status = done.stdout.rpartition("\n")
    return Asked(int(status), json.loads(body) if body else {})


def enroll(host: Host, guest: Guest) -> str:
    """A token that the guest was not handed."""
    done = host.run("enabler", "enroll", "--libvirt-uri", "qemu:///system", "--print", guest.name)
    return done.stdout.strip()


def set_ways(host: Host, *ways: str) -> None:
    """The same enabler with other `callers`."""
    lines = host.enabler_config.read_text().splitlines()
    kept = [line for line in lines if not line.startswith("callers")]
    named = [f"callers = {json.dumps(ways)}"] if ways else []
    host.enabler_config.write_text("\n".join([*named, *kept, ""]))
    host.enabler.restart()


def filtered(guest: Guest, name: str | None) -> None:
    """Give the guest's interface a filter, or take it away, while it runs."""
    interface = f"""<interface type='bridge'><mac address='{guest.mac}'/>
    <source bridge='enabler0'/><model type='virtio'/><rom enabled='no'/>
    {f"<filterref filter='{name}'/>" if name else ""}</interface>"""
    guest.domain.updateDeviceFlags(interface, libvirt.VIR_DOMAIN_AFFECT_LIVE)


@pytest.fixture(scope="module")
def second(lab: Lab) -> Iterator[Guest]:
    """Another guest, for this module; and the filter, known to all hosts."""
    lab.settle()
    guest = Guest.numbered(1, lab.hosts)
    for host in lab.hosts:
        host.connection.nwfilterDefineXML((DEPLOY / f"libvirt/{FILTER}.xml").read_text())
    guest.define(lab.hosts[0], lab.images())
    guest.start(lab.hosts[0])
    guest.wait_ready()
    yield guest
    guest.undefine()
    for host in lab.hosts:
        host.run("virsh", "-q", "nwfilter-undefine", FILTER, check=False)


@pytest.fixture
def vm1(guest: Guest, second: Guest, a: Host, b: Host) -> Iterator[Guest]:
    """The first guest, with the filter as the second has it; everything is as it was afterwards."""
    for each in (guest, second):
        if each.host is not a:
            migrate(each, a)
        filtered(each, FILTER)
    yield guest
    filtered(guest, None)
    for host in (a, b):
        if "callers" in host.enabler_config.read_text():
            set_ways(host)


def test_each_sees_itself_by_each_way(vm1: Guest, second: Guest, a: Host) -> None:
    tokens = {guest.name: enroll(a, guest) for guest in (vm1, second)}
    for ways in ((), ("token",), ("address",)):
        set_ways(a, *ways)
        for guest in (vm1, second):
            token = None if ways == ("address",) else tokens[guest.name]
            told = ask(guest, token=token)
            assert told.said == f"200 {guest.name}"
            other = second if guest is vm1 else vm1
            assert not told.names(other)
    # The way that needs nothing is still there beside the strongest.
    set_ways(a)
    assert ask(vm1).said == "200 vm1"


def take_address(guest: Guest, address: str) -> None:
    commands = f"ip -4 address flush dev eth0 && ip address add {address}/16 dev eth0"
    guest.run(["sh", "-c", commands], check=True)


def take_mac(guest: Guest, mac: str) -> None:
    # An address goes with the interface's being down.
    commands = f"""ip link set eth0 down && ip link set eth0 address {mac} &&
    ip link set eth0 up && ip neighbour flush all; ip address show dev eth0"""
    guest.run(["sh", "-c", commands], check=True)


def attacks(attacker: Guest, victim: Guest, tokens: dict[str, str]) -> dict[str, Asked]:
    """What the attacker is told, with what it has of the other."""
    told: dict[str, Asked] = {}
    take_address(attacker, victim.address)
    told["its IP"] = ask(attacker)
    take_address(attacker, attacker.address)
    take_mac(attacker, victim.mac)
    told["its MAC"] = ask(attacker)
    take_mac(attacker, attacker.mac)
    for name, token in tokens.items():
        told[name] = ask(attacker, token=token)
    told["its UUID"] = ask(attacker, f"/v1/vms/{victim.uuid}/identity", tokens["own token"])
    unknown = ask(attacker, f"/v1/vms/{NOBODY}/identity", tokens["own token"])
    told["a UUID of nobody"] = unknown
    # A foreign UUID and an unknown one look the same.
    foreign = json.dumps(told["its UUID"].body).replace(victim.uuid, NOBODY)
    assert (told["its UUID"].status, json.loads(foreign)) == (unknown.status, unknown.body)
    return told


WAYS: dict[str, tuple[str, ...]] = {"all": (), "token": ("token",), "address": ("address",)}
EXPECTED = {
    # The attacker is vm1. A token is its holder's where nothing else is asked: a stolen one is
    # found out by the address, or by vsock.
    "its IP": {"all": "200 vm1", "token": "401 token-needed", "address": "200 vm1"},
    "its MAC": {"all": "nothing", "token": "nothing", "address": "nothing"},
    "own token": {"all": "200 vm1", "token": "200 vm1", "address": "200 vm1"},
    "its token": {"all": "401 token-refused", "token": "200 vm2", "address": "200 vm1"},
    "its old token": {
        "all": "401 token-refused",
        "token": "401 token-refused",
        "address": "200 vm1",
    },
    "its UUID": dict.fromkeys(WAYS, "404 vm-not-found"),
    "a UUID of nobody": dict.fromkeys(WAYS, "404 vm-not-found"),
    "its token, when it has left": {
        "all": "401 token-refused",
        "token": "401 token-refused",
        "address": "200 vm1",
    },
}


def test_ways_and_attacks(vm1: Guest, second: Guest, a: Host, b: Host) -> None:
    old = enroll(a, second)
    tokens = {
        "own token": enroll(a, vm1),
        "its token": enroll(a, second),
        "its old token": old,
    }
    found: dict[str, dict[str, str]] = {row: {} for row in EXPECTED}
    for column, ways in WAYS.items():
        set_ways(a, *ways)
        for row, told in attacks(vm1, second, tokens).items():
            found[row][column] = told.said
            if (row, column) != ("its token", "token") and row != "its UUID":
                assert not told.names(second), (row, column)
    migrate(second, b)
    row = "its token, when it has left"
    for column, ways in WAYS.items():
        set_ways(a, *ways)
        found[row][column] = ask(vm1, token=tokens["its token"]).said
    assert ask(second).said == "200 vm2"
    print(f"\n{'vm1 shows':<30}" + "".join(f"{column:<20}" for column in WAYS))
    for row, cells in found.items():
        print(f"{row:<30}" + "".join(f"{cells[column]:<20}" for column in WAYS))
    assert found == EXPECTED


def test_the_nftables_rules_do_the_same(vm1: Guest, second: Guest, a: Host) -> None:
    """On a host whose interfaces libvirt does not filter."""
    for guest in (vm1, second):
        filtered(guest, None)
    a.run("nft", "-f", str(DEPLOY / "nftables/vm-enabler-bridge.nft"))
    try:
        # Without the filter, and without the ports being named, it works: the MAC is all there is.
        take_mac(vm1, second.mac)
        assert wait_until(lambda: ask(vm1).said == "200 vm2", 20)
        take_mac(vm1, vm1.mac)
        for guest in (vm1, second):
            port = port_of(guest)
            for element in (f'ports {{ "{port}" }}', f'guests {{ "{port}" . {guest.mac} }}'):
                a.run("nft", f"add element bridge vm_enabler {element}")
            a.run("bridge", "link", "set", "dev", port, "isolated", "on", "flood", "off")
        take_mac(vm1, second.mac)
        assert ask(vm1).said == "nothing"
        take_mac(vm1, vm1.mac)
        for guest in (vm1, second):
            assert wait_until(lambda each=guest: ask(each).said == f"200 {each.name}", 20)
    finally:
        a.run("nft", "delete", "table", "bridge", "vm_enabler")


def port_of(guest: Guest) -> str:
    """Its interface's other end on the host."""
    target = ElementTree.fromstring(guest.domain.XMLDesc()).find("devices/interface/target")
    assert target is not None
    return target.attrib["dev"]


def test_a_token_moves_with_its_vm(vm1: Guest, a: Host, b: Host) -> None:
    """Enrolled on A, handed over by the guest agent; known on B, and back on A, with no step."""
    for host in (a, b):
        set_ways(host, "token")
    said = a.run("enabler", "enroll", "--libvirt-uri", "qemu:///system", vm1.uuid).stdout
    assert "/etc/guest-client/token" in said
    mode = vm1.run(["stat", "-c", "%a %U", "/etc/guest-client/token"], check=True).stdout
    assert mode.split() == ["600", "root"]
    try:
        for host in (a, b, a):
            if host is not vm1.host:
                migrate(vm1, host)
            done = vm1.run(["guest-client", "identity", "--json"], check=True)
            document = json.loads(done.stdout)
            assert host.machine is not None
            assert document["machine"]["serial_number"] == host.machine.serial
            assert document["vm"]["uuid"] == vm1.uuid
        # And revoked on A, it is void there on the connections that it was good for, and is final.
        a.run("enabler", "revoke", "--libvirt-uri", "qemu:///system", vm1.name)
        assert wait_until(lambda: vm1.run(["guest-client", "identity"]).returncode == 77, 20)
    finally:
        vm1.run(["rm", "-f", "/etc/guest-client/token"])
    token = vm1.run(["guest-client", "identity"])
    assert token.returncode == 77
    assert "token-needed" in token.stderr
    for host in (a, b):
        assert "vme_" not in host.enabler.log.read_text()


_ABUSE = """
import socket
ENABLER = ("169.254.77.1", 8777)
HOST = b"Host: 169.254.77.1:8777\\r\\n"
MALFORMED = [
    b"\\x00\\xff\\xfe\\x16\\x03\\x01" * 20,
    b"GET\\r\\n\\r\\n",
    b"GET / HTTP/9.9\\r\\n\\r\\n",
    b"GET /v1/identity HTTP/1.1\\r\\n\\r\\n",
    b"GET /v1/identity HTTP/1.1\\r\\nHost: evil.example\\r\\n\\r\\n",
    b"GET /%00%ff/../..//v1/vms HTTP/1.1\\r\\n" + HOST + b"\\r\\n",
    b"GET /v1/identity HTTP/1.1\\r\\n" + HOST + b"X: " + b"a" * 70000 + b"\\r\\n\\r\\n",
    b"GET /v1/identity HTTP/1.1\\r\\n" + HOST + b"Authorization: Bearer nobody\\r\\n\\r\\n",
    b"POST /v1/identity HTTP/1.1\\r\\n" + HOST + b"Content-Length: -1\\r\\n\\r\\n",
    b"POST /v1/identity/attestation HTTP/1.1\\r\\n" + HOST + b"Content-Length: 9999999\\r\\n\\r\\n",
]
told = {}
print("begun", flush=True)
for number in range(10_000):
    try:
        with socket.create_connection(ENABLER, 5) as connection:
            connection.sendall(MALFORMED[number % len(MALFORMED)])
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(64)[9:12].decode("latin-1") or "closed"
    except OSError as error:
        answer = type(error).__name__
    told[answer] = told.get(answer, 0) + 1
slow = []
for number in range(1_000):
    try:
        connection = socket.create_connection(ENABLER, 5)
        connection.sendall(b"GET /v1/identity HTTP/1.1\\r\\nX-Slow: ")
        slow.append(connection)
    except OSError as error:
        told[type(error).__name__] = told.get(type(error).__name__, 0) + 1
print("slow", len(slow), told, flush=True)
import time
time.sleep(600)
"""

_READS = """
import http.client, json, statistics, time
times, told = [], set()
for number in range(40):
    began = time.perf_counter()
    connection = http.client.HTTPConnection("169.254.77.1", 8777, timeout=30)
    connection.request("GET", "/v1/identity")
    answer = connection.getresponse()
    told.add((answer.status, json.loads(answer.read())["vm"]["name"]))
    connection.close()
    times.append(time.perf_counter() - began)
    time.sleep(0.05)
print(json.dumps([sorted(told), statistics.median(times), max(times)]))
"""


def test_a_neighbour_s_abuse_disturbs_nobody(vm1: Guest, second: Guest, a: Host) -> None:
    """10,000 malformed requests and 1,000 slow connections, and vm1's scan in the middle of it.

    How much slower its reads are is printed: both guests are emulated by the same processors.
    """

    def reads() -> tuple[list[object], float, float]:
        told, median, most = json.loads(vm1.run(["python3", "-c", _READS], check=True).stdout)
        return told, median, most

    told, before, _ = reads()
    assert told == [[200, "vm1"]]
    gated = GatedScan(vm1)
    gated.wait_begun()
    abuse = second.spawn(["python3", "-c", _ABUSE])
    try:
        rounds = []
        while "slow" not in abuse.output_so_far():
            rounds.append(reads())
        rounds.append(reads())  # beside the slow connections
        scanned = gated.finish()
    finally:
        abuse.kill()
    print(f"\nvm2: {abuse.output_so_far()}")
    medians = " ".join(f"{median / before:.2f}" for _, median, _ in rounds)
    print(f"vm1: median read {before * 1000:.1f} ms before; as ratios during: {medians}")
    assert all(told == [[200, "vm1"]] for told, *_ in rounds)
    assert (scanned.code, scanned.outcome) == (0, "consistent")
    assert scanned.output is not None
    assert a.admin_get("/readyz").status_code == 200


_HOST_IN_A_GUEST = """
import sys
from enabler.listen import bind, parse
listener = bind(parse("vsock:8777"), 0, None)
listener.setblocking(True)
document = open("/root/identity.json", "rb").read()
print("listening", flush=True)
while True:
    connection, (cid, port) = listener.accept()
    head = connection.recv(4096).decode().splitlines()
    print(cid, head[0], flush=True)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\n"
                       b"Content-Length: %d\\r\\n\\r\\n%s" % (len(document), document))
"""


def test_vsock_in_a_guest(guest: Guest) -> None:
    """Both halves over a real AF_VSOCK: the enabler's listener and the guest client's dialling.

    They meet on the loopback of the guest's kernel, where the peer's CID is 1.
    """
    sees = guest.run(["guest-client", "identity", "--json"], check=True).stdout
    guest.write_file("/root/identity.json", sees)
    server = guest.spawn(["python3", "-c", _HOST_IN_A_GUEST])
    try:
        assert wait_until(lambda: "listening" in server.output_so_far(), 30)
        url = "vsock://1:8777"
        done = guest.run(["guest-client", "identity", "--json", "--enabler", url], check=True)
        assert json.loads(done.stdout) == json.loads(sees)
        assert "1 GET /v1/identity HTTP/1.1" in server.output_so_far()
        scan = ["guest-client", "scan", "--enabler", url, "--report", "/root/r.json"]
        guest.run([*scan, "--", "true"], check=True)
        report = json.loads(guest.read_file("/root/r.json"))
        assert {report[read]["via"] for read in ("before", "after")} == {url}
    finally:
        server.kill()
    # This guest has a vsock, and no host at its other end: the link-local address is asked.
    doctor = guest.run(["guest-client", "doctor"], check=True).stdout
    assert "so http://169.254.77.1:8777 is asked" in doctor
    nobody = guest.run(["guest-client", "identity", "--enabler", url, "--deadline", "1"])
    assert nobody.returncode == 69
    assert "Connection refused" in nobody.stderr
