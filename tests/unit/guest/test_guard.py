from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from guest_client.guard import (
    Aspect,
    Guard,
    GuardMisused,
    Missing,
    Outcome,
    Phase,
    Reading,
    Reason,
    Verdict,
    judge,
)
from guest_client.identity import Identity

from .documents import HOST_B, MIGRATED, identity

OTHER_GENERATION = {"vm.generation_id": "99999999-0000-4000-8000-000000000009"}


@pytest.mark.parametrize(
    ("changes", "reason", "aspects"),
    [
        (MIGRATED, Reason.MIGRATED, {Aspect.HOST, Aspect.RESIDENCY}),
        # A host that another residency does not go with is a change all the same.
        ({"component_id": HOST_B}, Reason.MIGRATED, {Aspect.HOST}),
        (
            {"residency.id": "stay-3", "residency.arrived_by": "migration"},
            Reason.RETURNED,
            {Aspect.RESIDENCY},
        ),
        *(
            (
                {"residency.id": "stay-3", "residency.arrived_by": how},
                Reason.RESTORED,
                {Aspect.RESIDENCY},
            )
            for how in ("restore", "start", "unknown")
        ),
        (
            {"residency.id": "stay-3", "residency.arrived_by": "snapshot"},
            Reason.REVERTED,
            {Aspect.RESIDENCY},
        ),
        # libvirt gives a restored VM a new generation: no news beside the restore itself.
        (
            OTHER_GENERATION | {"residency.id": "stay-3", "residency.arrived_by": "restore"},
            Reason.RESTORED,
            {Aspect.GENERATION, Aspect.RESIDENCY},
        ),
        (
            MIGRATED | OTHER_GENERATION | {"residency.arrived_by": "restore"},
            Reason.MIGRATED,
            {Aspect.GENERATION, Aspect.HOST, Aspect.RESIDENCY},
        ),
        (OTHER_GENERATION, Reason.REVERTED, {Aspect.GENERATION}),
        ({"vm.uuid": "2222"}, Reason.CLONED, {Aspect.VM}),
        ({"capacity.sockets": 1}, Reason.RESIZED, {Aspect.CAPACITY}),
        ({"capacity.cpu_model": None}, Reason.RESIZED, {Aspect.CAPACITY}),
        ({"capacity.threads_per_core": 4}, Reason.RESIZED, {Aspect.CAPACITY}),
        ({"vm.vcpus": 5}, Reason.RESIZED, {Aspect.ALLOCATION}),
        ({"vm.memory_bytes": 1 << 30}, Reason.RESIZED, {Aspect.ALLOCATION}),
        # Several at once: the weightiest is the reason, all are kept.
        (
            MIGRATED | {"vm.vcpus": 5, "capacity.sockets": 4},
            Reason.MIGRATED,
            {Aspect.HOST, Aspect.RESIDENCY, Aspect.CAPACITY, Aspect.ALLOCATION},
        ),
        (
            MIGRATED | OTHER_GENERATION,
            Reason.REVERTED,
            {Aspect.GENERATION, Aspect.HOST, Aspect.RESIDENCY},
        ),
        (
            MIGRATED | OTHER_GENERATION | {"vm.uuid": "2222"},
            Reason.CLONED,
            {Aspect.VM, Aspect.GENERATION, Aspect.HOST, Aspect.RESIDENCY},
        ),
        # A generation ID that appears: suspicious within a stay, no news across two.
        ({"vm.generation_id": None}, Reason.REVERTED, {Aspect.GENERATION}),
        (MIGRATED | {"vm.generation_id": None}, Reason.MIGRATED, {Aspect.HOST, Aspect.RESIDENCY}),
    ],
)
def test_each_change_has_its_reason(
    changes: dict[str, Any], reason: Reason, aspects: set[Aspect]
) -> None:
    verdict = judge(identity(), identity(changes))
    assert verdict.outcome is Outcome.INCONSISTENT
    assert verdict.reason == reason
    assert set(verdict.changes) == aspects
    assert verdict.sentence
    if "vm.generation_id" in changes and changes["vm.generation_id"] is None:
        mirrored = judge(identity(changes), identity())
        assert set(mirrored.changes) == aspects


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"observed_at": "2027-01-01T00:00:00.000Z"},
        {"vm.name": "renamed"},
        {"residency.since": "2026-11-23T02:37:29.305Z"},
        {"machine.manufacturer": "ibm"},
    ],
)
def test_what_is_no_change_leaves_a_scan_consistent(changes: dict[str, Any]) -> None:
    verdict = judge(identity(), identity(changes))
    assert verdict == Verdict(
        Outcome.CONSISTENT,
        None,
        (),
        "the machine was the same before and after the scan",
        migrating=False,
    )


@pytest.mark.parametrize("state", ["outgoing", "postcopy"])
def test_a_migration_in_progress_is_told_and_changes_nothing(state: str) -> None:
    for readings in (
        (identity(), identity({"migration.state": state})),
        (identity({"migration.state": state}), identity()),
    ):
        verdict = judge(*readings)
        assert verdict.consistent
        assert verdict.migrating
        assert "in progress" in verdict.sentence


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, None),
        (None, identity()),
        (identity(), None),
        (identity(), Missing()),
    ],
)
def test_without_two_trusted_readings_nothing_is_verified(
    before: Identity | None, after: Reading | None
) -> None:
    verdict = judge(before, after)
    assert verdict.outcome is Outcome.UNVERIFIED
    assert verdict.reason == "no-answer"


