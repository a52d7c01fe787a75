"""The state file: its tables, and opening it so that what is written is there after a crash.

One SQLite file, ``STATE_DIR/agent.db``, with its ``-wal`` and ``-shm`` beside it. ``user_version``
is the schema's; a later client's is refused, an earlier one's is brought up by the statements of
the versions between. ``synchronous=FULL``: a commit is on disk when it returns.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guest_client.errors import StateError, StateFromLater, StateNotMade

FILE = "agent.db"
BUSY_TIMEOUT = 10.0
"""Seconds to wait for another process's transaction; ours take milliseconds."""
_LITTLE_ROOM = 64 * 1024
"""Bytes; SQLite wants 32 KiB for the shared index of its log, and some for the log."""
APPLICATION_ID = 0x766D6167
"""Marks the file as ours (``file`` shows it)."""

_VERSION_1 = """
CREATE TABLE registrations (
    position INTEGER PRIMARY KEY,            -- programs are run in this order
    name TEXT NOT NULL UNIQUE,
    command TEXT NOT NULL,                   -- JSON array
    phases TEXT NOT NULL,                    -- JSON array
    timeout REAL NOT NULL,                   -- seconds
    tries INTEGER NOT NULL,
    user TEXT,
    owner TEXT NOT NULL CHECK (owner IN ('person', 'run')),
    registered_at TEXT NOT NULL
);

CREATE TABLE known (                         -- the identity that was last seen: one row
    id INTEGER PRIMARY KEY CHECK (id = 1),
    document BLOB NOT NULL,                  -- as the enabler sent it
    vm_uuid TEXT NOT NULL,
    generation_id TEXT,
    component_id TEXT NOT NULL,
    residency_id TEXT NOT NULL,
    migrating INTEGER NOT NULL,
    attempts INTEGER NOT NULL,               -- migrations begun in this residency
    noted_at TEXT NOT NULL
);

CREATE TABLE triggers (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,                -- the same migration triggers once
    state TEXT NOT NULL CHECK (state IN ('recorded', 'planned', 'done', 'superseded')),
    phase TEXT NOT NULL,
    reason TEXT NOT NULL,
    changes TEXT NOT NULL,                   -- JSON array
    sentence TEXT NOT NULL,
    source TEXT NOT NULL,                    -- watch, scan, hand
    detected_at TEXT NOT NULL,
    recorded_at TEXT NOT NULL,
    before TEXT,                             -- identity document
    after TEXT,
    vm_uuid TEXT,                            -- whose trigger it is
    old_agent_id TEXT,
    new_agent_id TEXT,
    planned_at TEXT,
    completed_at TEXT,
    event_id TEXT
);
CREATE INDEX triggers_unfinished ON triggers (seq) WHERE state IN ('recorded', 'planned');

CREATE TABLE jobs (                          -- one program for one trigger, as it was registered
    trigger INTEGER NOT NULL REFERENCES triggers (seq) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    name TEXT NOT NULL,
    command TEXT NOT NULL,
    timeout REAL NOT NULL,
    user TEXT,
    tries_allowed INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('due', 'running', 'ok', 'failed', 'cancelled')),
    tries INTEGER NOT NULL,
    not_before REAL NOT NULL,                -- seconds since 1970
    PRIMARY KEY (trigger, name)
);

CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    trigger INTEGER NOT NULL,
    name TEXT NOT NULL,
    number INTEGER NOT NULL,
    started_at TEXT NOT NULL,
    ended_at TEXT,
    outcome TEXT NOT NULL,
    exit_code INTEGER,
    signal TEXT,
    problem TEXT,
    output TEXT NOT NULL,
    UNIQUE (trigger, name, number),
    FOREIGN KEY (trigger, name) REFERENCES jobs (trigger, name) ON DELETE CASCADE
);

CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,   -- the order of sending, for each URL
    event_id TEXT NOT NULL,
    url TEXT NOT NULL,
    trigger INTEGER NOT NULL REFERENCES triggers (seq) ON DELETE CASCADE,
    body BLOB NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'delivered', 'discarded')),
    tries INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    ended_at TEXT,
    UNIQUE (event_id, url)
);
CREATE INDEX outbox_waiting ON outbox (url, seq) WHERE state = 'waiting';

CREATE TABLE roads (                         -- what stands in the way to a URL
    url TEXT PRIMARY KEY,
    failures INTEGER NOT NULL,
    not_before REAL NOT NULL,
    gone INTEGER NOT NULL,
    problem TEXT
);
"""
_STEPS = (_VERSION_1,)
VERSION = len(_STEPS)


def open_database(path: Path) -> sqlite3.Connection:
    """Open the state file, making it if it is not there; raises :class:`StateError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Programs' outputs are in it: nobody else's business.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StateNotMade(
            f"can't make or open the agent's state {path}: {error.strerror}; mend the folder's mode"
            " and owner, run as its owner, or name another (--state-dir)"
        ) from error
    with as_state_error(path):
        connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=True
        )
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if version == VERSION and application == APPLICATION_ID:
        return
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have made the tables while we waited.
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application != APPLICATION_ID:
            raise StateError(
                f"{path} is a database, but not the agent's; move it away, or name another folder"
                " (--state-dir)"
            )
        if version > VERSION:
            raise StateFromLater(
                f"the agent's state {path} was written by a later guest-client (schema {version},"
                f" this one knows {VERSION}); install that version, or name another folder"
                " (--state-dir)"
            )
        for step in _STEPS[version:]:
            for statement in step.split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION:d}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID:d}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def check(connection: sqlite3.Connection, path: Path) -> None:
    """Read the whole file, and raise :class:`StateError` if it is damaged."""
    with as_state_error(path):
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise StateError(_damaged(path, found))


@contextmanager
def as_state_error(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into :class:`StateError`, each with its remedy."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", None) or _ERROR_NAMES.get(str(error), "")
        if name.startswith("SQLITE_FULL") or (name.startswith("SQLITE_IOERR") and _is_full(path)):
            raise StateError(
                f"can't write the agent's state {path}: the disk is full; make room, what was on"
                " disk before is safe"
            ) from error
        if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            raise StateNotMade(
                f"can't write the agent's state {path}: {error}; mend the mode and owner of the"
                " file and its folder, or name another folder (--state-dir)"
            ) from error
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise StateError(
                f"the agent's state {path} has been kept locked for {BUSY_TIMEOUT:g} s; find out"
                " who holds it (`fuser`)"
            ) from error
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            raise StateError(_damaged(path, str(error))) from error
        raise StateError(
            f"can't read or write the agent's state {path}: {error}; look at the disk"
        ) from error


# What SQLite says of each: until Python 3.11 its words are all that there is.
_ERROR_NAMES = {
    "database or disk is full": "SQLITE_FULL",
    "disk I/O error": "SQLITE_IOERR",
    "attempt to write a readonly database": "SQLITE_READONLY",
    "unable to open database file": "SQLITE_CANTOPEN",
    "access permission denied": "SQLITE_PERM",
    "database is locked": "SQLITE_BUSY",
    "database table is locked": "SQLITE_LOCKED",
    "database disk image is malformed": "SQLITE_CORRUPT",
    "file is not a database": "SQLITE_NOTADB",
}


def _is_full(path: Path) -> bool:
    """Whether there is no room for SQLite's own files, which it calls an I/O error."""
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < _LITTLE_ROOM


def _damaged(path: Path, found: str) -> str:
    return (
        f"the agent's state {path} is damaged ({found}); put a copy back, or move it and its -wal"
        " and -shm away: then the agent begins anew, and what was not finished must be triggered"
        " by hand (`guest-client agent trigger`)"
    )
