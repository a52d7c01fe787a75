"""The pure step machine: its table, and that every trigger comes to its end, whatever happens."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_client.agent import steps
from guest_client.agent.model import Job, JobState, Outcome, TriggerState
from guest_client.agent.steps import (
    Complete,
    Interrupt,
    Plan,
    Rest,
    Run,
    Unfinished,
    next_step,
    settle,
)

NOW = 1_800_000_000.0


def job(trigger: int, name: str, state: JobState = JobState.DUE, **more: float) -> Job:
    values = {"tries": 0, "tries_allowed": 3, "not_before": 0.0, **more}
    return Job(trigger, 0, name, state, int(values["tries"]), int(values["tries_allowed"]),
               values["not_before"])  # fmt: skip


def planned(seq: int, *jobs: Job) -> Unfinished:
    return Unfinished(seq, TriggerState.PLANNED, jobs)


RECORDED = Unfinished(2, TriggerState.RECORDED)
LATER = {"not_before": NOW + 8, "tries": 1}


@pytest.mark.parametrize(
    ("unfinished", "step"),
    [
        ([], Rest()),
        ([RECORDED], Plan(2)),
        ([planned(1, job(1, "a", JobState.RUNNING)), RECORDED],
         Interrupt(job(1, "a", JobState.RUNNING))),
        ([planned(1, job(1, "a")), RECORDED], Plan(2)),
        ([planned(1)], Complete(1)),
        ([planned(1, job(1, "a", JobState.OK), job(1, "b", JobState.FAILED))], Complete(1)),
        ([planned(1, job(1, "a", JobState.CANCELLED))], Complete(1)),
        ([planned(1, job(1, "a", JobState.OK), job(1, "b"))], Run(job(1, "b"))),
        # a program that waits for its next try does not hold up the others ...
        ([planned(1, job(1, "a", **LATER), job(1, "b"))], Run(job(1, "b"))),
        ([planned(1, job(1, "a", **LATER)), planned(2, job(2, "b"))], Run(job(2, "b"))),
        # ... but itself: the same program is not run for a later trigger before
        ([planned(1, job(1, "a", **LATER)), planned(2, job(2, "a"))], Rest(NOW + 8)),
        # a later trigger is not completed before an earlier one
        ([planned(1, job(1, "a", **LATER)), planned(2, job(2, "b", JobState.OK))], Rest(NOW + 8)),
        # a clock that was set back by a year makes nobody wait for a year
        ([planned(1, job(1, "a", not_before=NOW + 3e7, tries=1))],
         Run(job(1, "a", not_before=NOW + 3e7, tries=1))),
    ],
)  # fmt: skip
def test_the_table(unfinished: list[Unfinished], step: steps.Step) -> None:
    assert next_step(unfinished, NOW) == step


def test_tries_are_bounded_and_further_and_further_apart() -> None:
    waits = []
    for tries in range(1, 7):
        state, not_before = settle(
            job(1, "a", JobState.RUNNING, tries=tries, tries_allowed=7), Outcome.FAILED, NOW, 1.0
        )
        assert state is JobState.DUE
        waits.append(not_before - NOW)
    assert waits == [2, 8, 32, 128, 300, 300]
    last = job(1, "a", JobState.RUNNING, tries=7, tries_allowed=7)
    assert settle(last, Outcome.FAILED, NOW, 1.0) == (JobState.FAILED, 0.0)
    assert settle(last, Outcome.OK, NOW, 1.0) == (JobState.OK, 0.0)
    assert settle(last, Outcome.INTERRUPTED, NOW, 1.0) == (JobState.FAILED, 0.0)


def test_resending_goes_on_for_ever_but_never_slower_than_every_five_minutes() -> None:
    waits = [steps.resend_at(failures, 0, NOW, 1.0) - NOW for failures in (1, 2, 3, 9, 10, 10_000)]
    assert waits == [1, 2, 4, 256, 300, 300]
    assert steps.resend_at(5, 0, NOW, 0.0) - NOW == 8
    assert steps.resend_at(1, 120, NOW, 0.5) - NOW == 120
    assert steps.resend_at(1, 1e9, NOW, 0.5) - NOW == steps.LONGEST_RETRY_AFTER


class World:
    """Obeys the steps, as the agent does, on a state that is a list; notes what was done."""

    def __init__(self, registered: list[str], tries_allowed: int) -> None:
        self.registered = registered
        self.tries_allowed = tries_allowed
        self.triggers: list[Unfinished] = []
        self.clock = NOW
        self.runs: list[tuple[int, str]] = []
        self.completed: list[int] = []

    def set(self, new: Job) -> None:
        self.triggers = [
            replace(t, jobs=tuple(new if (j.trigger, j.name) == (new.trigger, new.name) else j
                                  for j in t.jobs))
            for t in self.triggers
        ]  # fmt: skip

    def step(self, outcome: Outcome, *, crash: bool) -> bool:
        """Do one step; with ``crash``, only the part of it that is before the second commit."""
        match next_step(self.triggers, self.clock):
            case Plan(seq):
                jobs = tuple(
                    Job(seq, at, name, JobState.DUE, 0, self.tries_allowed)
                    for at, name in enumerate(self.registered)
                )
                self.triggers = [planned(seq, *jobs) if t.seq == seq else t for t in self.triggers]
            case Interrupt(found):
                state, not_before = settle(found, Outcome.INTERRUPTED, self.clock, 0.5)
                self.set(replace(found, state=state, not_before=not_before))
            case Run(found):
                begun = replace(found, state=JobState.RUNNING, tries=found.tries + 1)
                self.set(begun)
                self.runs.append((found.trigger, found.name))
                if not crash:
                    state, not_before = settle(begun, outcome, self.clock, 0.5)
                    self.set(replace(begun, state=state, not_before=not_before))
            case Complete(seq):
                assert all(j.state.resolved for j in self.triggers[0].jobs)
                self.completed.append(seq)
                self.triggers = [t for t in self.triggers if t.seq != seq]
            case Rest(until):
                if until is None:
                    return False
                self.clock = until
        return True


@given(
    data=st.data(),
    names=st.lists(st.sampled_from("abcd"), unique=True, max_size=4),
    tries=st.integers(1, 3),
    number=st.integers(1, 4),
)
def test_whatever_fails_or_crashes_every_trigger_is_completed_in_order(
    data: st.DataObject, names: list[str], tries: int, number: int
) -> None:
    world = World(names, tries)
    arriving = list(range(1, number + 1))
    outcomes = st.sampled_from([Outcome.OK, Outcome.FAILED, Outcome.TIMEOUT])
    for _ in range(1000):
        if arriving and (not world.triggers or data.draw(st.booleans())):
            world.triggers.append(Unfinished(arriving.pop(0), TriggerState.RECORDED))
        if not world.step(data.draw(outcomes), crash=data.draw(st.booleans())) and not arriving:
            break
    else:
        pytest.fail("it never came to rest")
    assert world.completed == list(range(1, number + 1))
    for name in names:
        order = [trigger for trigger, ran in world.runs if ran == name]
        assert order == sorted(order), "a program was run for a later trigger first"
        for trigger in world.completed:
            assert 1 <= order.count(trigger) <= tries