def test_the_missing_answer_gives_its_reason() -> None:
    verdict = judge(identity(), Missing("refused", "the enabler refuses"))
    assert verdict.reason == "refused"
    assert "the enabler refuses" in verdict.sentence
    assert "after" in verdict.sentence


def test_a_verdict_is_reported_in_plain_words() -> None:
    assert judge(identity(), identity(MIGRATED)).as_dict() == {
        "outcome": "inconsistent",
        "reason": "migrated",
        "changes": ["host", "residency"],
        "sentence": "the VM moved to another host inside the scan:"
        " IBM 9040-MR9 78AAAAA, then IBM 9040-MR9 78BBBBB",
        "migration_in_progress": False,
    }


# Properties. Few values for each member, so that equal and unequal pairs both come up often.

_identities = st.builds(
    lambda **members: identity({name.replace("__", "."): value for name, value in members.items()}),
    component_id=st.sampled_from(["sha256:" + c * 64 for c in "ab"]),
    vm__uuid=st.sampled_from(["1111", "2222"]),
    vm__generation_id=st.sampled_from([None, "g1", "g2"]),
    vm__vcpus=st.sampled_from([1, 2]),
    vm__memory_bytes=st.sampled_from([1, 2]),
    vm__name=st.sampled_from(["x", "y"]),
    residency__id=st.sampled_from(["r1", "r2"]),
    residency__arrived_by=st.sampled_from(["start", "migration", "restore", "snapshot", "unknown"]),
    capacity__sockets=st.sampled_from([1, 2]),
    capacity__cpu_model=st.sampled_from([None, "m"]),
    migration__state=st.sampled_from(["none", "outgoing", "postcopy"]),
    observed_at=st.sampled_from(["2026-11-23T02:40:00.120Z", "2026-11-24T02:40:00.120Z"]),
)
_readings = _identities | st.builds(Missing, st.sampled_from(["no-answer", "refused"]))


def _same_machine(a: Identity, b: Identity) -> bool:
    """The rule in its own words, apart from the code under test."""
    return (
        (a.vm.uuid, a.vm.generation_id, a.component_id, a.residency.id)
        == (b.vm.uuid, b.vm.generation_id, b.component_id, b.residency.id)
        and a.capacity == b.capacity
        and a.vm.vcpus == b.vm.vcpus
        and a.vm.memory_bytes == b.vm.memory_bytes
    )


@given(_readings, _readings)
def test_consistent_means_the_same_machine_and_nothing_else_does(a: Reading, b: Reading) -> None:
    verdict = judge(a, b)
    if isinstance(a, Missing) or isinstance(b, Missing):
        assert verdict.outcome is Outcome.UNVERIFIED
        return
    assert verdict.consistent == _same_machine(a, b)
    assert verdict.inconsistent == (not verdict.consistent)
    assert bool(verdict.changes) == verdict.inconsistent
    assert verdict.migrating == (a.migrating or b.migrating)


@given(_identities, _identities)
def test_the_reason_hangs_on_the_weightiest_change(a: Identity, b: Identity) -> None:
    verdict = judge(a, b)
    assert list(verdict.changes) == sorted(verdict.changes, key=list(Aspect).index)
    if verdict.reason == Reason.MIGRATED:
        assert a.component_id != b.component_id
        assert a.vm.uuid == b.vm.uuid
    if verdict.reason == Reason.RETURNED:
        assert a.component_id == b.component_id


@given(_identities, _identities)
def test_which_came_first_does_not_matter_to_what_changed(a: Identity, b: Identity) -> None:
    assert judge(a, b).changes == judge(b, a).changes


class DrivenGuard(RuleBasedStateMachine):
    """Any order of calls: only the table's are obeyed, and the verdict is always the table's."""

    def __init__(self) -> None:
        super().__init__()
        self.guard = Guard()
        self.expected = Phase.WAITING
        self.first: Reading | None = None

    @rule(reading=_readings)
    def before(self, reading: Reading) -> None:
        if self.expected is not Phase.WAITING:
            with pytest.raises(GuardMisused):
                self.guard.before(reading)
            return
        self.first = reading
        verdict = self.guard.before(reading)
        if isinstance(reading, Missing):
            assert verdict is not None
            assert verdict.outcome is Outcome.UNVERIFIED
            self.expected = Phase.JUDGED
        else:
            assert verdict is None
            self.expected = Phase.ARMED

    @rule(reading=_readings)
    def after(self, reading: Reading) -> None:
        if self.expected is not Phase.ARMED:
            with pytest.raises(GuardMisused):
                self.guard.after(reading)
            return
        verdict = self.guard.after(reading)
        same = (
            isinstance(self.first, Identity)
            and isinstance(reading, Identity)
            and _same_machine(self.first, reading)
        )
        assert verdict.consistent == same
        self.expected = Phase.JUDGED

    @rule()
    def following(self) -> None:
        if self.expected is not Phase.JUDGED:
            with pytest.raises(GuardMisused):
                self.guard.following()
            return
        last = self.guard.after_reading
        self.guard = self.guard.following()
        self.first = last if isinstance(last, Identity) else None
        self.expected = Phase.WAITING if self.first is None else Phase.ARMED

    @invariant()
    def it_is_in_the_phase_of_the_table(self) -> None:
        assert self.guard.phase is self.expected
        assert (self.guard.verdict is not None) == (self.expected is Phase.JUDGED)
        assert self.guard.before_reading == self.first


TestDrivenGuard = DrivenGuard.TestCase
