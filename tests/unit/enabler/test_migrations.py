"""Migrations are counted once each, whichever way they are seen, and have a line each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from enabler.changes import Known, changes
from enabler.events import ArrivedBy, Stay
from enabler.migrations import Migrations
from enabler.residency import MigrationState, Vm
from tests.unit.enabler.test_changes import (
    ARRIVING,
    BACK,
    DOUBT,
    FACTS,
    GONE,
    HERE,
    LEAVING,
    MOVING,
    T0,
)

SEEN, EVENT = True, False
POSTCOPY_IN = replace(BACK, migration=MigrationState.POSTCOPY)
RESTORED = replace(HERE, stay=Stay("s3", T0, ArrivedBy.RESTORE))


def counted(*news: tuple[bool, Vm], here: bool = True) -> list[str]:
    """What is counted of a VM: states by an event, which is not settled, and by an observation."""
    migrations = Migrations()
    known: Known | None = changes(None, HERE)[0] if here else None
    for seen, vm in news:
        migrations.changed("vm", vm)
        if seen:
            known, told = changes(known, vm)
            migrations.tell("vm", told, vm, datetime.now(UTC))
    return list(migrations.counts.elements())


@pytest.mark.parametrize(
    ("news", "here", "kinds"),
    [
        ([(SEEN, MOVING), (SEEN, LEAVING), (SEEN, GONE)], True, ["outgoing"]),
        ([(SEEN, LEAVING), (SEEN, GONE)], True, ["outgoing"]),
        # Too fast for libvirt to be asked in between: the event alone told of the switch-over.
        ([(EVENT, LEAVING), (EVENT, DOUBT), (SEEN, GONE)], True, ["outgoing"]),
        ([(SEEN, MOVING), (EVENT, LEAVING), (EVENT, GONE), (SEEN, GONE)], True, ["outgoing"]),
        # Switched off, or killed while it was being moved.
        ([(SEEN, GONE)], True, []),
        ([(SEEN, MOVING), (SEEN, GONE)], True, []),
        ([(SEEN, MOVING), (SEEN, HERE)], True, ["aborted"]),
        ([(EVENT, LEAVING), (SEEN, HERE), (SEEN, GONE)], True, []),
        ([(EVENT, ARRIVING), (EVENT, DOUBT), (SEEN, BACK)], False, ["incoming"]),
        ([(SEEN, POSTCOPY_IN), (SEEN, BACK)], False, ["incoming-postcopy"]),
        ([(EVENT, ARRIVING), (SEEN, GONE)], False, []),
        ([(SEEN, RESTORED)], False, []),
    ],
)
def test_each_is_counted_once(
    news: Sequence[tuple[bool, Vm]], here: bool, kinds: list[str]
) -> None:
    assert counted(*news, here=here) == kinds


def test_the_line(caplog: pytest.LogCaptureFixture) -> None:
    migrations = Migrations()
    from_there = replace(BACK, facts=replace(FACTS, recorded=HERE.stay))
    with caplog.at_level(logging.INFO):
        migrations.changed("vm", ARRIVING)
        _, told = changes(None, from_there)
        migrations.tell("vm", told, from_there, datetime.now(UTC))
    [line] = caplog.records
    fields = vars(line)["fields"]
    assert fields["seconds"] >= 0
    del fields["seconds"]
    assert fields == {
        "vm": "vm",
        "name": "db01",
        "migration": "incoming",
        "residency": "s2",
        "from_residency": "s1",
    }
    assert line.message.startswith("VM vm (db01) migrated here: residency s2, from s1, after ")
