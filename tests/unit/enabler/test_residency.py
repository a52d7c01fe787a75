"""Residency row by row: one stay, told by the events that libvirt was seen to send."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from enabler import residency
from enabler.events import (
    ArrivedBy,
    Changed,
    Job,
    Kind,
    Lifecycle,
    MigrationIteration,
    Presence,
    Seen,
    Stay,
    Unseen,
    VmFacts,
)
from enabler.residency import MigrationState, Place, Vm, apply, doubt, observe

UUID = "11111111-0000-4000-8000-000000000001"
HOST = "sha256:" + "a" * 64
T0 = datetime(2026, 11, 23, 2, 37, 29, tzinfo=UTC)
FACTS = VmFacts(UUID, "db01", None, 2, 2**30, frozenset({"52:54:00:00:00:01"}))


def event(kind: Kind, seconds: float = 0, arrived_by: ArrivedBy = ArrivedBy.UNKNOWN) -> Lifecycle:
    return Lifecycle(UUID, kind, T0 + timedelta(seconds=seconds), arrived_by)


def seen(vm: Vm, **changes: object) -> Seen:
    found = Seen(
        FACTS, Presence.HERE, Job.NONE, "run-1", ArrivedBy.UNKNOWN, T0 + timedelta(hours=1), vm.news
    )
    return replace(found, **changes)  # type: ignore[arg-type]  # each is a field of Seen


def settle(vm: Vm, **changes: object) -> Vm:
    return observe(vm, seen(vm, **changes), HOST)


RESIDENT = settle(Vm())


@pytest.mark.parametrize("place", Place)
@pytest.mark.parametrize("kind", Kind)
def test_no_event_makes_a_vm_resident(place: Place, kind: Kind) -> None:
    after = apply(Vm(place=place), event(kind))
    assert not after.resident or place is Place.RESIDENT


@pytest.mark.parametrize(
    ("kind", "after"),
    [
        (Kind.SUSPENDED_MIGRATED, Place.LEAVING),
        (Kind.STOPPED, Place.ABSENT),
        (Kind.STARTED, Place.DOUBTFUL),
        (Kind.STARTED_INCOMING, Place.ARRIVING),
        (Kind.SUSPENDED, Place.RESIDENT),
        (Kind.RESUMED, Place.RESIDENT),
    ],
)
def test_what_an_event_does_to_a_resident(kind: Kind, after: Place) -> None:
    assert apply(RESIDENT, event(kind)).place is after


def test_an_observation_that_news_overtook_is_worth_nothing() -> None:
    question = seen(RESIDENT)
    left = apply(RESIDENT, event(Kind.SUSPENDED_MIGRATED))
    assert observe(left, question, HOST) == left


def test_arrival_by_precopy() -> None:
    vm = apply(Vm(), event(Kind.STARTED_INCOMING))
    vm = settle(vm, presence=Presence.IN_TRANSIT, job=Job.INCOMING)
    assert vm.place is Place.ARRIVING
    vm = apply(vm, event(Kind.RESUMED_MIGRATED, 0.2, ArrivedBy.MIGRATION))
    assert not vm.resident
    vm = settle(vm)
    assert vm.resident
    assert vm.stay is not None
    assert vm.stay.arrived_by is ArrivedBy.MIGRATION
    assert vm.stay.since == T0 + timedelta(seconds=0.2)


def test_arrival_by_postcopy_is_one_stay_that_began_when_the_guest_ran() -> None:
    vm = apply(Vm(), event(Kind.STARTED_INCOMING))
    vm = apply(vm, event(Kind.RESUMED_POSTCOPY, 1, ArrivedBy.MIGRATION))
    vm = settle(vm, presence=Presence.HERE_POSTCOPY, job=Job.INCOMING)
    assert vm.resident
    assert vm.migration is MigrationState.POSTCOPY
    first = vm.stay
    vm = settle(apply(vm, event(Kind.RESUMED_MIGRATED, 2, ArrivedBy.MIGRATION)))
    assert vm.migration is MigrationState.NONE
    assert vm.stay == first
    assert first is not None
    assert first.since == T0 + timedelta(seconds=1)


def test_departure_by_precopy() -> None:
    vm = apply(RESIDENT, MigrationIteration(UUID))
    assert vm.resident
    assert vm.migration is MigrationState.OUTGOING
    vm = apply(vm, event(Kind.SUSPENDED_MIGRATED))
    assert vm.place is Place.LEAVING
    vm = settle(vm, presence=Presence.IN_TRANSIT, job=Job.OUTGOING)
    assert vm.place is Place.LEAVING
    assert apply(vm, event(Kind.STOPPED)).place is Place.ABSENT


def test_a_switch_over_that_is_taken_back_is_the_same_stay() -> None:
    vm = apply(RESIDENT, event(Kind.SUSPENDED_MIGRATED))
    vm = settle(apply(vm, event(Kind.RESUMED_MIGRATED, 1, ArrivedBy.MIGRATION)))
    assert vm.resident
    assert vm.stay == RESIDENT.stay


def test_an_aborted_migration_is_seen_by_looking() -> None:
    vm = apply(RESIDENT, MigrationIteration(UUID))
    assert vm.watched
    vm = settle(vm)
    assert vm.migration is MigrationState.NONE
    assert vm.stay == RESIDENT.stay
    assert not vm.watched


def test_there_and_back_is_another_stay() -> None:
    vm = apply(RESIDENT, event(Kind.STOPPED))
    vm = apply(vm, event(Kind.RESUMED_MIGRATED, 9, ArrivedBy.MIGRATION))
    vm = settle(vm, run="run-2")
    assert vm.stay is not None
    assert RESIDENT.stay is not None
    assert vm.stay.id != RESIDENT.stay.id
    assert vm.stay.arrived_by is ArrivedBy.MIGRATION


def test_there_and_back_with_every_event_lost_is_another_stay() -> None:
    vm = settle(doubt(RESIDENT), run="run-2")
    assert vm.stay is not None
    assert RESIDENT.stay is not None
    assert vm.stay.id != RESIDENT.stay.id


def test_lost_events_without_a_move_are_the_same_stay() -> None:
    vm = doubt(RESIDENT)
    assert not vm.resident
    assert settle(vm).stay == RESIDENT.stay


def test_a_restarted_enabler_finds_the_stay_in_the_record() -> None:
    wanted = residency.residency_id(HOST, UUID, "run-1")
    recorded = Stay(wanted, T0, ArrivedBy.MIGRATION)
    vm = settle(Vm(), facts=replace(FACTS, recorded=recorded))
    assert vm.stay == recorded


def test_another_hosts_record_is_not_believed() -> None:
    foreign = Stay("another", T0, ArrivedBy.START)
    vm = settle(Vm(), facts=replace(FACTS, recorded=foreign), arrived_by=ArrivedBy.MIGRATION)
    assert vm.stay is not None
    assert vm.stay.id != foreign.id
    assert vm.stay.arrived_by is ArrivedBy.MIGRATION


def test_without_a_record_a_started_vm_is_here_since_its_process_was() -> None:
    vm = settle(Vm(), arrived_by=ArrivedBy.START, run_began=T0)
    assert vm.stay == Stay(residency.residency_id(HOST, UUID, "run-1"), T0, ArrivedBy.START)


def test_a_vm_migrated_while_paused_arrives_without_being_resumed() -> None:
    vm = settle(
        apply(Vm(), event(Kind.STARTED_INCOMING)), presence=Presence.IN_TRANSIT, job=Job.INCOMING
    )
    vm = settle(apply(vm, event(Kind.SUSPENDED)))
    assert vm.resident
    assert vm.stay is not None
    assert vm.stay.arrived_by is ArrivedBy.MIGRATION


def test_unseen_is_absent() -> None:
    assert observe(RESIDENT, Unseen(UUID, T0, RESIDENT.news), HOST).place is Place.ABSENT


def test_other_news_is_no_move_but_due_to_be_looked_at() -> None:
    vm = apply(RESIDENT, Changed(UUID))
    assert vm.resident
    assert not vm.settled


def test_two_hosts_never_share_a_residency() -> None:
    assert residency.residency_id("sha256:x", UUID, "r") != residency.residency_id(
        "sha256:y", UUID, "r"
    )
