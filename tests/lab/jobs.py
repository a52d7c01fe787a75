"""Commands and files in a guest, as if there were no migrations.

A command runs under `lab-job` in the guest, which leaves its output and exit code in files, so
the result can be fetched whenever and from whichever host: a command that is started before a
migration is waited for on the new host after it. Outputs of any size come back whole.
"""

from __future__ import annotations

import signal
import subprocess
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.lab.agent import Agent, Answer
from tests.lab.errors import GuestCommandFailed, GuestTimeout, JobLost, LabError

_INLINE = 128 * 1024  # outputs up to this many bytes come with the answer
_PIECE = 512 * 1024  # bigger ones, and files, go by pieces of this size
_ON_THE_WAY = 10  # seconds that an answer may take beyond what the guest was told to wait
_KEPT = 16  # results that stay in the guest's memory, so that a request sent twice finds them


@dataclass(frozen=True, slots=True)
class Result:
    """How a command in the guest ended."""

    argv: tuple[str, ...]
    returncode: int  # negative: the signal that ended it
    stdout_bytes: bytes
    stderr_bytes: bytes

    @property
    def stdout(self) -> str:
        """Its stdout as text."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Its stderr as text."""
        return self.stderr_bytes.decode(errors="replace")


class Job:
    """A command that runs in the guest."""

    def __init__(self, shell: GuestShell, identifier: str, argv: Sequence[str]) -> None:
        self.argv = tuple(argv)
        self._shell = shell
        self._identifier = identifier
        self._result: Result | None = None

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        self._look(0, 30)
        return self._result.returncode if self._result else None

    def wait(self, timeout: float = 60) -> Result:
        """Wait for its end.

        Raises:
            GuestTimeout: it still runs after `timeout` seconds; it is left running.
            JobLost: the guest was rebooted meanwhile.
            GuestUnreachable: the guest answered on no host for all that time.
        """
        end = time.monotonic() + timeout
        while self._result is None:
            left = end - time.monotonic()
            if left <= 0:
                raise GuestTimeout(
                    f"{' '.join(self.argv)} still runs in {self._shell.name} after {timeout:g} s"
                )
            self._look(min(left, 1), left + 5)
        return self._result

    def kill(self, number: int = signal.SIGKILL, *, group: bool = False) -> None:
        """Send a signal to the command, or to its whole process group."""
        status = self._look(0, 30)
        pid = status[1] if status and status[0] == "running" and len(status) > 1 else None
        if pid is not None:
            target = f"-{pid}" if group else pid
            self._shell.helper(["/bin/busybox", "kill", f"-{int(number)}", target], check=False)

    def output_so_far(self) -> str:
        """What it has printed on stdout until now (at most the last half megabyte)."""
        if self._result is not None:
            return self._result.stdout
        path = f"/run/lab/jobs/{self._identifier}/out"
        return self._shell.helper(["tail", "-c", str(_PIECE), path]).stdout.decode(errors="replace")

    def _look(self, seconds: float, patience: float) -> list[str] | None:
        """Ask the guest how the job is, waiting up to `seconds` for its end there."""
        if self._result is not None:
            return None
        return self.take(self._shell.poll(self._identifier, seconds, patience))

    def take(self, answer: tuple[list[str], bytes]) -> list[str]:
        """Take in what `lab-poll` said; its first line as words."""
        head, body = answer
        if head[0] == "gone":
            raise JobLost(
                f"{self._shell.name} knows nothing of {' '.join(self.argv)}: it was rebooted"
            )
        if head[0] == "ended":
            code, out_size, err_size = (int(word) for word in head[1:])
            if out_size + err_size <= _INLINE:
                out, err = body[:out_size], body[out_size:]
            else:
                place = f"/run/lab/jobs/{self._identifier}"
                out = self._shell.read_file(f"{place}/out")
                err = self._shell.read_file(f"{place}/err")
            if (len(out), len(err)) != (out_size, err_size):
                raise LabError(f"output of {' '.join(self.argv)} came back incomplete")
            self._result = Result(self.argv, code, out, err)
            self._shell.ended(self._identifier)
        return head


