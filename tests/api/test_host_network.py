"""`enabler network`, `attach` and `detach` on libvirt's test driver, which has networks; it has no
nwfilter and attaches nothing: that is shown in the lab, and by the Ansible role's test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import libvirt
import pytest

from enabler import cli
from enabler.devices import Interface
from enabler.libvirt_host import descriptions
from tests.api.running import DEFAULT_VM

URI = ("--libvirt-uri", "test:///default")
UNSUPPORTED = {"what": "nwfilter vm-enabler-guest", "done": "not supported by this driver"}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.main([arguments[0], *URI, "--json", *arguments[1:]]) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main([arguments[0], *URI, *arguments[1:]]) == 69
    return capsys.readouterr().err


def done(said: dict[str, Any]) -> list[str]:
    return [step["done"] for step in said["steps"] if step["what"] == "network enabler0"]


@pytest.fixture(autouse=True)
def clean(hypervisor: libvirt.virConnect) -> Iterator[None]:
    """The driver's networks last as long as the process."""
    yield
    for network in hypervisor.listAllNetworks():
        if network.name() == "enabler0":
            if network.isActive():
                network.destroy()
            network.undefine()


@pytest.fixture
def network(
    hypervisor: libvirt.virConnect, capsys: pytest.CaptureFixture[str]
) -> libvirt.virNetwork:
    run(capsys, "network")
    return hypervisor.networkLookupByName("enabler0")


