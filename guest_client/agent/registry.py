"""The registered programs in the state: whose they are, and in which order they are run.

    first    what the agent registers when it starts (configuration, command line, built in)
    then     what persons have registered, in the order of registration
    last     what is to come after everything else: the systemd target

A person's registration takes the place of another of the same name, whoever made that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from guest_client.agent import rows
from guest_client.agent.database import Database, Execute
from guest_client.agent.model import Owner, Registration
from guest_client.agent.settings import Program

_LAST = 1 << 40
"""Positions beyond this one come after every program that a person registers."""


class Registry:
    """The registered programs."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def all(self) -> list[Registration]:
        """Give the registered programs, in the order in which they are run."""
        found = self._db.read("SELECT * FROM registrations ORDER BY position")
        return [rows.registration(row) for row in found]

    def begin(self, programs: Sequence[Program], last: Sequence[Program] = ()) -> list[str]:
        """Make known the programs of an agent that starts.

        They come first, in their order; ``last`` ones come after all others. One whose name a
        person has registered is left out: gives the names of those.
        """
        with self._db.transaction("make the programs known") as execute:
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
        with self._db.transaction("deregister the programs") as execute:
            execute("DELETE FROM registrations WHERE owner = 'run'")

    def register(self, program: Program) -> bool:
        """Register a person's program; true if it took the place of another of that name."""
        with self._db.transaction("register") as execute:
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
        with self._db.transaction("deregister") as execute:
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
    def _bounds(execute: Execute, below: int = 1 << 62) -> tuple[int, int]:
        row = execute(
            "SELECT coalesce(min(position), 1), coalesce(max(position), 0) FROM registrations"
            " WHERE position < ?",
            (below,),
        ).fetchone()
        return int(row[0]), int(row[1])

    def _insert(self, execute: Execute, program: Program, owner: Owner, position: int) -> None:
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
                self._db.stamp(),
            ),
        )
