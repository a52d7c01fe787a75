"""The spool: what this host has to tell, on its disk until the servers have it.

One SQLite file. An event is in it, in order, before anything is sent, and leaves it when the
stream has it: a crash, a kill -9 or a power cut loses nothing that is in it and sends nothing out
of order. What was sent when the crash came is sent again, under the same ID.

It is bounded. When it is full the oldest events make room, as the newest say where the VMs are;
what was given up is counted, and told as an event when there is somebody to tell (`Spool.lost`).

Beside the events it keeps each VM's last one (`known`): what the bucket of the VMs is to hold, and
what an enabler that starts finds to compare with what it sees: a VM that left while it was down is
told to have left.

For one thread.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enabler.errors import SpoolError
from enabler.fleet.event import RECORDED, Event, Mark

log = logging.getLogger(__name__)

FILE = "spool.sqlite"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS event (
    number INTEGER PRIMARY KEY, happened REAL NOT NULL, content BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS known (
    vm TEXT PRIMARY KEY, number INTEGER NOT NULL, residency TEXT NOT NULL, here INTEGER NOT NULL,
    settled INTEGER NOT NULL, content BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS unsettled ON known (number) WHERE NOT settled;
"""
_ROOM = 0.9
"""What of the limit is kept when the oldest make room: not one by one."""
_EACH = 64
"""Bytes that a row takes beside its content, about."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """An event in the spool."""

    number: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Known:
    """A VM's last event."""

    vm: str
    number: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """Events that were given up: how many, and when the first and the last of them happened."""

    count: int
    since: float
    until: float


