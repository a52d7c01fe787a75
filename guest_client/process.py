"""Runs a program and makes sure that it ends when we do.

Process groups
--------------
With a controlling terminal the program shares our process group: Ctrl-C and Ctrl-Z reach it from
the terminal itself, and it may ask for a password there. A signal sent to us alone is passed on.

Without one (cron, systemd, another program) it gets a session, and so a process group, of its own,
and a signal to us is passed on to all of that group, so that what a shell script has started ends
as well.

What does not end :data:`GRACE` seconds after it was asked is killed, and so are those of its own
group that outlive it then.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from guest_client.errors import ScannerError, ScannerNotFound
from guest_client.signals import SignalCatcher
from guest_client.text import printable
from guest_client.times import rfc3339, utc_now

GRACE = 5.0
TERMINAL_HEAD_START = 1.0
"""Seconds that the terminal's own signal has to end a program before we pass ours on."""


@dataclass(frozen=True)
class Ended:
    """How a program ended: with an exit code, or by a signal; between two times of day."""

    started: str
    finished: str
    exit_code: int | None
    signal: str | None

    @property
    def shell_code(self) -> int:
        """The exit code as a shell has it: 128 and the signal's number when it was killed."""
        if self.exit_code is not None:
            return self.exit_code
        return 128 + signal.Signals[self.signal or "SIGKILL"]


def find_program(name: str, what: str = "scanner") -> str:
    """Find what ``name`` would run, as a shell does.

    Raises :class:`ScannerNotFound`, or :class:`ScannerError` when it is there and can't be run.
    """
    shown = printable(name)
    if not name:
        raise ScannerNotFound(f"the {what}'s name is empty; name the program to run")
    found = shutil.which(name)
    if found is not None:
        return found
    if "/" in name:
        candidates = [Path(name)]
    else:
        candidates = [Path(part or ".") / name for part in os.get_exec_path()]
    for candidate in candidates:
        if candidate.is_dir() and "/" in name:
            raise ScannerError(f"the {what} {shown} is a directory; name the program in it")
        if candidate.is_file():
            raise ScannerError(
                f"the {what} {candidate} is not executable; chmod +x would make it so"
            )
    where = "there is no such file" if "/" in name else "no such program on PATH"
    raise ScannerNotFound(
        f"the {what} {shown} can't be found: {where}; install it, or give its full path"
    )


def run(
    argv: Sequence[str],
    catcher: SignalCatcher,
    *,
    stdin: IO[bytes] | int | None = None,
    stdout: IO[bytes] | int | None = None,
    environment: Mapping[str, str] | None = None,
    limit: float | None = None,
) -> Ended:
    """Run a program to its end. When a signal ended it, ``catcher.check()`` afterwards raises that.

    ``limit`` is in seconds; a program that takes longer is asked to end, then killed. Raises
    :class:`ScannerError` when it can't be started.
    """
    own_group = not _have_terminal()
    with catcher.held():
        seen = len(catcher.caught)
        started = rfc3339(utc_now())
        process = _start(argv, stdin, stdout, environment, own_group)
        asked = _see_to_its_end(process, catcher, seen, own_group, limit)
        if asked and own_group:
            os.killpg(process.pid, signal.SIGKILL)  # its group is there until we take its exit code
        code = process.wait()
    return Ended(
        started,
        rfc3339(utc_now()),
        exit_code=code if code >= 0 else None,
        signal=signal.Signals(-code).name if code < 0 else None,
    )


def _start(
    argv: Sequence[str],
    stdin: IO[bytes] | int | None,
    stdout: IO[bytes] | int | None,
    environment: Mapping[str, str] | None,
    own_group: bool,
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=stdout,
            env=environment,
            start_new_session=own_group,
        )
    except OSError as error:
        shown = printable(argv[0])
        if error.errno == errno.ENOEXEC:
            cause = "it is no program of this machine, nor a script with a #! line"
        elif error.errno == errno.ENOENT:
            cause = "the interpreter that its first line names is not there"
        else:
            cause = error.strerror or str(error)
        raise ScannerError(f"{shown} can't be run: {cause}") from error
    except ValueError as error:  # a NUL inside an argument
        raise ScannerError(f"{printable(argv[0])} can't be run: {error}") from error


def _see_to_its_end(
    process: subprocess.Popen[bytes],
    catcher: SignalCatcher,
    passed_on: int,
    own_group: bool,
    limit: float | None,
) -> bool:
    """Wait until it has ended; pass on what asks us to end, and kill it when it does not heed that.

    ``passed_on`` counts the caught signals that are old news. Tells whether it was asked to end.
    Its exit code is left to be taken, so that its number, and its group's, can't become another's.
    """
    asked = False
    give_up = None if limit is None else time.monotonic() + limit
    while not catcher.wait(process.pid, _until(give_up)):
        new = catcher.caught[passed_on:]
        passed_on += len(new)
        for signum in new:
            if not own_group and signum != signal.SIGTERM and not asked:
                # The terminal has sent it to the program, too: twice would cut its clean-up short.
                catcher.wait(process.pid, TERMINAL_HEAD_START)
            _send(process, signum, own_group)
        if not new and _until(give_up) == 0:
            _send(process, signal.SIGKILL if asked else signal.SIGTERM, own_group)
            new = [signal.SIGTERM]
        if new:
            asked, give_up = True, time.monotonic() + GRACE
    return asked


def _until(moment: float | None) -> float | None:
    return None if moment is None else max(0.0, moment - time.monotonic())


def _send(process: subprocess.Popen[bytes], signum: int, own_group: bool) -> None:
    if own_group:
        os.killpg(process.pid, signum)
    else:
        os.kill(process.pid, signum)


def _have_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
