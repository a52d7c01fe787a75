"""The state: every change is one transaction, on disk when the call returns.

The agent and the commands use it at once, each on a connection of its own. All errors are
:class:`~guest_client.errors.StateError`; a transaction that fails has changed nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from guest_client.agent import rows
from guest_client.agent.database import Database, Execute
from guest_client.agent.model import (
    Event,
    Job,
    JobState,
    Known,
    NewTrigger,
    Result,
    Run,
    Trigger,
)
from guest_client.agent.post import Post
from guest_client.agent.registry import Registry
from guest_client.agent.settings import Program
from guest_client.agent.steps import Unfinished
from guest_client.errors import IdentityInvalid
from guest_client.times import WallClock, utc_now

KEPT_TRIGGERS = 1000
"""How many finished triggers are kept for `agent history`; the known ones are not run again."""


class State(Database):
    """Triggers, jobs and runs; and the registered programs and the post as parts of their own."""

    def __init__(self, state_dir: Path, *, now: WallClock = utc_now) -> None:
        super().__init__(state_dir, now=now)
        self.registry = Registry(self)
        self.post = Post(self)

    def known(self) -> Known | None:
        """Give the identity that was last seen.

        One that an earlier client took for good, and this one doesn't, is not known.
        """
        found = self.read("SELECT * FROM known")
        try:
            return rows.known(found[0]) if found else None
        except IdentityInvalid:
            return None

    def record(self, trigger: NewTrigger, known: Known | None = None) -> bool:
        """Put a trigger on disk, and what is ``known`` from then on if it is given.

        False if one with its key is there already; then nothing is changed.
        """
        with self.transaction("record a trigger") as execute:
            new = self._record(execute, trigger)
            if new and known is not None:
                self._know(execute, known)
            return new

    def observed(self, known: Known, news: Sequence[NewTrigger]) -> list[NewTrigger]:
        """Note what is known now and the triggers it brings, in one; gives those that are new.

        Unfinished triggers of another VM are closed: a clone does not speak for its original.
        """
        with self.transaction("note the identity") as execute:
            self._know(execute, known)
            execute(
                "UPDATE triggers SET state = 'superseded', completed_at = ?"
                " WHERE state IN ('recorded', 'planned') AND vm_uuid <> ?",
                (self.stamp(), known.identity.vm.uuid),
            )
            return [trigger for trigger in news if self._record(execute, trigger)]

    def _know(self, execute: Execute, known: Known) -> None:
        identity = known.identity
        execute(
            "INSERT OR REPLACE INTO known VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                identity.raw,
                identity.vm.uuid,
                identity.vm.generation_id,
                identity.component_id,
                identity.residency.id,
                known.migrating,
                known.attempts,
                self.stamp(),
            ),
        )

    def _record(self, execute: Execute, trigger: NewTrigger) -> bool:
        vm = (trigger.after or {}).get("vm", {})
        return bool(
            execute(
                "INSERT INTO triggers (key, state, phase, reason, changes, sentence,"
                " source, detected_at, recorded_at, before, after, vm_uuid)"
                " VALUES (?, 'recorded', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (key) DO NOTHING",
                (
                    trigger.key,
                    trigger.phase,
                    trigger.reason,
                    json.dumps(trigger.changes),
                    trigger.sentence,
                    trigger.source,
                    trigger.detected_at,
                    self.stamp(),
                    None if trigger.before is None else json.dumps(trigger.before),
                    None if trigger.after is None else json.dumps(trigger.after),
                    vm.get("uuid"),
                ),
            ).rowcount
        )

    def trigger(self, seq: int) -> Trigger:
        """Give one trigger."""
        return rows.trigger(self.read("SELECT * FROM triggers WHERE seq = ?", seq)[0])

    def latest(self, limit: int) -> list[Trigger]:
        """Give the latest triggers, the oldest of them first."""
        found = self.read("SELECT * FROM triggers ORDER BY seq DESC LIMIT ?", limit)
        return [rows.trigger(row) for row in reversed(found)]

    def unfinished(self) -> list[Unfinished]:
        """Give what ``steps.py`` asks about.

        A superseded trigger is still in it while a run of it is not ended.
        """
        triggers = self.read(
            "SELECT * FROM triggers WHERE state IN ('recorded', 'planned')"
            " OR seq IN (SELECT trigger FROM jobs WHERE state = 'running') ORDER BY seq"
        )
        return [
            Unfinished(t["seq"], rows.trigger(t).state, tuple(self.jobs(t["seq"])))
            for t in triggers
        ]

    def plan(self, seq: int, old_agent_id: str | None) -> list[str]:
        """Settle which programs are run for a trigger: those registered now; gives their names."""
        with self.transaction("plan") as execute:
            phase = execute("SELECT phase FROM triggers WHERE seq = ?", (seq,)).fetchone()["phase"]
            execute(
                "UPDATE triggers SET state = 'planned', planned_at = ?, old_agent_id = ?"
                " WHERE seq = ?",
                (self.stamp(), old_agent_id, seq),
            )
            registered = execute("SELECT * FROM registrations ORDER BY position").fetchall()
            called = [row for row in registered if phase in json.loads(row["phases"])]
            for row in called:
                execute(
                    "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, 'due', 0, 0)",
                    (
                        seq,
                        row["position"],
                        row["name"],
                        row["command"],
                        row["timeout"],
                        row["user"],
                        row["tries"],
                    ),
                )
            return [str(row["name"]) for row in called]

    def jobs(self, seq: int) -> list[Job]:
        """Give a trigger's jobs, in the order in which they are begun."""
        found = self.read("SELECT * FROM jobs WHERE trigger = ? ORDER BY position, name", seq)
        return [rows.job(row) for row in found]

    def program(self, job: Job) -> Program:
        """Give what a job runs, as it was registered when the job was planned."""
        found = self.read(
            "SELECT * FROM jobs WHERE trigger = ? AND name = ?", job.trigger, job.name
        )
        return rows.program_of_job(found[0])

    def begin_run(self, job: Job, run_id: str) -> Job | None:
        """Write down that a run begins; gives the job as it is then, ``None`` if it is not due."""
        with self.transaction("begin a run") as execute:
            where = (job.trigger, job.name)
            if not execute(
                "UPDATE jobs SET state = 'running', tries = tries + 1"
                " WHERE trigger = ? AND name = ? AND state = 'due'",
                where,
            ).rowcount:
                return None
            row = execute("SELECT * FROM jobs WHERE trigger = ? AND name = ?", where).fetchone()
            begun = rows.job(row)
            execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?, NULL, 'running', NULL, NULL, NULL, '')",
                (run_id, job.trigger, job.name, begun.tries, self.stamp()),
            )
        return begun

    def end_run(
        self, job: Job, result: Result, settle: Callable[[Job], tuple[JobState, float]]
    ) -> JobState:
        """Write down how the latest run of a job ended, and what ``settle`` makes of the job."""
        with self.transaction("end a run") as execute:
            row = execute(
                "SELECT * FROM jobs WHERE trigger = ? AND name = ?", (job.trigger, job.name)
            ).fetchone()
            state, not_before = settle(rows.job(row))
            execute(
                "UPDATE jobs SET state = ?, not_before = ? WHERE trigger = ? AND name = ?",
                (state, not_before, job.trigger, job.name),
            )
            execute(
                "UPDATE runs SET ended_at = ?, outcome = ?, exit_code = ?, signal = ?, problem = ?,"
                " output = ? WHERE trigger = ? AND name = ? AND number = ?",
                (
                    self.stamp(),
                    result.outcome,
                    result.exit_code,
                    result.signal,
                    result.problem,
                    result.output,
                    job.trigger,
                    job.name,
                    row["tries"],
                ),
            )
        return state

    def runs(self, seq: int) -> list[Run]:
        """Give all runs for a trigger, in order of their beginning."""
        found = self.read("SELECT * FROM runs WHERE trigger = ? ORDER BY rowid", seq)
        return [rows.run(row) for row in found]

    def running(self) -> list[Run]:
        """Give the runs that are on disk as running."""
        return [rows.run(row) for row in self.read("SELECT * FROM runs WHERE outcome = 'running'")]

    def complete(
        self,
        seq: int,
        new_agent_id: str | None,
        completed_at: str,
        event: Event | None = None,
        urls: Sequence[str] = (),
    ) -> None:
        """Close a trigger and put its event into the outbox for each URL, in one."""
        with self.transaction("complete") as execute:
            execute(
                "UPDATE triggers SET state = 'done', new_agent_id = ?, completed_at = ?,"
                " event_id = ? WHERE seq = ?",
                (new_agent_id, completed_at, event.id if event else None, seq),
            )
            if event is not None:
                self.post.put(execute, event.id, seq, event.body, urls)

    def forget_old(self, kept: int = KEPT_TRIGGERS) -> None:
        """Forget finished triggers beyond the latest so many, but none with an event waiting."""
        with self.transaction("forget old triggers") as execute:
            execute(
                "DELETE FROM triggers WHERE state IN ('done', 'superseded')"
                " AND seq NOT IN (SELECT trigger FROM outbox WHERE state = 'waiting')"
                " AND seq <= (SELECT max(seq) FROM triggers) - ?",
                (kept,),
            )