def test_it_is_made_once(
    hypervisor: libvirt.virConnect, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["defined", "started", "autostart"]
    tried = run(capsys, "network", "--dry-run")
    assert (tried["changed"], tried["dry_run"], done(tried)) == (True, True, wanted)
    assert "enabler0" not in hypervisor.listNetworks()
    made = run(capsys, "network")
    assert (made["changed"], done(made)) == (True, wanted)
    assert made["steps"][0] == UNSUPPORTED
    network = hypervisor.networkLookupByName("enabler0")
    assert network.isActive()
    assert network.autostart()
    again = run(capsys, "network")
    assert (again["changed"], done(again)) == (False, ["unchanged"])


def test_what_is_missing_of_it_is_added(
    network: libvirt.virNetwork, capsys: pytest.CaptureFixture[str]
) -> None:
    network.destroy()
    network.setAutostart(0)
    assert done(run(capsys, "network")) == ["started", "autostart"]


def test_another_network_of_that_name_is_replaced_when_it_does_not_run(
    network: libvirt.virNetwork, capsys: pytest.CaptureFixture[str]
) -> None:
    uuid = network.UUIDString()
    network.destroy()
    assert done(run(capsys, "network", "--no-mac-table")) == ["redefined", "started"]
    assert "macTableManager" not in network.XMLDesc()
    assert network.UUIDString() == uuid
    # Now it runs, and VMs may be on it.
    said = refused(capsys, "network")
    assert "its table of MACs" in said
    assert "virsh net-destroy enabler0" in said
    assert network.isActive()


def test_it_is_taken_out_again(
    hypervisor: libvirt.virConnect,
    network: libvirt.virNetwork,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert done(run(capsys, "network", "--remove", "--dry-run")) == ["stopped", "undefined"]
    assert network.isActive()
    assert done(run(capsys, "network", "--remove")) == ["stopped", "undefined"]
    assert "enabler0" not in hypervisor.listNetworks() + hypervisor.listDefinedNetworks()
    assert done(run(capsys, "network", "--remove")) == ["absent"]


def on_network(hypervisor: libvirt.virConnect, name: str, mac: str) -> libvirt.virDomain:
    return hypervisor.defineXML(
        f"<domain type='test'><name>{name}</name><memory>1024</memory><vcpu>1</vcpu>"
        f"<os><type>hvm</type></os><devices>{Interface(mac, filter=None).xml()}</devices></domain>"
    )


def test_it_stays_while_a_vm_has_an_interface_there(
    hypervisor: libvirt.virConnect,
    network: libvirt.virNetwork,
    capsys: pytest.CaptureFixture[str],
) -> None:
    domain = on_network(hypervisor, "db01", "52:54:00:77:01:07")
    try:
        said = refused(capsys, "network", "--remove")
        assert "db01" in said
        assert "enabler detach" in said
        assert network.isActive()
    finally:
        domain.undefine()


def test_what_is_there_is_left_alone(
    hypervisor: libvirt.virConnect, capsys: pytest.CaptureFixture[str]
) -> None:
    domain = on_network(hypervisor, "db01", "52:54:00:77:01:07")
    try:
        said = run(capsys, "attach", "db01")
        assert (said["changed"], said["mac"]) == (False, "52:54:00:77:01:07")
        assert [(each["where"], each["action"]) for each in said["steps"]] == [
            ("config", "unchanged")
        ]
        assert said["link_local"] == "fe80::5054:ff:fe77:107"
        tried = run(capsys, "detach", "db01", "--dry-run")
        assert [each["action"] for each in tried["steps"]] == ["detached"]
        assert "not run" in refused(capsys, "attach", "db01", "--only", "live")
        other = on_network(hypervisor, "db02", "52:54:00:77:01:07")
        try:
            assert "db02" in refused(capsys, "attach", "db01")
        finally:
            other.undefine()
    finally:
        domain.undefine()


def test_a_mac_stays_that_only_the_definition_has(
    hypervisor: libvirt.virConnect, capsys: pytest.CaptureFixture[str]
) -> None:
    domain = on_network(hypervisor, "db01", "52:54:00:77:01:07")
    defined = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    plain = re.sub("<interface.*</interface>", "", defined, flags=re.DOTALL)
    try:
        hypervisor.defineXML(plain)
        domain.create()
        hypervisor.defineXML(defined)
        said = run(capsys, "attach", "db01", "--bridge", "enabler0", "--dry-run")
        assert [(each["where"], each["action"]) for each in said["steps"]] == [
            ("config", "unchanged"),
            ("live", "attached"),
        ]
        assert said["mac"] == "52:54:00:77:01:07"
        only = ("attach", "db01", "--bridge", "enabler0", "--only", "live")
        tried = run(capsys, *only, "--dry-run")
        assert tried["mac"] == "52:54:00:77:01:07"
        assert tried["mac"] in tried["steps"][0]["xml"]
        # The test driver can't. Of the definition nothing is said to have been done.
        assert "leave out --only" in refused(capsys, *only)
        assert "its definition is as it should be" in refused(capsys, *only[:4])
    finally:
        domain.destroy()
        domain.undefine()


def test_a_vm_that_goes_while_all_are_looked_at_is_no_error(hypervisor: libvirt.virConnect) -> None:
    domain = on_network(hypervisor, "db01", "52:54:00:77:01:07")
    assert len(descriptions(domain)) == 1
    domain.undefine()
    assert descriptions(domain) == []


def test_without_the_network_it_says_what_to_do(
    hypervisor: libvirt.virConnect, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "run 'enabler network'" in refused(capsys, "attach", "test")
    assert "virsh list --all" in refused(capsys, "attach", "nobody")
    tried = run(capsys, "attach", "test", "--bridge", "enabler0", "--dry-run")
    assert [each["where"] for each in tried["steps"]] == ["config", "live"]
    assert tried["vm"] == {"name": "test", "uuid": DEFAULT_VM}
    # The test driver can't; what it says is told, and what became of it.
    said = refused(capsys, "attach", "test", "--bridge", "enabler0")
    assert "its definition is not changed" in said
    assert "nothing is done" in said


def test_for_people(hypervisor: libvirt.virConnect, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["network", *URI, "--dry-run"]) == 0
    assert "network enabler0: would be defined\n" in capsys.readouterr().out
    assert cli.main(["attach", *URI, "--bridge", "enabler0", "--dry-run", "test"]) == 0
    assert "without the nwfilter vm-enabler-guest" in capsys.readouterr().out
    assert cli.main(["attach", *URI, "--vsock", "--dry-run", "test"]) == 0
    assert "the running VM: would be attached\n    <vsock" in capsys.readouterr().out
    assert cli.main(["detach", *URI, "test"]) == 0
    assert "the running VM: has none" in capsys.readouterr().out
