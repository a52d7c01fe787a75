"""Runs one registered program to its end, and makes sure that there is one.

    it gets      the facts as JSON on its standard input and in its environment; "/" as its folder;
                 a process group of its own; with ``user``, that user's rights and groups alone
    it gives     its exit code; 0 is success, all else, and a signal, is failure
    it prints    the end of both outputs is kept (:data:`KEPT_OUTPUT` bytes)
    it takes     at most its timeout: then its whole group is asked to end, and killed
                 :data:`GRACE` seconds later

What it has started and left behind goes on when it ends by itself, as with any service manager's
hook; but its output is no longer read. A program that starts a daemon should redirect the daemon's.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pwd
import signal
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from guest_client.agent.model import Outcome, Result
from guest_client.agent.settings import Program
from guest_client.text import printable

GRACE = 5.0
KEPT_OUTPUT = 16 * 1024


async def run_program(
    program: Program,
    facts: Mapping[str, Any],
    environment: Mapping[str, str],
    stop: asyncio.Event,
    grace: float = GRACE,
) -> Result:
    """Run it. When ``stop`` is set meanwhile it is ended, and the outcome is ``interrupted``."""
    output = _Output()
    stdin = _file_with(json.dumps(facts).encode())
    try:
        process = _start(program, environment, stdin, output.writing)
    except (OSError, KeyError, ValueError) as error:
        output.close()
        return Result(Outcome.UNSTARTED, problem=_why_not(program, error))
    finally:
        os.close(stdin)
    try:
        output.listen()
        outcome = await _see_to_its_end(process, program.timeout, stop, grace)
    finally:
        if not _has_ended(process.pid):  # we are being cancelled: nothing may be left running
            _signal_group(process.pid, signal.SIGKILL)
        code = process.wait()
        output.close()
    name = _signal_name(-code) if code < 0 else None
    if outcome is Outcome.OK and code != 0:
        outcome = Outcome.FAILED
    return Result(
        outcome,
        exit_code=code if code >= 0 else None,
        signal=name,
        problem=_problem(outcome, program, code, name),
        output=output.text(),
    )


async def _see_to_its_end(
    process: subprocess.Popen[bytes], limit: float, stop: asyncio.Event, grace: float
) -> Outcome:
    """Wait until it has ended, and end it if need be. Its exit code is left to be taken.

    Until that is taken, its number, and its group's, can't become another process's.
    """
    ended = _ended(process.pid)
    stopping = asyncio.ensure_future(stop.wait())
    either: list[asyncio.Future[Any]] = [ended, stopping]
    try:
        await asyncio.wait(either, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return Outcome.OK
        outcome = Outcome.INTERRUPTED if stopping.done() else Outcome.TIMEOUT
        _signal_group(process.pid, signal.SIGTERM)
        await asyncio.wait([ended], timeout=grace)
        _signal_group(process.pid, signal.SIGKILL)
        await ended
        return outcome
    finally:
        stopping.cancel()


def _ended(pid: int) -> asyncio.Future[None]:
    """Give a future that is done when a child has ended."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def settle() -> None:
        if not future.done():
            future.set_result(None)

    def wait() -> None:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(settle)

    threading.Thread(target=wait, name=f"wait for {pid}", daemon=True).start()
    return future


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _signal_group(group: int, signum: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signum)


def _signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:  # the real-time signals between the first and the last have no names
        return f"signal {signum}"


def _start(
    program: Program, environment: Mapping[str, str], stdin: int, stdout: int
) -> subprocess.Popen[bytes]:
    env = dict(environment)
    rights: dict[str, Any] = {}
    if program.user is not None:
        account = pwd.getpwnam(program.user)
        env |= {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name}
        if account.pw_uid != os.geteuid():
            rights = {
                "user": account.pw_uid,
                "group": account.pw_gid,
                "extra_groups": os.getgrouplist(account.pw_name, account.pw_gid),
            }
    return subprocess.Popen(
        list(program.command),
        stdin=stdin,
        stdout=stdout,
        stderr=stdout,
        env=env,
        cwd="/",
        start_new_session=True,
        umask=0o022,
        **rights,
    )


def _why_not(program: Program, error: Exception) -> str:
    shown = printable(program.command[0])
    if isinstance(error, KeyError):
        return f"there is no user {printable(program.user or '')} on this system; register another"
    if isinstance(error, ValueError):
        return f"{shown} can't be run: {error}"
    if isinstance(error, OSError):
        if error.errno == errno.ENOENT:
            return f"{shown} can't be found; install it, or give its full path"
        if error.errno == errno.EACCES:
            return f"{shown} may not be run by this user; look at its mode"
        if error.errno == errno.EPERM and program.user is not None:
            return f"only root may run {shown} as {program.user}; run the agent as root"
        if error.errno == errno.ENOEXEC:
            return f"{shown} is no program of this machine, nor a script with a #! line"
        return f"{shown} can't be run: {error.strerror}"
    raise error


def _problem(outcome: Outcome, program: Program, code: int, signal_name: str | None) -> str | None:
    if outcome is Outcome.OK:
        return None
    if outcome is Outcome.TIMEOUT:
        return f"it took longer than {program.timeout:g} s, and was ended"
    if outcome is Outcome.INTERRUPTED:
        return "the agent was told to stop, and ended it"
    return f"killed by {signal_name}" if signal_name else f"exit code {code}"


def _file_with(content: bytes) -> int:
    """Make a nameless file in memory: a full disk keeps no program from its facts."""
    fd = os.memfd_create("facts")
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


class _Output:
    """A pipe that is read as long as the program runs, and of which the end is kept."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        os.set_blocking(self._reading, False)
        self._kept = bytearray()
        self._dropped = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def listen(self) -> None:
        """Read whenever there is something."""
        os.close(self.writing)
        self.writing = -1
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._reading, self._read)

    def _read(self) -> bool:
        try:
            piece = os.read(self._reading, 65536)
        except BlockingIOError:
            return False
        if not piece:
            self._quiet()
            return False
        self._kept += piece
        if (surplus := len(self._kept) - KEPT_OUTPUT) > 0:
            del self._kept[:surplus]
            self._dropped += surplus
        return True

    def _quiet(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._reading)
            self._loop = None

    def close(self) -> None:
        """Take what is there, and stop reading."""
        for _ in range(64):  # what the program left behind may write without end
            if not self._read():
                break
        self._quiet()
        os.close(self._reading)
        if self.writing >= 0:
            os.close(self.writing)

    def text(self) -> str:
        """Give what was kept."""
        kept = self._kept.decode(errors="replace")
        return f"[{self._dropped} bytes before this]\n{kept}" if self._dropped else kept
