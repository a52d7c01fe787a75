"""The planner of modular scans: each row of its table, and what may never happen."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from guest_client.guard import Aspect, GuardMisused, Missing, Outcome, Reading, Reason
from guest_client.identity import Identity
from guest_client.modules import Again, End, Module, ModuleSet, Publish, Run, Step, Turn

from .documents import MIGRATED, identity

DEPENDENT = Module("hardware")
INDEPENDENT = Module("packages", host_dependent=False)
LAST = Module("last", host_dependent=False)

HERE = identity()
THERE = identity(MIGRATED)
BACK = {"residency.id": "stay-3", "residency.arrived_by": "migration"}
NO_GENERATION = {"vm.generation_id": None}


def _restored(by: str = "restore", **more: Any) -> dict[str, Any]:
    return {"residency.id": "stay-3", "residency.arrived_by": by} | more


# What each change makes untrue.


@pytest.mark.parametrize(
    ("before", "after", "reason", "dependent", "independent"),
    [
        ({}, MIGRATED, Reason.MIGRATED, Again.MACHINE_CHANGED, None),
        ({}, BACK, Reason.RETURNED, Again.MACHINE_CHANGED, None),
        ({}, MIGRATED | NO_GENERATION, Reason.MIGRATED, Again.MACHINE_CHANGED, None),
        (NO_GENERATION, MIGRATED, Reason.MIGRATED, Again.MACHINE_CHANGED, None),
        (NO_GENERATION, BACK | NO_GENERATION, Reason.RETURNED, Again.MACHINE_CHANGED, None),
        ({}, {"capacity.sockets": 1}, Reason.RESIZED, Again.MACHINE_CHANGED, None),
        ({}, {"vm.vcpus": 5}, Reason.RESIZED, Again.MACHINE_CHANGED, None),
        *(
            ({}, _restored(by), Reason.RESTORED, Again.MACHINE_CHANGED, None)
            for by in ("restore", "start", "unknown")
        ),
        # The past, or what may be the past.
        ({}, _restored("snapshot"), Reason.REVERTED, Again.VM_CHANGED, Again.VM_CHANGED),
        *(
            (before, _restored(by) | after, Reason.RESTORED, Again.VM_CHANGED, Again.VM_CHANGED)
            for by in ("restore", "start", "unknown")
            for before, after in (
                (NO_GENERATION, NO_GENERATION),
                ({}, NO_GENERATION),
                (NO_GENERATION, {}),
            )
        ),
        (
            {},
            _restored() | {"vm.generation_id": "g9"},
            Reason.RESTORED,
            Again.VM_CHANGED,
            Again.VM_CHANGED,
        ),
        (
            NO_GENERATION,
            MIGRATED | _restored() | NO_GENERATION,
            Reason.MIGRATED,
            Again.VM_CHANGED,
            Again.VM_CHANGED,
        ),
        ({}, {"vm.generation_id": "g9"}, Reason.REVERTED, Again.VM_CHANGED, Again.VM_CHANGED),
        ({}, NO_GENERATION, Reason.REVERTED, Again.VM_CHANGED, Again.VM_CHANGED),
        (
            {},
            MIGRATED | {"vm.generation_id": "g9"},
            Reason.REVERTED,
            Again.VM_CHANGED,
            Again.VM_CHANGED,
        ),
        ({}, {"vm.uuid": "2222"}, Reason.CLONED, Again.VM_CHANGED, Again.VM_CHANGED),
    ],
)
def test_each_row_of_the_table(
    before: dict[str, Any],
    after: dict[str, Any],
    reason: Reason,
    dependent: Again,
    independent: Again | None,
) -> None:
    modules = ModuleSet([DEPENDENT, INDEPENDENT, LAST], repeat=1)
    modules.first(identity(before))
    modules.ran(identity(before))
    modules.ran(identity(before))
    turn = modules.ran(identity(after))
    assert turn.verdict is not None
    assert turn.verdict.reason == reason
    expected = {DEPENDENT: dependent, INDEPENDENT: independent, LAST: Again.CROSSED}
    assert {undone.module: undone.why for undone in turn.undone} == {
        module: why for module, why in expected.items() if why is not None
    }
    assert modules.standing == ((INDEPENDENT,) if independent is None else ())
    assert turn.step == Run(DEPENDENT, dependent)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vm.name": "renamed"},
        {"migration.state": "outgoing"},
        {"residency.since": "2026-11-24T02:37:29.304Z"},
    ],
)
def test_what_is_no_change_makes_nothing_untrue(changes: dict[str, Any]) -> None:
    modules = ModuleSet([DEPENDENT, INDEPENDENT])
    modules.first(HERE)
    turn = modules.ran(identity(changes))
    assert turn.undone == ()
    assert turn.step == Run(INDEPENDENT, None)


def test_five_modules_crossed_in_the_fourth() -> None:
    names = [
        ("cpu", True),
        ("packages", False),
        ("disks", True),
        ("processes", False),
        ("pci", True),
    ]
    modules = ModuleSet([Module(*name) for name in names], repeat=1)
    ran: list[tuple[str, str | None]] = []
    turn = modules.first(HERE)
    while isinstance(turn.step, Run):
        ran.append((turn.step.module.name, turn.step.because))
        turn = modules.ran(HERE if len(ran) < 4 else THERE)
    assert ran == [
        ("cpu", None),
        ("packages", None),
        ("disks", None),
        ("processes", None),
        ("cpu", "machine-changed"),
        ("disks", "machine-changed"),
        ("processes", "crossed"),
        ("pci", None),
    ]
    assert isinstance(turn.step, Publish)
    assert turn.step.identity == THERE


@pytest.mark.parametrize("count", [1, 2, 7])
def test_quiet_modules_cost_one_reading_more_than_there_are(count: int) -> None:
    modules = ModuleSet([Module(f"m{n}", n % 2 == 0) for n in range(count)])
    turn, readings = modules.first(HERE), 1
    while isinstance(turn.step, Run):
        turn, readings = modules.ran(HERE), readings + 1
    assert isinstance(turn.step, Publish)
    assert turn.step.verdict.consistent
    assert readings == count + 1


def test_without_repeats_a_crossed_module_ends_the_set() -> None:
    modules = ModuleSet([DEPENDENT, INDEPENDENT])
    modules.first(HERE)
    turn = modules.ran(THERE)
    assert isinstance(turn.step, End)
    assert turn.step.verdict.reason is Reason.MIGRATED


def test_a_repeat_is_spent_by_what_makes_something_untrue_alone() -> None:
    modules = ModuleSet([INDEPENDENT, DEPENDENT], repeat=1)
    modules.first(HERE)
    modules.ran(HERE)
    turn = modules.looked(THERE)
    assert turn.verdict is not None
    assert turn.verdict.reason is Reason.MIGRATED
    assert turn.undone == ()
    assert modules.repeats_left == 1
    assert turn.step == Run(DEPENDENT, None)
    assert modules.ran(identity(BACK)).step == Run(DEPENDENT, Again.CROSSED)
    assert modules.repeats_left == 0
    assert isinstance(modules.ran(identity(BACK)).step, Publish)


def test_a_change_seen_while_nothing_ran_undoes_what_it_made_untrue() -> None:
    modules = ModuleSet([DEPENDENT, INDEPENDENT], repeat=1)
    modules.first(HERE)
    modules.ran(HERE)
    turn = modules.looked(THERE)
    assert [undone.why for undone in turn.undone] == [Again.MACHINE_CHANGED]
    assert turn.step == Run(DEPENDENT, Again.MACHINE_CHANGED)


def test_another_generation_after_hosts_that_tell_none_is_a_revert() -> None:
    modules = ModuleSet([INDEPENDENT, LAST], repeat=9)
    modules.first(identity(MIGRATED | NO_GENERATION))
    modules.ran(identity(MIGRATED | NO_GENERATION))
    for stay, generation in enumerate([None, "g1", None, None]):
        moved = {"residency.id": f"s{stay}", "vm.generation_id": generation}
        assert modules.looked(identity(MIGRATED | moved)).undone == ()
    turn = modules.looked(identity(MIGRATED | {"residency.id": "s9", "vm.generation_id": "g2"}))
    assert [undone.why for undone in turn.undone] == [Again.VM_CHANGED]


@pytest.mark.parametrize("when", ["first", "ran", "looked"])
def test_no_trusted_answer_ends_the_set(when: str) -> None:
    modules = ModuleSet([DEPENDENT], repeat=5)
    if when != "first":
        modules.first(HERE)
    turn: Turn = getattr(modules, when)(Missing("refused", "no"))
    assert isinstance(turn.step, End)
    assert turn.step.verdict.outcome is Outcome.UNVERIFIED
    assert turn.step.verdict.reason == "refused"


def test_a_migration_in_progress_is_told_of_the_whole_set() -> None:
    modules = ModuleSet([DEPENDENT])
    modules.first(HERE)
    step = modules.ran(identity({"migration.state": "outgoing"})).step
    assert isinstance(step, Publish)
    assert step.verdict.migrating
    assert "in progress" in step.verdict.sentence


def test_out_of_order_it_refuses() -> None:
    modules = ModuleSet([DEPENDENT])
    for early in (modules.ran, modules.looked):
        with pytest.raises(GuardMisused):
            early(HERE)
    modules.first(HERE)
    with pytest.raises(GuardMisused):
        modules.first(HERE)
    modules.ran(HERE)
    for late in (modules.ran, modules.looked):
        with pytest.raises(GuardMisused):
            late(HERE)


def test_a_set_has_modules_and_each_a_name() -> None:
    with pytest.raises(ValueError, match="one module or more"):
        ModuleSet([])
    with pytest.raises(ValueError, match="name of its own"):
        ModuleSet([Module("a"), Module("a", host_dependent=False)])


# Properties. The world is any sequence of readings; few values, so that all come up often.

_WORLDS = st.builds(
    lambda **members: identity({name.replace("__", "."): value for name, value in members.items()}),
    component_id=st.sampled_from(["sha256:" + c * 64 for c in "ab"]),
    vm__uuid=st.sampled_from(["1111"] * 7 + ["2222"]),
    vm__generation_id=st.sampled_from(["g1"] * 3 + [None] * 2 + ["g2"]),
    vm__vcpus=st.sampled_from([4, 4, 4, 5]),
    residency__id=st.sampled_from(["r1", "r2", "r3"]),
    residency__arrived_by=st.sampled_from(["migration"] * 4 + ["restore", "snapshot", "unknown"]),
    capacity__sockets=st.sampled_from([2, 2, 2, 1]),
    migration__state=st.sampled_from(["none", "outgoing"]),
)


@st.composite
def _histories(draw: st.DrawFn) -> list[Reading]:
    """Spells of one machine each, so that modules also get to finish; now and then no answer."""
    readings: list[Reading] = []
    for _ in range(draw(st.integers(1, 6))):
        world: Reading = draw(_WORLDS)
        if draw(st.integers(0, 19)) == 0:
            world = Missing()
        readings += [world] * draw(st.integers(1, 6))
    return readings


@dataclass
class _Told:
    """A whole drive of a set: every reading, and which readings each run lay between."""

    modules: list[Module]
    readings: list[Reading] = field(default_factory=list)
    runs: list[tuple[Module, int]] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    step: Step | None = None


def _drive(flags: list[bool], repeat: int, history: list[Reading], looks: list[bool]) -> _Told:
    told = _Told([Module(f"m{n}", flag) for n, flag in enumerate(flags)])
    modules = ModuleSet(told.modules, repeat=repeat)
    coming, pauses = iter(history), iter(looks)
    turn = modules.first(next(coming))
    told.readings.append(history[0])
    while True:
        told.turns.append(turn)
        if not isinstance(turn.step, Run):
            told.step = turn.step
            return told
        reading = next(coming, told.readings[-1])
        if next(pauses, False):
            turn = modules.looked(reading)
        else:
            told.runs.append((turn.step.module, len(told.readings) - 1))
            turn = modules.ran(reading)
        told.readings.append(reading)


def _world(reading: Reading) -> object:
    """All that a host-dependent module could see of where it runs."""
    assert isinstance(reading, Identity)
    vm = reading.vm
    where = (reading.component_id, reading.residency.id, vm.uuid, vm.generation_id)
    return where, reading.capacity, vm.vcpus, vm.memory_bytes


def _true_until_now(module: Module, since: list[Reading]) -> bool:
    """The oracle, in its own words: is a run between the first two of these readings still true?

    ``since`` has all readings from the one before the run until now.
    """
    if any(isinstance(reading, Missing) for reading in since):
        return False
    known = [reading for reading in since if isinstance(reading, Identity)]
    if _world(known[0]) != _world(known[1]):
        return False
    if module.host_dependent:
        return len({repr(_world(reading)) for reading in known}) == 1
    if len({reading.vm.uuid for reading in known}) > 1:
        return False
    if len({reading.vm.generation_id for reading in known} - {None}) > 1:
        return False
    for earlier, later in pairwise(known):
        moved = (earlier.residency.id, earlier.component_id) != (
            later.residency.id,
            later.component_id,
        )
        generations = {earlier.vm.generation_id, later.vm.generation_id}
        if not moved and len(generations) > 1:
            return False
        if moved and later.residency.arrived_by == "snapshot":
            return False
        if moved and later.residency.arrived_by != "migration" and None in generations:
            return False
    return True


_drives = st.builds(
    _drive,
    st.lists(st.booleans(), min_size=1, max_size=6),
    st.integers(0, 4),
    _histories(),
    st.lists(st.sampled_from([False, False, True]), max_size=12),
)


@settings(max_examples=600)
@given(_drives)
def test_what_is_published_is_never_mixed(told: _Told) -> None:
    event(type(told.step).__name__)
    if not isinstance(told.step, Publish):
        return
    last_runs = dict(told.runs)  # the last of each module
    assert set(last_runs) == set(told.modules)
    for module, at in last_runs.items():
        assert _true_until_now(module, told.readings[at:])
    dependent = [at for module, at in last_runs.items() if module.host_dependent]
    seen = {repr(_world(told.readings[at + after])) for at in dependent for after in (0, 1)}
    assert seen <= {repr(_world(told.step.identity))}
    assert told.step.identity is told.readings[-1]


@settings(max_examples=600)
@given(_drives)
def test_no_module_is_run_again_while_it_is_still_true(told: _Told) -> None:
    for number, (module, at) in enumerate(told.runs):
        for earlier, since in told.runs[:number]:
            if earlier == module:
                event("run again")
                assert not _true_until_now(module, told.readings[since : at + 1])


@given(_drives)
def test_a_module_has_a_reason_when_it_was_run_before_and_then_alone(told: _Told) -> None:
    reasons: dict[Module, Again] = {}
    ran: list[Module] = []
    runs = iter(told.runs)
    for turn, reading_at in zip(told.turns, range(len(told.turns)), strict=True):
        reasons |= {undone.module: undone.why for undone in turn.undone}
        if isinstance(turn.step, Run):
            assert turn.step.because == reasons.get(turn.step.module)
            assert (turn.step.because is not None) == (turn.step.module in ran)
            if (turn.step.module, reading_at) in told.runs:
                ran.append(next(runs)[0])
    assert ran == [module for module, _ in told.runs]


@settings(max_examples=300)
@given(
    st.lists(st.booleans(), min_size=1, max_size=6),
    st.integers(0, 4),
    _histories(),
)
def test_it_ends_and_gives_up_for_a_reason_alone(
    flags: list[bool], repeat: int, history: list[Reading]
) -> None:
    told = _drive(flags, repeat, history, [])
    costly = sum(bool(turn.undone) for turn in told.turns)
    assert len(told.runs) == len(told.readings) - 1
    assert len(told.runs) <= len(flags) * (repeat + 1)
    match told.step:
        case Publish():
            assert costly <= repeat
        case End(verdict) if verdict.inconsistent:
            assert costly == repeat + 1
        case End(verdict):
            assert isinstance(told.readings[-1], Missing)
            assert verdict.outcome is Outcome.UNVERIFIED
        case _:
            raise AssertionError(told.step)


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(0, 3), _WORLDS)
def test_in_a_quiet_world_each_module_is_run_once(
    flags: list[bool], repeat: int, world: Identity
) -> None:
    told = _drive(flags, repeat, [world], [])
    assert isinstance(told.step, Publish)
    assert [module.name for module, _ in told.runs] == [f"m{n}" for n in range(len(flags))]
    assert len(told.readings) == len(flags) + 1


def test_every_aspect_of_the_guard_makes_a_host_dependent_module_untrue() -> None:
    one_each: dict[Aspect, dict[str, Any]] = {
        Aspect.VM: {"vm.uuid": "2222"},
        Aspect.GENERATION: {"vm.generation_id": "g9"},
        Aspect.HOST: {"component_id": "sha256:" + "c" * 64},
        Aspect.RESIDENCY: {"residency.id": "stay-3"},
        Aspect.CAPACITY: {"capacity.memory_bytes": 1},
        Aspect.ALLOCATION: {"vm.memory_bytes": 1},
    }
    assert set(one_each) == set(Aspect)
    for changes in one_each.values():
        modules = ModuleSet([DEPENDENT, LAST], repeat=1)
        modules.first(HERE)
        modules.ran(HERE)
        assert DEPENDENT in [undone.module for undone in modules.ran(identity(changes)).undone]
