"""Residency: what the hypervisor tells in, where the VM is out. Pure: no I/O, no clock, no libvirt.

The rules of this file, from which the rest follows:

1. **An event takes residency away at once; only an observation gives it.** An event may be late,
   doubled or from a run of the VM that is long over, so "it runs here now" is believed only from
   libvirt's answer to a question. "It is leaving" is believed from anybody.
2. **An observation that news overtook is worth nothing.** Each piece of news about a VM is counted;
   an observation carries the count at which its question was asked. When that count is no longer
   the current one, the question is put again.
3. **The residency ID is derived, not remembered**: from the host, the VM and the run (the
   hypervisor's process). So it survives a restart of the enabler and of libvirtd, and no arrival,
   A to B to A included, can have an old one.
4. **Silence is doubt.** When the connection breaks, every VM is in doubt until it is observed
   again.

States are `Place`s; `_AFTER` is the table of what an event does to them. What an observation does
is `_observe`.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from enum import StrEnum

from enabler.events import (
    ArrivedBy,
    Changed,
    Event,
    Job,
    Kind,
    Lifecycle,
    MigrationIteration,
    Observation,
    Presence,
    Seen,
    Stay,
    Unseen,
    VmFacts,
)

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:vm-enabler:residency")


class Place(StrEnum):
    """Where a VM is, as seen from this host."""

    ABSENT = "absent"
    ARRIVING = "arriving"
    """The domain exists here, the guest still runs elsewhere."""
    RESIDENT = "resident"
    LEAVING = "leaving"
    """Switched over to another host; the domain is still listed here."""
    DOUBTFUL = "doubtful"
    """Something happened that only an observation can settle."""


class MigrationState(StrEnum):
    """The contract's ``migration.state``."""

    NONE = "none"
    OUTGOING = "outgoing"
    POSTCOPY = "postcopy"


@dataclass(frozen=True, slots=True)
class Vm:
    """One VM's state on one host.

    ``stay``, ``facts`` are the last known; they count only when `resident`.
    """

    place: Place = Place.ABSENT
    run: str | None = None
    stay: Stay | None = None
    facts: VmFacts | None = None
    migration: MigrationState = MigrationState.NONE
    news: int = 0
    observed: int = -1
    """The count of news at the last observation that was believed."""
    arrival: Lifecycle | None = None
    """The last event that told how and when the current run came to run here."""

    @property
    def resident(self) -> bool:
        """True only if the VM lives here, as far as all news and observations until now go."""
        return self.place is Place.RESIDENT

    @property
    def settled(self) -> bool:
        """False if an observation is due: there was news since the last one."""
        return self.observed == self.news

    @property
    def watched(self) -> bool:
        """True while the VM's next step may come without an event.

        An aborted migration sends none to its source, a failed one none to its destination.
        """
        return self.migration is not MigrationState.NONE or self.place in (
            Place.ARRIVING,
            Place.LEAVING,
            Place.DOUBTFUL,
        )


def residency_id(component_id: str, vm_uuid: str, run: str) -> str:
    """Return the ID of the stay that ``run`` of the VM is on the host ``component_id``.

    What it means: two equal IDs are one unbroken stay; the program that reads them ran on one
    machine between the two reads. What changes it: every arrival by live migration (back to a
    former host too), save and restore, a snapshot revert, power-off and start. What doesn't: pause
    and resume, a reboot of the guest, restarts of the enabler or of libvirtd, a migration that is
    aborted. It is not a secret and not a credential.
    """
    return str(uuid.uuid5(_NAMESPACE, f"{component_id} {vm_uuid} {run}"))


_STAYS = {place: place for place in Place}
_IN_DOUBT = dict.fromkeys(Place, Place.DOUBTFUL)

