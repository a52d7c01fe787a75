"""The address plan, on two guests of different hosts that meet on one: `deploy/network.md`.

Both get their interface by `enabler attach`, while they run, and keep it through a migration.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from enabler.addresses import link_local, mac_of
from enabler.network_xml import wanted
from tests.lab.guest import Guest
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.migration import migrate
from tests.lab.processes import wait_until

pytestmark = pytest.mark.lab

SAME = "169.254.10.99"
"""What two hosts' guests may choose, of IPv4's link-local addresses: nobody sees to it."""
FILTER = "vm-enabler-guest"


def enabler(host: Host, command: str, guest: Guest, *options: str) -> dict[str, Any]:
    """`enabler attach` or `detach`, as an admin runs it."""
    uri = ("--libvirt-uri", "qemu:///system")
    done = host.run(
        "enabler", command, *uri, "--bridge", "enabler0", "--json", *options, guest.name
    )
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def interface_of(guest: Guest, mac: str) -> str | None:
    """What the guest calls the interface with this MAC."""
    for line in guest.run(["ip", "-o", "link"]).stdout.splitlines():
        if mac in line:
            return line.split(":")[1].strip()
    return None


def curl(guest: Guest, host: str) -> tuple[int, str]:
    """The status (0: no answer), and which VM the answer is about."""
    url = f"http://{host}:8777/v1/identity"
    done = guest.run(["curl", "-gsS", "--max-time", "4", "-w", "\n%{http_code}", url])
    body, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(body)["vm"]["name"] if status == "200" else ""


@pytest.fixture
def pair(settled: Lab, a: Host, b: Host) -> Iterator[tuple[Guest, Guest]]:
    """vm1 on host-a, vm2 on host-b; the nwfilter is known to both."""
    first, second = settled.guests[0], Guest.numbered(1, settled.hosts)
    for host in (a, b):
        said = host.run("enabler", "network", "--libvirt-uri", "qemu:///system", "--dry-run")
        assert f"nwfilter {FILTER}: would be defined" in said.stdout
        host.connection.nwfilterDefineXML(wanted(FILTER))
        said = host.run("enabler", "network", "--libvirt-uri", "qemu:///system", "--dry-run")
        assert f"nwfilter {FILTER}: unchanged" in said.stdout
    second.define(b, settled.images())
    second.start(b)
    second.wait_ready()
    yield first, second
    for guest in (first, second):
        guest.undefine()  # `settle` starts the first anew, as it was
    for host in (a, b):
        host.run("virsh", "-q", "nwfilter-undefine", FILTER, check=False)


def plugged(guest: Guest, host: Host) -> str:
    """Take the guest's interface away, and give it the one of the plan; where to ask by it."""
    assert enabler(host, "detach", guest, "--dry-run")["changed"]
    gone = enabler(host, "detach", guest)
    assert {step["action"] for step in gone["steps"]} == {"detached"}
    assert not enabler(host, "detach", guest)["changed"]
    assert wait_until(lambda: interface_of(guest, guest.mac) is None, 20)

    made = enabler(host, "attach", guest)
    mac = made["mac"]
    assert mac == mac_of(guest.uuid)
    assert {step["where"] for step in made["steps"]} == {"live", "config"}
    assert all(FILTER in step["xml"] for step in made["steps"])
    assert not enabler(host, "attach", guest)["changed"]
    assert wait_until(lambda: interface_of(guest, mac), 20)

    name = str(interface_of(guest, mac))
    up = f"ip link set {name} up && ip address add {SAME}/16 dev {name}"
    guest.run(["sh", "-c", up], check=True)
    # Nobody gave the guest this one: it makes it of its MAC.
    own = f"inet6 {made['link_local']}/64"
    assert made["link_local"] == link_local(mac)
    shown = ["ip", "-6", "address", "show", "dev", name, "-tentative"]
    assert wait_until(lambda: own in guest.run(shown).stdout, 20)
    return f"[fe80::77:1%25{name}]"


def test_guests_of_two_hosts_meet(pair: tuple[Guest, Guest], a: Host, b: Host) -> None:
    urls = {}
    for guest, host in zip(pair, (a, b), strict=True):
        urls[guest.name] = plugged(guest, host)
        assert curl(guest, urls[guest.name]) == (200, guest.name)
        assert curl(guest, "169.254.77.1") == (200, guest.name)

    first, second = pair
    migrate(second, a)
    for _ in range(3):
        for guest in pair:
            assert curl(guest, urls[guest.name]) == (200, guest.name)
            url = f"http://{urls[guest.name]}:8777"
            asked = ["guest-client", "identity", "--json", "--enabler", url]
            document = json.loads(guest.run(asked, check=True).stdout)
            assert document["vm"]["uuid"] == guest.uuid
            assert a.machine is not None
            assert document["machine"]["serial_number"] == a.machine.serial
    # Two with the same IPv4 address get in each other's way there. What they are told, if anything,
    # is about themselves.
    for _ in range(4):
        for guest in pair:
            status, named = curl(guest, "169.254.77.1")
            assert (status, named) != (200, ({first.name, second.name} - {guest.name}).pop())
    assert not {first.mac, second.mac} & set(a.run("ip", "neighbour").stdout.split())
