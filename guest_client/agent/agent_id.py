"""The built-in program: an agent ID, a UUID in a file, shown and regenerated.

Two files::

    FILE             one line: the agent ID. What other programs read
    FILE.history     JSON: the present ID, the one before, when and for which trigger it was made

The history is written first. For a trigger that it names there is an ID already: asked again for
the same one (a run that was cut off, a second scan that the same migration crossed) it gives that
ID, and sees that FILE has it. Each file has its old content or its new one, also after a crash.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from guest_client.errors import StateError, StateNotMade
from guest_client.output import write_whole
from guest_client.text import printable
from guest_client.times import WallClock, rfc3339, utc_now

FILE = "agent-id"
_LARGEST = 4096


@dataclass(frozen=True)
class AgentId:
    """The agent ID, and the one before it. ``trigger`` is the key that it was made for."""

    id: str
    previous: str | None = None
    trigger: str | None = None
    generated_at: str | None = None


def read_id(path: Path) -> str | None:
    """Read the first line of any agent ID file, whoever keeps it; ``None`` if there is none."""
    try:
        with path.open("rb") as stream:
            lines = stream.read(_LARGEST).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"can't read the agent ID {path}: {error.strerror}") from error
    line = lines[0].strip() if lines else ""
    return printable(line) or None


def id_before(path: Path, trigger: str) -> str | None:
    """Give the agent ID from before a trigger, also if that has been dealt with already."""
    history = _history(path)
    if history is not None and history.trigger == trigger:
        return history.previous
    return read_id(path)


def show(path: Path, new: Callable[[], uuid.UUID] = uuid.uuid4) -> AgentId:
    """Give the agent ID; a first one is made if there is none. Raises :class:`StateError`."""
    present = read_id(path)
    if present is None:
        with _lock(path):
            present = read_id(path)
            if present is None:
                history = _history(path)
                made = history or AgentId(str(new()), generated_at=rfc3339(utc_now()))
                _keep(path, made)
                return made
    history = _history(path)
    return history if history is not None and history.id == present else AgentId(present)


def regenerate(
    path: Path,
    trigger: str | None,
    new: Callable[[], uuid.UUID] = uuid.uuid4,
    now: WallClock = utc_now,
) -> AgentId:
    """Make a new agent ID, once for each ``trigger`` if one is given.

    Raises :class:`StateError`.
    """
    with _lock(path):
        history = _history(path)
        if history is not None and trigger is not None and history.trigger == trigger:
            made = history
        else:
            made = AgentId(str(new()), read_id(path), trigger, rfc3339(now()))
        _keep(path, made)
    return made


def _keep(path: Path, made: AgentId) -> None:
    try:
        content = json.dumps(asdict(made), indent=2).encode() + b"\n"
        write_whole(_history_file(path), content)
        write_whole(path, made.id.encode() + b"\n")
        path.chmod(0o644)  # an agent ID is no secret: whoever reports under it reads it
    except OSError as error:
        raise StateError(
            f"can't write the agent ID {path}: {error.strerror}; make room, mend its folder's mode"
            " and owner, or name another file (--file)"
        ) from error


def _history(path: Path) -> AgentId | None:
    """Read the history; one that is damaged is none, and will be written anew."""
    try:
        return AgentId(**json.loads(_history_file(path).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    except OSError as error:
        raise StateError(f"can't read {_history_file(path)}: {error.strerror}") from error


def _history_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.history")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Keep others from making an ID at the same time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The folder itself: a lock file beside every agent ID would be one file too many.
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StateNotMade(
            f"can't make the agent ID's folder {path.parent}: {error.strerror}; make it, or name"
            " another file (--file)"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