_AFTER: dict[Kind, dict[Place, Place]] = {
    Kind.STARTED: _IN_DOUBT,
    Kind.STARTED_INCOMING: dict.fromkeys(Place, Place.ARRIVING),
    # Whoever is resident and resumes is still resident; for anybody else it must be looked at.
    Kind.RESUMED: _IN_DOUBT | {Place.RESIDENT: Place.RESIDENT},
    Kind.RESUMED_MIGRATED: _IN_DOUBT | {Place.RESIDENT: Place.RESIDENT},
    Kind.RESUMED_POSTCOPY: _IN_DOUBT | {Place.RESIDENT: Place.RESIDENT},
    Kind.SUSPENDED: _STAYS,
    Kind.SUSPENDED_MIGRATED: dict.fromkeys(Place, Place.LEAVING)
    | {Place.ABSENT: Place.ABSENT, Place.ARRIVING: Place.ARRIVING},
    Kind.STOPPED: dict.fromkeys(Place, Place.ABSENT),
}


def _tells_arrival(vm: Vm, kind: Kind) -> bool:
    if kind in (Kind.RESUMED_MIGRATED, Kind.RESUMED_POSTCOPY):
        # A resident's is the second of two (post-copy sends both): the first was the arrival.
        return not vm.resident
    return kind is Kind.STARTED


def apply(vm: Vm, event: Event) -> Vm:
    """Return the VM's state after an event. It never makes a VM resident (rule 1)."""
    vm = replace(vm, news=vm.news + 1)
    match event:
        case Lifecycle(kind=kind):
            if kind is Kind.STOPPED:
                return Vm(news=vm.news)
            place = _AFTER[kind][vm.place]
            arrival = event if _tells_arrival(vm, kind) else vm.arrival
            if place is not Place.RESIDENT:
                return replace(vm, place=place, arrival=arrival, migration=MigrationState.NONE)
            return replace(vm, arrival=arrival)
        case MigrationIteration():
            # Late news of a VM that has left, or an early one of a VM not yet looked at, prove
            # nothing.
            return replace(vm, migration=MigrationState.OUTGOING) if vm.resident else vm
        case Changed():
            return vm


def doubt(vm: Vm) -> Vm:
    """Return the VM's state after events may have been lost (rule 4)."""
    place = Place.ABSENT if vm.place is Place.ABSENT else Place.DOUBTFUL
    return replace(vm, place=place, news=vm.news + 1)


def observe(vm: Vm, seen: Observation, component_id: str) -> Vm:
    """Return the VM's state after an observation; unchanged if news overtook it (rule 2)."""
    if seen.news != vm.news:
        return vm
    if isinstance(seen, Unseen):
        return Vm(news=vm.news, observed=vm.news)
    return _observe(vm, seen, component_id)


def _observe(vm: Vm, seen: Seen, component_id: str) -> Vm:
    if seen.presence is Presence.IN_TRANSIT:
        arriving = seen.job is Job.INCOMING or (
            seen.job is not Job.OUTGOING and vm.place is not Place.LEAVING and vm.run != seen.run
        )
        return replace(
            vm,
            place=Place.ARRIVING if arriving else Place.LEAVING,
            facts=seen.facts,
            migration=MigrationState.NONE,
            observed=vm.news,
        )
    migration = MigrationState.NONE
    if seen.presence is Presence.HERE_POSTCOPY:
        migration = MigrationState.POSTCOPY
    elif seen.job is Job.OUTGOING:
        migration = MigrationState.OUTGOING
    stay = vm.stay
    wanted = residency_id(component_id, seen.facts.uuid, seen.run)
    if stay is None or stay.id != wanted:
        stay = _new_stay(wanted, vm, seen)
    return replace(
        vm,
        place=Place.RESIDENT,
        run=seen.run,
        stay=stay,
        facts=seen.facts,
        migration=migration,
        arrival=None,
        observed=vm.news,
    )


def _new_stay(wanted: str, vm: Vm, seen: Seen) -> Stay:
    recorded = seen.facts.recorded
    if recorded is not None and recorded.id == wanted:
        return recorded
    if vm.arrival is not None:
        return Stay(wanted, vm.arrival.at, vm.arrival.arrived_by)
    if vm.place is Place.ARRIVING:  # migrated while paused: it is never resumed
        return Stay(wanted, seen.at, ArrivedBy.MIGRATION)
    if seen.arrived_by is ArrivedBy.START and seen.run_began is not None:
        return Stay(wanted, seen.run_began, ArrivedBy.START)
    return Stay(wanted, seen.at, seen.arrived_by)
