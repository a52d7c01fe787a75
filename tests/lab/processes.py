"""Processes that the lab starts: each is written down, so that another process can end it.

A process is known by its pid together with its start time, since pids are used again. Only
processes that were written down here, or that run in one of the lab's own network namespaces
(`network.py`), are ever signalled.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.lab.commands import ENVIRONMENT
from tests.lab.errors import LabError

#: Children of this very process, kept so that they are reaped when they end.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, slots=True)
class Process:
    """One process, told apart from later ones with the same pid by its start time."""

    pid: int
    started: int  # clock ticks since boot, field 22 of /proc/PID/stat

    @property
    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        if child := _children.get(self.pid):
            child.poll()
        return start_time(self.pid) == self.started

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if the process is still there."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, seconds: float) -> bool:
        """Wait for the end; False when it still runs after so many seconds."""
        return wait_until(lambda: not self.alive, seconds)


def start_time(pid: int) -> int | None:
    """The start time of a pid, or None when no such process runs."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def wait_until(condition: Callable[[], bool], seconds: float, pause: float = 0.02) -> bool:
    """Wait for a condition; False when it does not hold after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


class Service:
    """One long-running program of a host: libvirtd, the enabler, the event recorder.

    It can be started, stopped as an admin would, killed, frozen (SIGSTOP) and thawed; what
    it prints goes to `log`.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        argv: Callable[[], Sequence[str]],
        ready: Callable[[], bool],
        *,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = directory / "log" / f"{name}.log"
        self.env = dict(env or {})
        self._record = directory / "processes" / f"{name}.json"
        self._argv = argv
        self._ready = ready

    @property
    def process(self) -> Process | None:
        """The process that was started last, whether it still runs or not."""
        try:
            return Process(**json.loads(self._record.read_text()))
        except FileNotFoundError:
            return None

    @property
    def running(self) -> bool:
        """Whether the process is there (frozen or not)."""
        process = self.process
        return process is not None and process.alive

    def start(self, *, wait: bool = True, seconds: float = 30) -> None:
        """Start it, if it is not running, and wait until it is ready.

        Raises:
            LabError: it ended at once or is not ready in time; the message has its last lines.
        """
        if not self.running:
            self._spawn()
        if wait:
            self.wait_ready(seconds)

    def wait_ready(self, seconds: float = 30) -> None:
        """Wait until it does its work."""
        usable = wait_until(lambda: not self.running or self._ready(), seconds, 0.05)
        if not usable or not self.running:
            what = "is not ready in time" if self.running else "ended while starting"
            raise LabError(f"{self.name} {what}; the end of {self.log}:\n{self.tail()}")

    def stop(self, seconds: float = 15) -> None:
        """End it with SIGTERM, as an admin would.

        Raises:
            LabError: it does not end in time.
        """
        process = self.process
        if process is None:
            return
        process.signal(signal.SIGTERM)
        if not process.wait(seconds):
            raise LabError(f"{self.name} ignores SIGTERM; the end of {self.log}:\n{self.tail()}")

    def kill(self) -> None:
        """End it with SIGKILL."""
        if process := self.process:
            process.signal(signal.SIGKILL)
            process.wait(10)

    def restart(self) -> None:
        """Stop it, start it again, and wait until it is ready."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: it is there and says nothing."""
        if process := self.process:
            process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        if process := self.process:
            process.signal(signal.SIGCONT)

    def tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        if not self.log.exists():
            return "(nothing)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _spawn(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._record.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                self._argv(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**ENVIRONMENT, **self.env},
                start_new_session=True,
            )
        _children[child.pid] = child
        started = start_time(child.pid)
        if started is None:
            raise LabError(f"{self.name} ended at once; the end of {self.log}:\n{self.tail()}")
        new = self._record.with_suffix(".new")
        new.write_text(json.dumps(asdict(Process(child.pid, started))))
        new.rename(self._record)