class Spool:
    """The spool in a folder. ``limit`` is in bytes. Raises `SpoolError`."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._limit = limit
        self._sending: int | None = None
        file = folder / FILE
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._database = self._open(file)
        except OSError as error:
            raise _cannot(file, error.strerror or str(error)) from error
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise SpoolError(
                    f"another enabler uses the spool {file}; "
                    "stop it, or give this one another folder (fleet.spool)"
                ) from error
            raise _cannot(file, str(error)) from error
        except sqlite3.DatabaseError as error:
            log.error("the spool %s can't be read (%s) and is put aside", file, error)
            file.rename(file.with_name(f"{FILE}.broken-{int(time.time())}"))
            for more in ("-wal", "-shm"):
                file.with_name(FILE + more).unlink(missing_ok=True)
            self._database = self._open(file)
        with self._database:
            made = f"{int(time.time() * 1000):x}"
            self._database.execute("INSERT OR IGNORE INTO meta VALUES ('spool', ?)", (made,))
        self.id = self._meta("spool", made)
        """When the spool was made: in hex, milliseconds since 1970."""
        self._last = int(self._meta("last", "0"))
        self._count, self._bytes = self._one(
            "SELECT count(*), coalesce(sum(length(content)), 0) FROM event"
        )
        self._bytes += self._count * _EACH

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @property
    def count(self) -> int:
        """How many events wait."""
        return int(self._count)

    @property
    def size(self) -> int:
        """How many bytes they have, about."""
        return int(self._bytes)

    @property
    def last(self) -> int:
        """The number of the last event that there was."""
        return self._last

    @property
    def oldest(self) -> float | None:
        """When the oldest event that waits happened: seconds since 1970."""
        row = self._one("SELECT happened FROM event ORDER BY number LIMIT 1")
        return None if row is None else float(row[0])

    # In ------------------------------------------------------------------------------------------

    def append(self, makers: Iterable[Callable[[Mark], Event]]) -> list[Event]:
        """Take events in, all or none; each is made with its mark. Raises `SpoolError`."""
        last, events = self._last, []
        for make in makers:
            last += 1
            events.append(make(Mark(self.id, last)))
        with self._transaction():
            for event in events:
                self._insert(event)
            self._set("last", str(last))
            count = self._count + len(events)
            size = self._bytes + sum(len(event.encode()) + _EACH for event in events)
            count, size = self._make_room(count, size)
        self._last, self._count, self._bytes = last, count, size
        return events

    def _insert(self, event: Event) -> None:
        content = event.encode()
        self._database.execute(
            "INSERT INTO event VALUES (?, ?, ?)",
            (event.mark.number, event.time.timestamp(), content),
        )
        if event.vm is not None and event.kind != RECORDED:
            self._database.execute(
                "INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?, 0, ?)",
                (event.vm, event.mark.number, event.residency, event.here, content),
            )

    def _make_room(self, count: int, size: int) -> tuple[int, int]:
        if size <= self._limit:
            return count, size
        given_up: list[tuple[int, float]] = []
        rows = self._database.execute(
            "SELECT number, happened, length(content) FROM event WHERE number IS NOT ?"
            " ORDER BY number",
            (self._sending,),
        )
        for number, happened, length in rows:
            if size <= self._limit * _ROOM:
                break
            given_up.append((number, happened))
            count, size = count - 1, size - length - _EACH
        rows.close()
        self._database.executemany(
            "DELETE FROM event WHERE number = ?", [(number,) for number, _ in given_up]
        )
        times = [happened for _, happened in given_up]
        before = self.lost
        lost = Lost(len(times), min(times), max(times))
        if before is not None:
            lost = Lost(
                before.count + lost.count,
                min(before.since, lost.since),
                max(before.until, lost.until),
            )
        self._set("lost", json.dumps([lost.count, lost.since, lost.until]))
        log.error("the spool is full: the oldest %d events were given up", len(given_up))
        return count, size

    @property
    def lost(self) -> Lost | None:
        """What was given up and is not told yet."""
        text = self._meta("lost", "")
        return Lost(*json.loads(text)) if text else None

    def tell_lost(self, make: Callable[[Mark, Lost], Event]) -> None:
        """Take the event in that tells what was given up; it is told then."""
        lost = self.lost
        if lost is None:
            return
        mark = Mark(self.id, self._last + 1)
        event = make(mark, lost)
        with self._transaction():
            self._insert(event)
            self._set("last", str(mark.number))
            self._set("lost", "")
        self._last, self._count = mark.number, self._count + 1
        self._bytes += len(event.encode()) + _EACH

    # Out -----------------------------------------------------------------------------------------

    def first(self) -> Waiting | None:
        """Return the oldest event, which is being sent from now on."""
        row = self._one("SELECT number, content FROM event ORDER BY number LIMIT 1")
        self._sending = None if row is None else row[0]
        return None if row is None else Waiting(*row)

    def sent(self, waiting: Waiting) -> None:
        """The stream has this event."""
        with self._transaction():
            self._database.execute("DELETE FROM event WHERE number = ?", (waiting.number,))
        self._sending = None
        self._count, self._bytes = self._count - 1, self._bytes - len(waiting.content) - _EACH

    def unsettled(self, until: int) -> Known | None:
        """Return a VM whose last event the bucket may lack: of those up to a number."""
        row = self._one(
            "SELECT vm, number, content FROM known WHERE NOT settled AND number <= ?"
            " ORDER BY number LIMIT 1",
            (until,),
        )
        return None if row is None else Known(*row)

    def settle(self, known: Known) -> None:
        """The bucket holds this event, or a later one; of a VM that left, no more need be known."""
        with self._transaction():
            self._database.execute(
                "DELETE FROM known WHERE vm = ? AND number = ? AND NOT here",
                (known.vm, known.number),
            )
            self._database.execute(
                "UPDATE known SET settled = 1 WHERE vm = ? AND number = ?",
                (known.vm, known.number),
            )

    def unsettle(self) -> None:
        """See that the bucket is looked at again for every VM."""
        with self._transaction():
            self._database.execute("UPDATE known SET settled = 0 WHERE settled")

    def here(self) -> dict[str, bytes]:
        """Return the last event of each VM that was here, as far as was told."""
        return dict(self._database.execute("SELECT vm, content FROM known WHERE here"))

    # Inside --------------------------------------------------------------------------------------

    def _open(self, file: Path) -> sqlite3.Connection:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(handle)
        database = sqlite3.connect(file, isolation_level=None, timeout=1)
        try:
            # The lock is kept for good: nobody else may take events out.
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute("BEGIN IMMEDIATE")
            database.execute("COMMIT")
            database.executescript(_SCHEMA)
        except BaseException:
            database.close()
            raise
        return database

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise SpoolError(f"the spool can't be written: {error}; is the disk full?") from error

    def _one(self, query: str, parameters: tuple[object, ...] = ()) -> Any:
        try:
            return self._database.execute(query, parameters).fetchone()
        except sqlite3.Error as error:
            raise SpoolError(f"the spool can't be read: {error}; see to the disk") from error

    def _meta(self, name: str, default: str) -> str:
        row = self._database.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return default if row is None else str(row[0])

    def _set(self, name: str, value: str) -> None:
        self._database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def _cannot(file: Path, why: str) -> SpoolError:
    return SpoolError(
        f"the spool {file} can't be used: {why}; "
        "see that the folder fleet.spool is the service's user's, and that there is room"
    )
