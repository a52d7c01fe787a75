"""What happens to domains, as the API tells it; through the real libvirt-python."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import libvirt

from tests.api.running import DEFAULT_VM, Enabler, eventually

MANY = 500


def domain_xml(name: str, vm_uuid: str, mac: str = "52:54:00:00:00:01") -> str:
    return f"""
    <domain type='test'>
      <name>{name}</name>
      <uuid>{vm_uuid}</uuid>
      <genid>2354aaaa-0000-4000-8000-000000000001</genid>
      <memory unit='MiB'>256</memory>
      <vcpu current='2'>4</vcpu>
      <os><type>hvm</type></os>
      <devices><interface type='network'>
        <mac address='{mac}'/><source network='default'/>
      </interface></devices>
    </domain>"""


def next_residency(enabler: Enabler, before: dict[str, Any]) -> dict[str, Any]:
    """Wait for another stay. The test driver's domains are no processes, so that a stay is over
    shows in libvirt's event alone, which is on its way."""
    found: list[dict[str, Any]] = []

    def another() -> bool:
        answer = enabler.get(f"/v1/vms/{DEFAULT_VM}/identity")
        if answer.status_code == 200 and answer.json()["residency"]["id"] != before["id"]:
            found.append(answer.json()["residency"])
        return bool(found)

    eventually(another)
    return found[0]


def test_pause_and_resume_are_the_same_stay(
    enabler: Enabler, hypervisor: libvirt.virConnect
) -> None:
    before = enabler.identity()["residency"]
    domain = hypervisor.lookupByUUIDString(DEFAULT_VM)
    domain.suspend()
    assert enabler.identity()["residency"] == before
    domain.resume()
    assert enabler.identity()["residency"] == before


def test_reboot_is_the_same_stay(enabler: Enabler, hypervisor: libvirt.virConnect) -> None:
    before = enabler.identity()["residency"]
    hypervisor.lookupByUUIDString(DEFAULT_VM).reboot()
    assert enabler.identity()["residency"] == before


def test_a_destroyed_vm_is_not_here(enabler: Enabler, hypervisor: libvirt.virConnect) -> None:
    hypervisor.lookupByUUIDString(DEFAULT_VM).destroy()
    eventually(lambda: enabler.get("/v1/vms").json() == {"vms": []})
    assert enabler.get(f"/v1/vms/{DEFAULT_VM}/identity").status_code == 404


def test_off_and_on_is_another_stay(enabler: Enabler, hypervisor: libvirt.virConnect) -> None:
    before = enabler.identity()["residency"]
    domain = hypervisor.lookupByUUIDString(DEFAULT_VM)
    domain.destroy()
    domain.create()
    after = next_residency(enabler, before)
    assert after["since"] > before["since"]
    assert after["arrived_by"] == "start"


def test_saved_and_restored_is_another_stay(
    enabler: Enabler, hypervisor: libvirt.virConnect, tmp_path: Path
) -> None:
    before = enabler.identity()["residency"]
    image = str(tmp_path / "saved")
    hypervisor.lookupByUUIDString(DEFAULT_VM).save(image)
    hypervisor.restore(image)
    after = next_residency(enabler, before)
    assert after["arrived_by"] == "restore"


def test_a_new_domain_is_known_at_once(enabler: Enabler, hypervisor: libvirt.virConnect) -> None:
    vm_uuid = str(uuid.uuid4())
    domain = hypervisor.createXML(domain_xml("new", vm_uuid))
    identity = enabler.identity(vm_uuid)
    assert identity["vm"] == {
        "uuid": vm_uuid,
        "name": "new",
        "generation_id": "2354aaaa-0000-4000-8000-000000000001",
        "vcpus": 2,
        "memory_bytes": 256 * 2**20,
    }
    domain.destroy()
    eventually(lambda: enabler.get(f"/v1/vms/{vm_uuid}/identity").status_code == 404)


def test_a_defined_domain_that_does_not_run_is_not_here(
    enabler: Enabler, hypervisor: libvirt.virConnect
) -> None:
    vm_uuid = str(uuid.uuid4())
    domain = hypervisor.defineXML(domain_xml("defined", vm_uuid))
    assert enabler.get(f"/v1/vms/{vm_uuid}/identity").status_code == 404
    domain.undefine()
    assert enabler.get(f"/v1/vms/{vm_uuid}/identity").status_code == 404


def test_a_restarted_enabler_knows_what_it_knew(
    hypervisor: libvirt.virConnect, tmp_path: Path
) -> None:
    hypervisor.lookupByUUIDString(DEFAULT_VM).destroy()
    running = Enabler(tmp_path)
    domain = hypervisor.lookupByUUIDString(DEFAULT_VM)
    with running.running():
        domain.create()
        before = running.identity()["residency"]
        eventually(lambda: before["id"] in domain.XMLDesc())
    with running.running():
        assert running.identity()["residency"] == before
    assert before["arrived_by"] == "start"


def test_a_crowd(enabler: Enabler, hypervisor: libvirt.virConnect) -> None:
    crowd = [str(uuid.uuid4()) for _ in range(MANY)]
    for number, vm_uuid in enumerate(crowd):
        mac = f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}"
        hypervisor.createXML(domain_xml(f"vm{number}", vm_uuid, mac))

    def resident() -> set[str]:
        listed = enabler.get("/v1/vms").json()["vms"]
        return {vm["uuid"] for vm in listed if vm["place"] == "resident"}

    eventually(lambda: resident() == {DEFAULT_VM, *crowd})
    residencies = {enabler.identity(vm_uuid)["residency"]["id"] for vm_uuid in crowd}
    assert len(residencies) == MANY
