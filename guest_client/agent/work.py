"""Does the steps that ``steps.py`` asks for, each written down before the next is asked for."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from guest_client.agent import agent_id, event, facts
from guest_client.agent.leftovers import end_leftovers
from guest_client.agent.model import Event, Job, JobState, Outcome, Result
from guest_client.agent.programs import run_program
from guest_client.agent.state import State
from guest_client.agent.steps import Interrupt, Plan, Rest, Run, next_step, settle
from guest_client.errors import StateError
from guest_client.text import printable
from guest_client.times import WallClock, rfc3339, utc_now


class Work:
    """The one that acts on triggers. ``urls`` are where events go; ``completed`` is called when
    one is in the outbox."""

    def __init__(
        self,
        state: State,
        agent_id_file: Path,
        urls: Sequence[str],
        stop: asyncio.Event,
        say: Callable[[str], None],
        *,
        completed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
        now: WallClock = utc_now,
    ) -> None:
        self._state = state
        self._agent_id_file = agent_id_file
        self._urls = tuple(urls)
        self._stop = stop
        self._say = say
        self._completed = completed
        self._clock = clock
        self._jitter = jitter
        self._now = now

    async def until_rest(self) -> Rest:
        """Do every step that can be done now; gives when there will be another."""
        while not self._stop.is_set():
            step = next_step(self._state.unfinished(), self._clock())
            if isinstance(step, Rest):
                return step
            if isinstance(step, Interrupt):
                self._interrupt(step.job)
            elif isinstance(step, Plan):
                self._plan(step.seq)
            elif isinstance(step, Run):
                await self._run(step.job)
            else:
                self._complete(step.seq)
            await asyncio.sleep(0)  # let the deliveries, and whoever asks, have their turn
        return Rest()

    def _interrupt(self, job: Job) -> None:
        cut_off = [run for run in self._state.running() if _is_of(run.trigger, run.name, job)]
        if found := end_leftovers([run.id for run in cut_off]):
            self._say(f"ended {found} processes that an earlier agent's {job.name} left behind")
        problem = "the agent ended before it did"
        self._end(job, Result(Outcome.INTERRUPTED, problem=problem))

    def _plan(self, seq: int) -> None:
        trigger = self._state.trigger(seq)
        before = None
        try:
            before = agent_id.id_before(self._agent_id_file, trigger.what.key)
        except StateError as error:  # somebody else's file: no reason not to act
            self._say(str(error))
        names = self._state.plan(seq, before)
        called = ", ".join(names) or "no program is registered for that"
        self._say(f"{trigger.what.phase}: {trigger.what.sentence}; {called}")

    async def _run(self, job: Job) -> None:
        run_id = str(uuid.uuid4())
        program = self._state.program(job)
        trigger = self._state.trigger(job.trigger).what
        begun = self._state.begin_run(job, run_id)
        if begun is None:
            return  # a person has deregistered it in this very moment
        result = await run_program(
            program,
            facts.facts(trigger, job.name, begun.tries),
            facts.environment(os.environ, trigger, job.name, begun.tries, run_id),
            self._stop,
        )
        self._end(begun, result)

    def _end(self, job: Job, result: Result) -> None:
        now, jitter = self._clock(), self._jitter()
        state = self._state.end_run(job, result, lambda j: settle(j, result.outcome, now, jitter))
        what = f"{job.name} failed ({result.problem}{_last_words(result.output)})"
        if state is JobState.FAILED:
            self._say(f"{what}; given up after {job.tries} tries")
        elif state is JobState.DUE:
            self._say(f"{what}; it will be tried again")

    def _complete(self, seq: int) -> None:
        trigger = self._state.trigger(seq)
        new = None
        try:
            new = agent_id.read_id(self._agent_id_file)
        except StateError as error:
            self._say(str(error))
        completed_at = rfc3339(self._now())
        if trigger.what.phase.told:
            runs = self._state.runs(seq)
            accounts = [
                event.Account(
                    job.name,
                    job.state,
                    tuple(run for run in runs if run.name == job.name),
                )
                for job in self._state.jobs(seq)
            ]
            composed = event.compose(
                trigger, accounts, new, completed_at, printable(socket.gethostname())
            )
            sealed = Event(composed["id"], event.encode(composed))
            self._state.complete(seq, new, completed_at, sealed, self._urls)
        else:
            self._state.complete(seq, new, completed_at)
        self._completed()
        failed = [job.name for job in self._state.jobs(seq) if job.state is JobState.FAILED]
        how = f"failed: {', '.join(failed)}" if failed else "all programs ended well"
        self._say(f"{trigger.what.phase}: done, {how}; the agent ID is {new or 'not known'}")


def _last_words(output: str) -> str:
    lines = output.strip().splitlines()
    return f": {printable(lines[-1])}" if lines else ""


def _is_of(trigger: int, name: str, job: Job) -> bool:
    return trigger == job.trigger and name == job.name
