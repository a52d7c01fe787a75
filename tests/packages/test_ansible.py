"""The Ansible role, on a host and a guest that it reaches as by ssh: there, again, and gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packages.building import deb
from tests.packages.managed import Managed

INVENTORY = """\
all:
  vars:
    ansible_connection: ssh
    ansible_become: false
    ansible_python_interpreter: /usr/bin/python3
    vm_enabler_mac_table: false
hypervisors:
  hosts:
    host-a:
      vm_enabler_package: {host}
      vm_enabler_settings:
        log_level: {level}
        listen: ["http://169.254.77.1:8777", "unix:/run/enabler/admin.sock"]
        machine: {{manufacturer: Acme, model: 'Rack "1"', serial_number: SN-0077}}
guests:
  hosts:
    vm1:
      vm_enabler_package: {guest}
      vm_enabler_doctor: false
      vm_enabler_scan_timer: true
      vm_enabler_settings:
        deadline: 5
        destination:
          - url: https://licences.example.org/events
"""
NOTHING = {"host-a": 0, "vm1": 0}
ABSENT = ("-e", "vm_enabler_state=absent")
LIBVIRT = "virsh net-list --all --name; virsh nwfilter-list; ip -br link show type bridge"


@pytest.fixture
def managed(tmp_path: Path) -> Iterator[Managed]:
    host = Managed(tmp_path)
    yield host
    host.close()


def test_the_second_run_changes_nothing_and_removal_leaves_nothing(
    built: Path, managed: Managed
) -> None:
    packages = {"host": deb(built, "vm-enabler"), "guest": deb(built, "vm-enabler-guest")}
    inventory = INVENTORY.format(level="info", **packages)
    before, libvirt = managed.content(), managed.shell(LIBVIRT)

    changes, said = managed.play(inventory, "--check", "--diff")
    assert "not installed yet" in said
    assert all(changes.values())
    assert managed.content() == before

    _, said = managed.play(inventory)
    print(said)
    assert "169.254.77.1" in managed.shell("ip address show dev enabler0")
    assert "vm-enabler-guest" in managed.shell("virsh nwfilter-list")
    units = "enabler.service enabler.socket guest-client-agent.service guest-client-scan.timer"
    assert managed.shell(f"systemctl is-enabled {units}").split() == ["enabled"] * 4
    assert 'Acme Rack "1"' in managed.shell("enabler doctor")
    assert "deadline = 5" in managed.shell("cat /etc/guest-client/config.toml")

    changes, said = managed.play(inventory)
    assert changes == NOTHING, said
    changed = INVENTORY.format(level="debug", **packages)
    changes, said = managed.play(changed, "--check", "--diff")
    assert changes == {"host-a": 1, "vm1": 0}, said
    assert '+log_level = "debug"' in said

    _, said = managed.play(inventory, *ABSENT)
    print(said)
    assert managed.content() == before
    assert managed.shell(LIBVIRT) == libvirt
    changes, said = managed.play(inventory, *ABSENT)
    assert changes == NOTHING, said


def test_a_guest_without_packages(built: Path, managed: Managed) -> None:
    archive = {"host": "none", "guest": built / "guest-client.pyz"}
    inventory, before = INVENTORY.format(level="info", **archive), managed.content()
    managed.play(inventory, "--limit", "vm1")
    units = "guest-client-agent.service guest-client-scan.timer"
    assert managed.shell(f"systemctl is-enabled {units}").split() == ["enabled"] * 2
    unit = managed.shell("cat /etc/systemd/system/guest-client-agent.service")
    assert "ExecStart=/usr/local/bin/guest-client agent run" in unit
    assert "hardware" in managed.shell("/usr/local/bin/guest-client plans")
    changes, said = managed.play(inventory, "--limit", "vm1")
    assert changes == {"vm1": 0}, said
    managed.play(inventory, "--limit", "vm1", *ABSENT)
    assert managed.content() == before
