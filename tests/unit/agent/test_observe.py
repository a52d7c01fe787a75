"""What the watch makes of a reading: each row of its table, and that nothing is told twice."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_client.agent.model import Known
from guest_client.agent.observe import observe
from guest_client.agent.phases import Phase
from guest_client.triggers import trigger_key

from ..guest.documents import HOST_B, MIGRATED, identity

NOW = datetime(2026, 11, 23, 2, 40, tzinfo=UTC)
OUTGOING = {"migration.state": "outgoing"}


def phases(known: Known | None, changes: dict[str, object]) -> list[tuple[Phase, str]]:
    _, news = observe(known, identity(changes), NOW)
    return [(trigger.phase, trigger.reason) for trigger in news]


@pytest.mark.parametrize(
    ("changes", "news"),
    [
        ({}, []),
        (MIGRATED, [(Phase.MIGRATED, "migrated")]),
        ({"residency.id": "s2", "residency.arrived_by": "migration"},
         [(Phase.MIGRATED, "returned")]),
        ({"residency.id": "s2", "residency.arrived_by": "restore"}, []),
        ({"residency.id": "s2", "residency.arrived_by": "start"}, []),
        ({"vm.uuid": "22222222-0000-4000-8000-000000000002"}, [(Phase.CLONED, "cloned")]),
        ({"vm.generation_id": "g2"}, [(Phase.REVERTED, "reverted")]),
        ({"residency.id": "s2", "residency.arrived_by": "snapshot"},
         [(Phase.REVERTED, "reverted")]),
        ({**MIGRATED, "residency.arrived_by": "start"}, [(Phase.MIGRATED, "migrated")]),
        ({**MIGRATED, "residency.arrived_by": "restore", "vm.generation_id": "g2"},
         [(Phase.MIGRATED, "migrated")]),
        ({"vm.vcpus": 8}, []),
        ({"capacity.sockets": 4}, []),
        (OUTGOING, [(Phase.MIGRATING, "migrating")]),
        ({"migration.state": "postcopy"}, []),
        # it moved, and is on its way again
        ({**MIGRATED, **OUTGOING}, [(Phase.MIGRATED, "migrated"), (Phase.MIGRATING, "migrating")]),
    ],
)  # fmt: skip
def test_each_change_calls_its_phase(
    changes: dict[str, object], news: list[tuple[Phase, str]]
) -> None:
    assert phases(Known(identity()), changes) == news


def test_the_first_sight_is_no_news_but_that_of_a_migration_in_progress() -> None:
    assert phases(None, {}) == []
    assert phases(None, OUTGOING) == [(Phase.MIGRATING, "migrating")]


def test_a_migration_that_comes_to_nothing_is_aborted_and_the_next_is_another() -> None:
    known = Known(identity())
    keys = []
    for state in ("outgoing", "outgoing", "none", "none", "outgoing", "none"):
        known, news = observe(known, identity({"migration.state": state}), NOW)
        keys += [(trigger.phase, trigger.key) for trigger in news]
    assert [phase for phase, _ in keys] == [
        Phase.MIGRATING,
        Phase.ABORTED,
        Phase.MIGRATING,
        Phase.ABORTED,
    ]
    assert len({key for _, key in keys}) == 4


def test_a_migration_that_succeeds_is_not_aborted() -> None:
    known, _ = observe(Known(identity()), identity(OUTGOING), NOW)
    assert phases(known, MIGRATED) == [(Phase.MIGRATED, "migrated")]
    assert phases(known, {"residency.id": "s2", "residency.arrived_by": "restore"}) == []


def test_the_key_is_the_scans_and_the_documents_are_whole() -> None:
    before, after = identity(), identity(MIGRATED)
    _, (trigger,) = observe(Known(before), after, NOW)
    assert trigger.key == trigger_key(after)
    assert trigger.before == before.as_dict()
    assert trigger.after == after.as_dict()
    assert trigger.detected_at == "2026-11-23T02:40:00.000Z"
    assert "78AAAAA" in trigger.sentence
    assert "78BBBBB" in trigger.sentence
    assert "scan" not in trigger.sentence


READINGS = st.fixed_dictionaries(
    {
        "component_id": st.sampled_from(["sha256:" + "a" * 64, HOST_B]),
        "residency.id": st.sampled_from(["s1", "s2", "s3"]),
        "residency.arrived_by": st.sampled_from(["start", "migration", "restore"]),
        "vm.uuid": st.sampled_from(["v1", "v2"]),
        "vm.generation_id": st.sampled_from([None, "g1", "g2"]),
        "migration.state": st.sampled_from(["none", "outgoing", "postcopy"]),
    }
)


@given(st.lists(READINGS, max_size=12))
def test_a_reading_seen_again_is_never_news(readings: list[dict[str, object]]) -> None:
    known: Known | None = None
    for reading in readings:
        known, _ = observe(known, identity(reading), NOW)
        again, news = observe(known, identity(reading), NOW)
        assert news == ()
        assert again == known
        assert known.migrating == (reading["migration.state"] == "outgoing")
