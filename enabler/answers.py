"""What is said of a VM: the identity document, ready as bytes, and its ETag. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from enabler.changes import Change, EventKind
from enabler.documents import (
    AllocationDocument,
    CapacityDocument,
    EventDocument,
    EventVmDocument,
    IdentityState,
    MachineDocument,
    MigrationDocument,
    ResidencyDocument,
    VmDocument,
    VmSummary,
    timestamp,
)
from enabler.events import Stay, VmFacts
from enabler.residency import Vm


@dataclass(frozen=True, slots=True)
class Answer:
    """An identity document, ready to be sent. ``etag`` stands for all of it but ``observed_at``."""

    head: bytes
    etag: str

    def body(self, observed_at: datetime) -> bytes:
        """Return the document as JSON."""
        return b'%s,"observed_at":"%s"}' % (self.head, timestamp(observed_at).encode())


def answer(
    vm: Vm, component_id: str, machine: MachineDocument, capacity: CapacityDocument
) -> Answer | None:
    """Return what is said of a VM; None if it is not resident."""
    if not vm.resident or vm.stay is None or vm.facts is None:
        return None
    state = IdentityState(
        component_id=component_id,
        machine=machine,
        capacity=capacity,
        vm=VmDocument(
            uuid=vm.facts.uuid,
            name=vm.facts.name,
            generation_id=vm.facts.generation_id,
            vcpus=vm.facts.vcpus,
            memory_bytes=vm.facts.memory_bytes,
        ),
        residency=_residency(vm.stay),
        migration=MigrationDocument(state=vm.migration),
    )
    head = state.model_dump_json().encode()
    return Answer(head[:-1], f'W/"{hashlib.sha256(head).hexdigest()[:32]}"')


def summary(vm_uuid: str, vm: Vm, known_by: tuple[str, ...]) -> VmSummary:
    """Return a VM's line in the admin's list."""
    return VmSummary(
        uuid=vm_uuid,
        name=vm.facts.name if vm.facts else None,
        place=vm.place,
        residency=_residency(vm.stay) if vm.resident and vm.stay else None,
        migration=MigrationDocument(state=vm.migration),
        allocation=_allocation(vm.facts) if vm.facts else None,
        known_by=known_by,
    )


def event(vm_uuid: str, change: Change, at: datetime) -> EventDocument:
    """Return what happened to a VM as a document."""
    known = change.vm
    gone = change.kind is EventKind.DEPARTURE
    return EventDocument(
        kind=change.kind,
        at=at,
        vm=EventVmDocument(uuid=vm_uuid, name=known.facts.name),
        residency=_residency(known.stay),
        migration=None if gone else MigrationDocument(state=known.migration),
        allocation=None if gone else _allocation(known.facts),
    )


def _allocation(facts: VmFacts) -> AllocationDocument:
    return AllocationDocument(
        generation_id=facts.generation_id, vcpus=facts.vcpus, memory_bytes=facts.memory_bytes
    )


def _residency(stay: Stay) -> ResidencyDocument:
    return ResidencyDocument(id=stay.id, since=stay.since, arrived_by=stay.arrived_by)
