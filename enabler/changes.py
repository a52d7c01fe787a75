"""What happened to a VM, told by what was known of it before and what libvirt says now. Pure.

Only a settled observation tells (`enabler.residency`, rule 2), so nothing is told that was taken
back a moment later, and what happened while libvirt could not be asked is told once it can be.

    known before            settled now                       told
    ----------------------  --------------------------------  ---------------------------------
    nothing                 resident                          arrival; `present` at our start
    stay S                  no such domain                    departure
    stay S                  resident, in another stay         departure, arrival
    stay S, not moving      outgoing                          migration-begun
    stay S                  switched over to another host     migration-switched-over (and begun,
                                                              if nobody saw it begin)
    S, outgoing             resident, not moving              migration-aborted
    S, switched over        resident                          migration-aborted: taken back
    S, post-copy            resident, not moving              migration-ended: all memory is here
    stay S                  another name, size, generation    vm-changed

A migration as two hosts tell it, pre-copy: A `migration-begun`, A `migration-switched-over`, B
`arrival` (by migration), A `departure`. By post-copy: B's `arrival` has the migration state
`postcopy`, and B's `migration-ended` follows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from enabler.events import Stay, VmFacts
from enabler.residency import MigrationState, Place, Vm


class EventKind(StrEnum):
    """What an event of ``GET /v1/events`` tells."""

    STATE = "state"
    """Everything as it is now: first in a stream that does not resume, and after a reset."""
    RESET = "reset"
    """What the reader named as last seen is not known (any more): it may have missed something."""
    PRESENT = "present"
    """The VM was here when the enabler began to look."""
    ARRIVAL = "arrival"
    DEPARTURE = "departure"
    MIGRATION_BEGUN = "migration-begun"
    MIGRATION_SWITCHED_OVER = "migration-switched-over"
    MIGRATION_ENDED = "migration-ended"
    MIGRATION_ABORTED = "migration-aborted"
    VM_CHANGED = "vm-changed"
    CAPACITY_CHANGED = "capacity-changed"
    """The host's capacity: processors, cores or memory were added or taken away."""
    LIBVIRT_LOST = "libvirt-lost"
    LIBVIRT_FOUND = "libvirt-found"


@dataclass(frozen=True, slots=True)
class Known:
    """What was last told of a VM."""

    stay: Stay
    facts: VmFacts
    migration: MigrationState
    switched_over: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that happened to a VM, and how it stood then."""

    kind: EventKind
    vm: Known


def changes(
    before: Known | None, vm: Vm, *, at_start: bool = False
) -> tuple[Known | None, list[Change]]:
    """Compare what was told of a VM with a settled state of it.

    Returns what is known from now on, and what to tell, in order. ``at_start``: the VM was here
    before anybody looked.
    """
    if vm.place is Place.ABSENT:
        return None, [] if before is None else [Change(EventKind.DEPARTURE, before)]
    if vm.place is Place.LEAVING:
        return (None, []) if before is None else _switched_over(before)
    if not vm.resident or vm.stay is None or vm.facts is None:
        return before, []
    now = Known(vm.stay, vm.facts, vm.migration)
    if (
        before is not None
        and before.switched_over
        and before.stay.id == now.stay.id
        and now.migration is MigrationState.OUTGOING
    ):
        return before, []  # being taken back: told when that is done
    told: list[Change] = []
    if before is not None and before.stay.id != now.stay.id:
        told.append(Change(EventKind.DEPARTURE, before))
        before = None
    if before is None:
        return now, [*told, Change(EventKind.PRESENT if at_start else EventKind.ARRIVAL, now)]
    if _described(before) != _described(now):
        told.append(Change(EventKind.VM_CHANGED, now))
    kind = _migration(before, now)
    if kind is not None:
        told.append(Change(kind, now))
    return now, told


def _switched_over(before: Known) -> tuple[Known, list[Change]]:
    if before.switched_over:
        return before, []
    begun = replace(before, migration=MigrationState.OUTGOING)
    told = []
    if before.migration is not MigrationState.OUTGOING:
        told.append(Change(EventKind.MIGRATION_BEGUN, begun))
    gone = replace(begun, migration=MigrationState.NONE, switched_over=True)
    return gone, [*told, Change(EventKind.MIGRATION_SWITCHED_OVER, gone)]


def _migration(before: Known, now: Known) -> EventKind | None:
    was, state = before.migration, now.migration
    if before.switched_over:
        return EventKind.MIGRATION_ABORTED
    if state is was:
        return None
    if state is MigrationState.OUTGOING:
        return EventKind.MIGRATION_BEGUN
    if was is MigrationState.OUTGOING:
        return EventKind.MIGRATION_ABORTED
    return EventKind.MIGRATION_ENDED if was is MigrationState.POSTCOPY else None


def _described(known: Known) -> tuple[object, ...]:
    facts = known.facts
    return facts.name, facts.vcpus, facts.memory_bytes, facts.generation_id
