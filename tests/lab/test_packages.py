"""The Debian packages under a real systemd: a guest that boots with it, and migrates."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.lab.guest import Guest
from tests.lab.host import Host
from tests.lab.images import build_images
from tests.lab.lab import Lab
from tests.lab.migration import migrate
from tests.lab.processes import wait_until
from tests.lab.progress import Progress
from tests.lab.systemd_guest import SystemdGuest
from tests.packages.building import deb, packages

pytestmark = [pytest.mark.lab, pytest.mark.boot]

PATIENCE = 240
ON_MIGRATION = """\
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo moved >> /root/moved'

[Install]
WantedBy=guest-client-migrated.target
"""
# What an administrator has set up: the bridge, without a VM yet, so that its IPv6 address is
# tentative; a time service; and a VM as it should be (of the driver for tests).
NODE = """\
<node><domain type='test'>
  <name>db01</name><uuid>11111111-0000-4000-8000-000000000001</uuid>
  <genid>11111111-0000-4000-8000-000000000002</genid>
  <memory>1048576</memory><vcpu>2</vcpu><os><type>hvm</type></os>
  <devices><interface type='bridge'>
    <mac address='52:54:00:00:00:01'/><source bridge='enabler0'/>
    <filterref filter='vm-enabler-guest'/>
  </interface></devices>
</domain></node>
"""
TIME_SERVER = """\
import socket, struct, time
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 123))
while True:
    asked, client = server.recvfrom(512)
    now = int((time.time() + 2208988800) * 2**32)
    # RFC 5905: version 4, server; stratum 1; no delay, no dispersion.
    head = struct.pack("!BBbbII4sQ", 0x24, 1, 4, -20, 0, 0, b"LOCL", now)
    server.sendto(head + asked[40:48] + struct.pack("!QQ", now, now), client)
"""
HOST = """
sed -i 's|^libvirt_uri.*|libvirt_uri = "test:///etc/enabler/node.xml"|' /etc/enabler/enabler.toml
systemd-run --unit=time-server python3 /root/time_server.py
mkdir -p /etc/systemd/timesyncd.conf.d
printf '[Time]\\nNTP=127.0.0.1\\n' >/etc/systemd/timesyncd.conf.d/lab.conf
systemctl restart systemd-timesyncd
ip address flush dev eth0
ip link add enabler0 address 52:54:00:77:00:01 type bridge
ip link set enabler0 up
ip address add 169.254.77.1/16 dev enabler0
ip address add fe80::77:1/64 dev enabler0
systemctl restart enabler
"""


@pytest.fixture
def debian(settled: Lab) -> Iterator[Guest]:
    """A guest on host-a, booted by systemd, in which nothing of ours is installed."""
    made = SystemdGuest("vm2", 1, settled.hosts)
    made.define(settled.hosts[0], build_images(Progress()))
    made.start(settled.hosts[0])
    made.wait_ready(240)
    done = made.run(["systemctl", "is-system-running", "--wait"], timeout=240)
    assert done.stdout == "running\n", made.run(["systemctl", "--failed"]).stdout
    yield made
    made.undefine()


def out(guest: Guest, *argv: str) -> str:
    return guest.run(list(argv), check=True, timeout=300).stdout


def serial(host: Host) -> str:
    assert host.machine is not None
    return host.machine.serial


def install(guest: Guest, name: str) -> None:
    print(out(guest, "dpkg", "-i", f"/usr/local/share/{deb(packages(), name).name}"))


def purged(guest: Guest, name: str) -> None:
    print(out(guest, "dpkg", "--purge", name))
    assert out(guest, "systemctl", "list-units", "--all", "--plain", "--no-legend", "enabler*",
               "guest-client*") == ""  # fmt: skip
    assert out(guest, "systemctl", "--failed", "--plain", "--no-legend") == ""


def test_the_guests_package_under_systemd(debian: Guest, a: Host, b: Host) -> None:
    install(debian, "vm-enabler-guest")
    assert out(debian, "systemctl", "is-active", "guest-client-agent") == "active\n"
    debian.write_file("/etc/systemd/system/meter.service", ON_MIGRATION)
    out(debian, "systemctl", "enable", "meter.service")
    before = out(debian, "/usr/bin/guest-client", "agent-id", "show")
    knows = ["/usr/bin/guest-client", "agent", "status"]
    assert wait_until(lambda: serial(a) in debian.run(knows).stdout, PATIENCE, 1)
    migrate(debian, b)
    moved = ["cat", "/root/moved"]
    assert wait_until(lambda: debian.run(moved).stdout == "moved\n", PATIENCE, 1)
    assert out(debian, "/usr/bin/guest-client", "agent-id", "show") != before
    print(out(debian, "/usr/bin/guest-client", "agent", "history"))
    purged(debian, "vm-enabler-guest")


def test_the_hosts_package_under_systemd(debian: Guest) -> None:
    install(debian, "vm-enabler")
    debian.write_file("/etc/enabler/node.xml", NODE)
    debian.write_file("/root/time_server.py", TIME_SERVER)
    out(debian, "sh", "-ec", HOST)
    assert out(debian, "systemctl", "is-active", "enabler.service", "enabler.socket") == (
        "active\nactive\n"
    )
    doctor = ["enabler", "doctor", "--json"]

    def to_look_at() -> list[dict[str, str]]:
        checks = json.loads(debian.run(doctor, timeout=120).stdout)["checks"]
        return [check for check in checks if check["status"] != "ok"]

    # The clock is set when the time service has had its answer.
    assert wait_until(lambda: not to_look_at(), PATIENCE, 1), to_look_at()
    print(out(debian, "enabler", "doctor"))
    print(out(debian, "systemctl", "status", "enabler", "enabler.socket"))
    assert json.loads(out(debian, "enabler", "vms", "--json"))["vms"]
    log = out(debian, "journalctl", "-u", "enabler", "-o", "cat")
    assert "made the signing key" in log
    assert "WARNING" not in log
    exposure = out(debian, "systemd-analyze", "security", "enabler")
    print(exposure)
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", exposure)
    assert level is not None
    assert float(level[1]) < 2
    # The watchdog: a process that gives no sign of life is replaced.
    pid = out(debian, "systemctl", "show", "-P", "MainPID", "enabler")
    out(debian, "kill", "-STOP", pid.strip())
    restarts = ["systemctl", "show", "-P", "NRestarts", "enabler"]
    assert wait_until(lambda: debian.run(restarts).stdout == "1\n", PATIENCE, 1)
    vms = ["enabler", "vms", "--json"]
    assert wait_until(lambda: debian.run(vms).returncode == 0, PATIENCE, 1)
    purged(debian, "vm-enabler")