class GuestShell:
    """Runs commands and moves files, over one guest's agent."""

    def __init__(self, name: str, agent: Agent) -> None:
        self.name = name
        self.agent = agent
        self._ended: deque[str] = deque()

    def spawn(
        self,
        argv: Sequence[str],
        *,
        input: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        wait: float = 0,
        seconds: float = 30,
    ) -> Job:
        """Start a command in the guest (as root, in /root).

        Returns when it has been started, or up to `wait` seconds later if it ends by then.
        """
        identifier = uuid.uuid4().hex[:12]
        source = "/dev/null"
        if input is not None:
            source = f"/run/lab/{identifier}.in"
            self.write_file(source, input)
        prefix = ["/usr/bin/env"] if env or cwd else []
        prefix += ["-C", cwd] if cwd else []
        prefix += [f"{key}={value}" for key, value in (env or {}).items()]
        job = Job(self, identifier, argv)
        start = ["/usr/local/sbin/lab-job", identifier, _tenths(wait), str(_INLINE), source]
        job.take(_split(self.helper([*start, *prefix, *argv], seconds=seconds)))
        return job

    def run(
        self,
        argv: Sequence[str],
        *,
        input: str | bytes | None = None,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        check: bool = False,
    ) -> Result:
        """Run a command in the guest to its end; migrations meanwhile make no difference.

        Raises:
            GuestTimeout: not ended after `timeout` seconds; it and its group are killed.
            GuestCommandFailed: with `check`, it ended with another code than 0.
            GuestUnreachable, JobLost: see `Job.wait`.
        """
        wait = min(timeout, 1)
        # The guest waits, and its answer is on the way for a while: that must not be a race.
        patience = max(timeout, wait + _ON_THE_WAY)
        job = self.spawn(argv, input=input, env=env, cwd=cwd, wait=wait, seconds=patience)
        try:
            result = job.wait(timeout)
        except GuestTimeout:
            job.kill(group=True)
            raise
        if check and result.returncode != 0:
            raise GuestCommandFailed(
                f"in {self.name}, {' '.join(argv)} ended with {result.returncode}: "
                f"{result.stderr.strip() or result.stdout.strip()}"
            )
        return result

    def write_file(self, path: str, content: str | bytes, *, mode: int = 0o644) -> None:
        """Write a file in the guest, whole, in one rename; directories are made as needed."""
        data = content.encode() if isinstance(content, str) else content
        new = f"{path}.{uuid.uuid4().hex[:8]}.new"
        place = 'mkdir -p "${2%/*}/" && cat > "$1"'
        finish = 'chmod "$3" "$1" && mv -f "$1" "$2"'
        words = ["sh", new, path, f"{mode:o}"]
        if len(data) <= _PIECE:
            self.helper(["sh", "-c", f"{place} && {finish}", *words], stdin=data)
            return
        self.helper(["sh", "-c", place, *words])
        for offset in range(0, len(data), _PIECE):
            # Each piece names its place, so that writing it twice does no harm.
            where = [f"of={new}", f"seek={offset}", "oflag=seek_bytes", "conv=notrunc", "bs=64k"]
            self.helper(["dd", "status=none", *where], stdin=data[offset : offset + _PIECE])
        # When the answer to this is lost it comes a second time, and has been done.
        self.helper(["sh", "-c", f'[ ! -e "$1" ] || {{ {finish}; }}', *words])

    def read_file(self, path: str) -> bytes:
        """Read a file in the guest.

        Raises:
            FileNotFoundError: there is none.
        """
        data = b""
        while True:
            where = [f"if={path}", f"skip={len(data)}", "iflag=skip_bytes,count_bytes"]
            piece = self.helper(
                ["dd", "status=none", *where, f"count={_PIECE}", "bs=64k"], check=False
            )
            if piece.code != 0:
                raise FileNotFoundError(f"{self.name}: {piece.stderr.decode().strip()}")
            data += piece.stdout
            if len(piece.stdout) < _PIECE:
                return data

    def helper(
        self, argv: Sequence[str], *, stdin: bytes = b"", check: bool = True, seconds: float = 30
    ) -> Answer:
        """Run a short program that bears being run twice, directly under the agent."""
        answer = self.agent.execute(argv, stdin=stdin, seconds=seconds)
        if check and answer.code != 0:
            said = answer.stderr.decode(errors="replace").strip()
            raise LabError(f"in {self.name}, {subprocess.list2cmdline(argv)}: {said}")
        return answer

    def poll(self, identifier: str, seconds: float, patience: float) -> tuple[list[str], bytes]:
        """`lab-poll` in the guest: its first line as words, and what follows it."""
        forget = [self._ended.popleft() for _ in range(len(self._ended) - _KEPT)]
        argv = ["/usr/local/sbin/lab-poll", identifier, _tenths(seconds), str(_INLINE)]
        return _split(self.helper([*argv, *forget], seconds=patience))

    def ended(self, identifier: str) -> None:
        """Note that a job's result has been fetched: its files are removed some jobs later."""
        self._ended.append(identifier)


def _tenths(seconds: float) -> str:
    return str(round(seconds * 10))


def _split(answer: Answer) -> tuple[list[str], bytes]:
    """What `lab-poll` printed: its first line as words, and what follows it."""
    head, _, body = answer.stdout.partition(b"\n")
    return head.decode().split(), body
