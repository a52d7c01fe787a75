"""What is to be done next: the state in, one step out. Pure; no clock, no disk, no process.

Rules
-----
1. A step is decided by what is on disk alone, and what a step did is on disk before the next one
   is asked for. So after a crash the same question has the same answer, but for one thing: a job
   that is on disk as running, while nobody runs it, was cut off (rule 2).
2. A run that was begun is a try, however it ended: a program that takes the agent, or the whole
   machine, down with it is tried a bounded number of times.
3. One program runs at a time. A trigger's jobs are begun in the order of their registration; one
   that waits to be tried again does not hold up those behind it, of this trigger or of the next.
4. The same program is run for one trigger after the other, never for two at once or out of order.
5. Triggers are completed in order, so that their events are in order.

    what is on disk                                         step
    ------------------------------------------------------  ---------
    a job is running (and this process runs none)           Interrupt
    a trigger is recorded                                   Plan
    the oldest unfinished trigger has no unresolved job     Complete
    a job is due, and its time has come                     Run
    jobs are due, their time has not come                   Rest until the first of them
    nothing                                                 Rest

The table's order is the order of precedence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union

from guest_client.agent.model import Job, JobState, Outcome, TriggerState

FIRST_RETRY = 2.0
RETRY_FACTOR = 4.0
LONGEST_RETRY = 300.0
"""Seconds between two tries of a program: 2, 8, 32, 128, 300, 300, ... before jitter."""

FIRST_RESEND = 1.0
LONGEST_RESEND = 300.0
"""Seconds between two tries to deliver: 1, 2, 4, ... 256, 300, 300, ... before jitter."""
LONGEST_RETRY_AFTER = 3600.0
"""Seconds; a receiver that asks us to stay away for longer is asked again all the same."""


@dataclass(frozen=True)
class Unfinished:
    """A trigger that is not done, with its jobs in order of registration."""

    seq: int
    state: TriggerState
    jobs: tuple[Job, ...] = ()


@dataclass(frozen=True)
class Interrupt:
    """Write down that a run was cut off."""

    job: Job


@dataclass(frozen=True)
class Plan:
    """Settle which programs are run for a trigger."""

    seq: int


@dataclass(frozen=True)
class Run:
    """Run a program."""

    job: Job


@dataclass(frozen=True)
class Complete:
    """Close a trigger, and put its event into the outbox."""

    seq: int


@dataclass(frozen=True)
class Rest:
    """Nothing to do until this moment (seconds since 1970), or until something happens."""

    until: float | None = None


Step = Union[Interrupt, Plan, Run, Complete, Rest]


def next_step(unfinished: Sequence[Unfinished], now: float) -> Step:
    """Say what is to be done next. ``unfinished`` is in the order of recording."""
    for trigger in unfinished:
        for job in trigger.jobs:
            if job.state is JobState.RUNNING:
                return Interrupt(job)
    for trigger in unfinished:
        if trigger.state is TriggerState.RECORDED:
            return Plan(trigger.seq)
    if unfinished and all(job.state.resolved for job in unfinished[0].jobs):
        return Complete(unfinished[0].seq)
    waiting: list[float] = []
    busy: set[str] = set()
    for trigger in unfinished:
        due = [job for job in trigger.jobs if job.state is JobState.DUE and job.name not in busy]
        for job in due:
            left = wait_left(job.not_before, now, LONGEST_RETRY)
            if left <= 0:
                return Run(job)
            waiting.append(now + left)
        busy.update(job.name for job in due)
    return Rest(min(waiting, default=None))


def settle(job: Job, outcome: Outcome, now: float, jitter: float) -> tuple[JobState, float]:
    """Say what follows from the end of a job's latest run: its new state, and not before when.

    ``job.tries`` counts that run; ``jitter`` is 0 to 1.
    """
    if outcome is Outcome.OK:
        return JobState.OK, 0.0
    if job.tries >= job.tries_allowed:
        return JobState.FAILED, 0.0
    wait = back_off(job.tries, FIRST_RETRY, RETRY_FACTOR, LONGEST_RETRY, jitter)
    return JobState.DUE, now + wait


def resend_at(failures: int, retry_after: float, now: float, jitter: float) -> float:
    """Say when an event is sent again, after ``failures`` tries in a row that failed.

    ``retry_after`` is what the receiver asked for, in seconds, 0 if for nothing.
    """
    wait = back_off(failures, FIRST_RESEND, 2.0, LONGEST_RESEND, jitter)
    return now + max(wait, min(retry_after, LONGEST_RETRY_AFTER))


def back_off(failures: int, first: float, factor: float, longest: float, jitter: float) -> float:
    """Give the seconds to wait after so many failures: half of it fixed, half of it by jitter."""
    grown = first * factor ** min(failures - 1, 64)
    return min(grown, longest) * (0.5 + jitter / 2)


def wait_left(not_before: float, now: float, longest: float) -> float:
    """Give the seconds until a moment; a clock that was set back makes no one wait for ever."""
    left = not_before - now
    return 0.0 if left <= 0 or left > longest else left
