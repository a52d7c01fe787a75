"""The state: every change is one transaction, on disk when the call returns.

The agent and the commands use it at once, each on a connection of its own. All errors are
:class:`~guest_client.errors.StateError`; a transaction that fails has changed nothing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from guest_client.agent import rows, schema
from guest_client.agent.model import (
    Delivery,
    Job,
    JobState,
    Known,
    NewTrigger,
    Owner,
    Registration,
    Result,
    Road,
    Run,
    Trigger,
)
from guest_client.agent.settings import Program
from guest_client.agent.steps import Unfinished
from guest_client.times import WallClock, rfc3339, utc_now

KEPT_TRIGGERS = 1000
"""How many finished triggers are kept for `agent history`; the known ones are not run again."""


class State:
    """The agent's state under ``state_dir``; see ``schema.py`` for the tables."""

    def __init__(self, state_dir: Path, *, now: WallClock = utc_now) -> None:
        self.path = state_dir / schema.FILE
        self._now = now
        self._connection = schema.open_database(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()

    def check(self) -> None:
        """Read the whole file; raises :class:`StateError` if it is damaged."""
        schema.check(self._connection, self.path)

    @contextmanager
    def _transaction(self, label: str) -> Iterator[Callable[..., sqlite3.Cursor]]:
        """Do what is inside as one change, or not at all."""
        with schema.as_state_error(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.execute
                self._commit(label)
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def _commit(self, label: str) -> None:
        """Make a change last. ``label`` names it: each is a step at which a process can die."""
        self._connection.execute("COMMIT")

    def _read(self, query: str, *values: object) -> list[sqlite3.Row]:
        with schema.as_state_error(self.path):
            return self._connection.execute(query, values).fetchall()

    # Registrations

    def registrations(self) -> list[Registration]:
        """Give the registered programs, in the order in which they are run."""
        found = self._read("SELECT * FROM registrations ORDER BY position")
        return [rows.registration(row) for row in found]

    def begin(self, programs: Sequence[Program], last: Sequence[Program] = ()) -> list[str]:
        """Make known the programs of an agent that starts.

        They come first, in their order; ``last`` ones come after all others. One whose name a
        person has registered is left out: gives the names of those.
        """
        with self._transaction("make the programs known") as execute:
            execute("DELETE FROM registrations WHERE owner = 'run'")
            persons = {name for (name,) in execute("SELECT name FROM registrations")}
            displaced = [p.name for p in (*programs, *last) if p.name in persons]
            first, end = self._bounds(execute)
            own = [program for program in programs if program.name not in persons]
            for offset, program in enumerate(own):
                self._insert(execute, program, Owner.RUN, first - len(own) + offset)
            for offset, program in enumerate(p for p in last if p.name not in persons):
                self._insert(execute, program, Owner.RUN, max(end, _LAST) + offset + 1)
        return displaced

    def end(self) -> None:
        """Deregister what :meth:`begin` registered. Jobs that are planned stay."""
        with self._transaction("deregister the programs") as execute:
            execute("DELETE FROM registrations WHERE owner = 'run'")

    def register(self, program: Program) -> bool:
        """Register a person's program; true if it took the place of another of that name."""
        with self._transaction("register") as execute:
            found = execute(
                "SELECT position FROM registrations WHERE name = ?", (program.name,)
            ).fetchone()
            position = self._bounds(execute, below=_LAST)[1] + 1
            if found is not None:
                position = found["position"]
                execute("DELETE FROM registrations WHERE name = ?", (program.name,))
            self._insert(execute, program, Owner.PERSON, position)
        return found is not None

    def deregister(self, name: str) -> tuple[Registration, int] | None:
        """Deregister a program and cancel its jobs; gives it and their number, if it was there."""
        with self._transaction("deregister") as execute:
            row = execute("SELECT * FROM registrations WHERE name = ?", (name,)).fetchone()
            if row is None:
                return None
            execute("DELETE FROM registrations WHERE name = ?", (name,))
            cancelled = execute(
                "UPDATE jobs SET state = 'cancelled' WHERE name = ? AND state = 'due'", (name,)
            ).rowcount
            # One that runs is let run, but is not tried again.
            execute(
                "UPDATE jobs SET tries_allowed = tries WHERE name = ? AND state = 'running'",
                (name,),
            )
        return rows.registration(row), cancelled

    @staticmethod
    def _bounds(execute: Callable[..., sqlite3.Cursor], below: int = 1 << 62) -> tuple[int, int]:
        row = execute(
            "SELECT coalesce(min(position), 1), coalesce(max(position), 0) FROM registrations"
            " WHERE position < ?",
            (below,),
        ).fetchone()
        return int(row[0]), int(row[1])

    def _insert(
        self, execute: Callable[..., sqlite3.Cursor], program: Program, owner: Owner, position: int
    ) -> None:
        execute(
            "INSERT INTO registrations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                position,
                program.name,
                json.dumps(program.command),
                json.dumps(program.phases),
                program.timeout,
                program.tries,
                program.user,
                owner,
                self._stamp(),
            ),
        )

    # Triggers

    def known(self) -> Known | None:
        """Give the identity that was last seen."""
        found = self._read("SELECT * FROM known")
        return rows.known(found[0]) if found else None

    def record(self, trigger: NewTrigger, known: Known | None = None) -> bool:
        """Put a trigger on disk, and what is ``known`` from then on if it is given.

        False if one with its key is there already; then nothing is changed.
        """
        with self._transaction("record a trigger") as execute:
            new = self._record(execute, trigger)
            if new and known is not None:
                self._know(execute, known)
            return new

    def observed(self, known: Known, news: Sequence[NewTrigger]) -> list[NewTrigger]:
        """Note what is known now and the triggers it brings, in one; gives those that are new.

        Unfinished triggers of another VM are closed: a clone does not speak for its original.
        """
        with self._transaction("note the identity") as execute:
            self._know(execute, known)
            execute(
                "UPDATE triggers SET state = 'superseded', completed_at = ?"
                " WHERE state IN ('recorded', 'planned') AND vm_uuid <> ?",
                (self._stamp(), known.identity.vm.uuid),
            )
            return [trigger for trigger in news if self._record(execute, trigger)]

    def _know(self, execute: Callable[..., sqlite3.Cursor], known: Known) -> None:
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
                self._stamp(),
            ),
        )

    def _record(self, execute: Callable[..., sqlite3.Cursor], trigger: NewTrigger) -> bool:
        vm = (trigger.after or {}).get("vm", {})
        return bool(
            execute(
                "INSERT OR IGNORE INTO triggers (key, state, phase, reason, changes, sentence,"
                " source, detected_at, recorded_at, before, after, vm_uuid)"
                " VALUES (?, 'recorded', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    trigger.key,
                    trigger.phase,
                    trigger.reason,
                    json.dumps(trigger.changes),
                    trigger.sentence,
                    trigger.source,
                    trigger.detected_at,
                    self._stamp(),
                    None if trigger.before is None else json.dumps(trigger.before),
                    None if trigger.after is None else json.dumps(trigger.after),
                    vm.get("uuid"),
                ),
            ).rowcount
        )

    def has(self, key: str) -> bool:
        """Whether a trigger with that key is there."""
        return bool(self._read("SELECT 1 FROM triggers WHERE key = ?", key))

    def trigger(self, seq: int) -> Trigger:
        """Give one trigger."""
        return rows.trigger(self._read("SELECT * FROM triggers WHERE seq = ?", seq)[0])

    def latest(self, limit: int) -> list[Trigger]:
        """Give the latest triggers, the oldest of them first."""
        found = self._read("SELECT * FROM triggers ORDER BY seq DESC LIMIT ?", limit)
        return [rows.trigger(row) for row in reversed(found)]

    def unfinished(self) -> list[Unfinished]:
        """Give what ``steps.py`` asks about.

        A superseded trigger is still in it while a run of it is not ended.
        """
        triggers = self._read(
            "SELECT * FROM triggers WHERE state IN ('recorded', 'planned')"
            " OR seq IN (SELECT trigger FROM jobs WHERE state = 'running') ORDER BY seq"
        )
        return [
            Unfinished(t["seq"], rows.trigger(t).state, tuple(self.jobs(t["seq"])))
            for t in triggers
        ]

    # Jobs and runs

    def plan(self, seq: int, old_agent_id: str | None) -> list[str]:
        """Settle which programs are run for a trigger: those registered now; gives their names."""
        with self._transaction("plan") as execute:
            phase = execute("SELECT phase FROM triggers WHERE seq = ?", (seq,)).fetchone()["phase"]
            execute(
                "UPDATE triggers SET state = 'planned', planned_at = ?, old_agent_id = ?"
                " WHERE seq = ?",
                (self._stamp(), old_agent_id, seq),
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
        found = self._read("SELECT * FROM jobs WHERE trigger = ? ORDER BY position, name", seq)
        return [rows.job(row) for row in found]

    def program(self, job: Job) -> Program:
        """Give what a job runs, as it was registered when the job was planned."""
        found = self._read(
            "SELECT * FROM jobs WHERE trigger = ? AND name = ?", job.trigger, job.name
        )
        return rows.program_of_job(found[0])

    def begin_run(self, job: Job, run_id: str) -> Job | None:
        """Write down that a run begins; gives the job as it is then, ``None`` if it is not due."""
        with self._transaction("begin a run") as execute:
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
                (run_id, job.trigger, job.name, begun.tries, self._stamp()),
            )
        return begun

    def end_run(
        self, job: Job, result: Result, settle: Callable[[Job], tuple[JobState, float]]
    ) -> JobState:
        """Write down how the latest run of a job ended, and what ``settle`` makes of the job."""
        with self._transaction("end a run") as execute:
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
                    self._stamp(),
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
        found = self._read("SELECT * FROM runs WHERE trigger = ? ORDER BY rowid", seq)
        return [rows.run(row) for row in found]

    def running(self) -> list[Run]:
        """Give the runs that are on disk as running."""
        return [rows.run(row) for row in self._read("SELECT * FROM runs WHERE outcome = 'running'")]

    # Completion and the outbox

    def complete(
        self,
        seq: int,
        new_agent_id: str | None,
        completed_at: str,
        event: Mapping[str, Any] | None = None,
        body: bytes = b"",
        urls: Sequence[str] = (),
    ) -> None:
        """Close a trigger and put its event into the outbox for each URL, in one."""
        with self._transaction("complete") as execute:
            execute(
                "UPDATE triggers SET state = 'done', new_agent_id = ?, completed_at = ?,"
                " event_id = ? WHERE seq = ?",
                (new_agent_id, completed_at, event["id"] if event else None, seq),
            )
            for url in urls if event else ():
                execute(
                    "INSERT OR IGNORE INTO outbox (event_id, url, trigger, body, state, tries,"
                    " created_at) VALUES (?, ?, ?, ?, 'waiting', 0, ?)",
                    ((event or {})["id"], url, seq, body, completed_at),
                )

    def next_delivery(self, url: str) -> Delivery | None:
        """Give the oldest undelivered event for a URL."""
        found = self._read(
            "SELECT * FROM outbox WHERE url = ? AND state = 'waiting' ORDER BY seq LIMIT 1", url
        )
        return rows.delivery(found[0]) if found else None

    def delivered(self, delivery: Delivery) -> None:
        """Write down that an event has arrived."""
        with self._transaction("delivered") as execute:
            execute(
                "UPDATE outbox SET state = 'delivered', tries = tries + 1, ended_at = ?"
                " WHERE seq = ?",
                (self._stamp(), delivery.seq),
            )
            execute("DELETE FROM roads WHERE url = ?", (delivery.url,))

    def undelivered(self, delivery: Delivery, road: Road) -> None:
        """Write down that a try failed, and how things stand with the destination now."""
        with self._transaction("undelivered") as execute:
            execute("UPDATE outbox SET tries = tries + 1 WHERE seq = ?", (delivery.seq,))
            execute(
                "INSERT OR REPLACE INTO roads VALUES (?, ?, ?, ?, ?)",
                (road.url, road.failures, road.not_before, road.gone, road.problem),
            )

    def road(self, url: str) -> Road:
        """Say how things stand with a destination."""
        return next((road for road in self.roads() if road.url == url), Road(url))

    def roads(self) -> list[Road]:
        """Say how things stand with every destination that has something waiting, or trouble."""
        return [rows.road(row) for row in self._read(rows.ROADS)]

    def outbox(self, seq: int | None = None) -> list[dict[str, Any]]:
        """Give the events in the outbox, of one trigger or all that wait, as people see them."""
        if seq is None:
            found = self._read("SELECT * FROM outbox WHERE state = 'waiting' ORDER BY seq")
        else:
            found = self._read("SELECT * FROM outbox WHERE trigger = ? ORDER BY seq", seq)
        return [rows.posted(row) for row in found]

    def retry_deliveries(self) -> int:
        """Make every waiting event due now; gives their number."""
        with self._transaction("retry deliveries") as execute:
            execute("DELETE FROM roads")
            (waiting,) = execute("SELECT count(*) FROM outbox WHERE state = 'waiting'").fetchone()
        return int(waiting)

    def discard(self, event_id: str) -> int:
        """Take an event out of the outbox undelivered; gives from how many destinations' queues."""
        with self._transaction("discard an event") as execute:
            return execute(
                "UPDATE outbox SET state = 'discarded', ended_at = ?"
                " WHERE event_id = ? AND state = 'waiting'",
                (self._stamp(), event_id),
            ).rowcount

    def forget_old(self) -> None:
        """Forget finished triggers beyond :data:`KEPT_TRIGGERS`, but none with an event waiting."""
        with self._transaction("forget old triggers") as execute:
            execute(
                "DELETE FROM triggers WHERE state IN ('done', 'superseded')"
                " AND seq NOT IN (SELECT trigger FROM outbox WHERE state = 'waiting')"
                " AND seq <= (SELECT max(seq) FROM triggers) - ?",
                (KEPT_TRIGGERS,),
            )

    def _stamp(self) -> str:
        return rfc3339(self._now())


_LAST = 1 << 40
"""Positions beyond this one come after every program that a person registers."""
