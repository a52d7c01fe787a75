"""One agent for one state: the lock, and who holds it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from guest_client.errors import AgentRunning, StateNotMade

FILE = "agent.lock"
_TRIES = 5
_PAUSE = 0.02


class AgentLock:
    """Held while an agent runs; the kernel takes it back however the agent ends."""

    def __init__(self, state_dir: Path, started_at: str) -> None:
        """Take the lock; raises :class:`AgentRunning`, or :class:`StateNotMade`."""
        self.path = state_dir / FILE
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if not _take(self._fd):
                os.close(self._fd)
                raise AgentRunning(
                    f"an agent has the state {state_dir} already ({_words(holder(state_dir))}); end"
                    " that one with `guest-client agent stop`, or name another folder"
                    " (--state-dir)"
                )
            content = json.dumps({"pid": os.getpid(), "started_at": started_at}).encode()
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, content, 0)
        except OSError as error:
            raise StateNotMade(
                f"can't lock the agent's state with {self.path}: {error.strerror}; make room, mend"
                " the folder's mode and owner, or name another (--state-dir)"
            ) from error

    def __enter__(self) -> AgentLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)


def _take(fd: int) -> bool:
    for _ in range(_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE)  # `holder` may be asking, which takes it for an instant
        else:
            return True
    return False


def holder(state_dir: Path) -> dict[str, Any] | None:
    """Say who has the lock: ``pid`` and ``started_at``, empty if they can't be read; else ``None``.

    Raises :class:`StateNotMade` when that can't be found out.
    """
    path = state_dir / FILE
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateNotMade(
            f"can't read {path}: {error.strerror}; run as the agent's own user"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(fd)
    finally:
        os.close(fd)
    return None


def _read(fd: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(fd, 4096, 0))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _words(found: dict[str, Any] | None) -> str:
    if not found:
        return "its process is not known"
    return f"process {found.get('pid')}, since {found.get('started_at')}"
