"""What is told of a VM: each row of `enabler.changes`' table, and that nothing is invented."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from enabler.changes import EventKind, Known, changes
from enabler.events import ArrivedBy, Stay, VmFacts
from enabler.residency import MigrationState, Place, Vm

T0 = datetime(2026, 11, 23, tzinfo=UTC)
FACTS = VmFacts("11111111-0000-4000-8000-000000000001", "db01", None, 2, 2**30, frozenset())
HERE = Vm(Place.RESIDENT, "run-1", Stay("s1", T0, ArrivedBy.START), FACTS)
MOVING = replace(HERE, migration=MigrationState.OUTGOING)
POSTCOPY = replace(HERE, migration=MigrationState.POSTCOPY)
LEAVING = replace(HERE, place=Place.LEAVING)
BACK = replace(HERE, stay=Stay("s2", T0, ArrivedBy.MIGRATION))
LARGER = replace(HERE, facts=replace(FACTS, vcpus=4))
DOUBT = replace(HERE, place=Place.DOUBTFUL)
ARRIVING = replace(HERE, place=Place.ARRIVING)
GONE = Vm()


def told(*states: Vm) -> list[str]:
    """Tell of a VM that was here already."""
    known: Known | None = changes(None, HERE)[0]
    kinds: list[str] = []
    for state in states:
        known, news = changes(known, state)
        kinds += [str(change.kind) for change in news]
    return kinds


def test_each_row() -> None:
    assert told(HERE) == []
    assert told(GONE) == ["departure"]
    assert told(GONE, BACK) == ["departure", "arrival"]
    assert told(BACK) == ["departure", "arrival"]
    assert told(MOVING, HERE) == ["migration-begun", "migration-aborted"]
    assert told(MOVING, LEAVING, LEAVING, GONE) == [
        "migration-begun",
        "migration-switched-over",
        "departure",
    ]
    assert told(LEAVING, GONE) == ["migration-begun", "migration-switched-over", "departure"]
    assert told(MOVING, LEAVING, HERE)[-1] == "migration-aborted"
    assert told(LARGER) == ["vm-changed"]
    assert told(DOUBT, ARRIVING, HERE) == []
    assert told(GONE, POSTCOPY, HERE) == ["departure", "arrival", "migration-ended"]


def test_what_was_here_before_us_did_not_arrive() -> None:
    _, [change] = changes(None, HERE, at_start=True)
    assert change.kind is EventKind.PRESENT
    assert changes(None, LEAVING, at_start=True) == (None, [])
    assert changes(None, GONE) == (None, [])


@given(st.lists(st.sampled_from([HERE, MOVING, LEAVING, BACK, LARGER, DOUBT, ARRIVING, GONE])))
def test_stays_begin_and_end_in_turn(states: list[Vm]) -> None:
    known: Known | None = None
    here: str | None = None
    moving = False
    for state in states:
        known, news = changes(known, state)
        for change in news:
            match change.kind:
                case EventKind.ARRIVAL:
                    assert here is None
                    here = change.vm.stay.id
                    moving = change.vm.migration is MigrationState.OUTGOING
                case EventKind.DEPARTURE:
                    assert here == change.vm.stay.id
                    here = None
                case EventKind.MIGRATION_BEGUN:
                    assert here is not None
                    assert not moving
                    moving = True
                case EventKind.MIGRATION_SWITCHED_OVER:
                    assert moving
                case EventKind.MIGRATION_ABORTED:
                    assert moving
                    moving = False
        if state.resident:
            assert state.stay is not None
            assert here == state.stay.id
        elif state.place is Place.ABSENT:
            assert here is None
