"""The state file as a thing that is read, and changed in transactions.

A transaction is on disk when it ends, or has changed nothing. All errors are
:class:`~guest_client.errors.StateError`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from guest_client.agent import schema
from guest_client.times import WallClock, rfc3339, utc_now

Execute = Callable[..., sqlite3.Cursor]
_Self = TypeVar("_Self", bound="Database")


class Database:
    """The state file under ``state_dir``, on a connection of our own; made if it is not there."""

    def __init__(self, state_dir: Path, *, now: WallClock = utc_now) -> None:
        self.path = state_dir / schema.FILE
        self._now = now
        self._connection = schema.open_database(self.path)

    def __enter__(self: _Self) -> _Self:
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
    def transaction(self, label: str) -> Iterator[Execute]:
        """Do what is inside as one change, or not at all. ``label`` names the change."""
        with schema.as_state_error(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.execute
                self.commit(label)
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def commit(self, label: str) -> None:
        """Make a change last: the one place where a process can die between before and after."""
        self._connection.execute("COMMIT")

    def read(self, query: str, *values: object) -> list[sqlite3.Row]:
        """Give what a query finds."""
        with schema.as_state_error(self.path):
            return self._connection.execute(query, values).fetchall()

    def stamp(self) -> str:
        """Give the time of day, as the tables have it."""
        return rfc3339(self._now())
