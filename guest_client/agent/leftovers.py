"""Ends what a dead agent's unfinished runs left behind, before they are run again.

Every process of a run has the run's ID in its environment. Under systemd there is nothing to find:
it has ended the whole control group by then. Elsewhere the killed agent's program may still be at
work, and one program must not run twice at once.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from guest_client.agent.facts import RUN_VARIABLE

GRACE = 5.0
_ROUNDS = 4


def end_leftovers(run_ids: Collection[str], grace: float = GRACE) -> int:
    """End every process of these runs: asked first, then killed. Gives the number found.

    One that even SIGKILL does not end (it hangs in the kernel) is left alone in the end.
    """
    found = _processes(run_ids)
    signum = signal.SIGTERM
    left = found
    for _ in range(_ROUNDS):  # more than two, for those that are born meanwhile
        if not left:
            break
        _signal(left, signum)
        _wait(left, grace)
        left, signum = _processes(run_ids), signal.SIGKILL
    return len(found)


def _processes(run_ids: Collection[str]) -> list[int]:
    marks = {f"{RUN_VARIABLE}={run_id}".encode() for run_id in run_ids}
    found = []
    for entry in Path("/proc").iterdir() if marks else ():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):  # it has ended, or is not ours to look at
            if marks & set((entry / "environ").read_bytes().split(b"\0")):
                found.append(int(entry.name))
    return found


def _signal(pids: Collection[int], signum: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)


def _wait(pids: Collection[int], seconds: float) -> None:
    """Wait until all have ended, or the time is up."""
    waiting = select.poll()
    fds = []
    for pid in pids:
        with suppress(OSError):
            fds.append(os.pidfd_open(pid))
            waiting.register(fds[-1], select.POLLIN)
    left = len(fds)
    while left:
        ready = waiting.poll(seconds * 1000)
        if not ready:
            break
        for fd, _ in ready:
            waiting.unregister(fd)
        left -= len(ready)
    for fd in fds:
        os.close(fd)
