"""Talks to the QEMU guest agent in a guest, on whichever host the guest is now.

The guest has two agents, one for libvirt and one for the lab, on a virtio channel whose socket
the lab dials itself: so commands run in the guest also while libvirtd is down or hung. During a
migration both hosts have such a socket, and only the one where the guest runs answers; an answer
can get lost at the switch-over. So everything sent here may be sent twice and must be harmless
the second time (`jobs.py` builds on that).

The protocol is JSON, one object a line (QEMU, docs/interop/qemu-ga-ref). A connection begins with
guest-sync-delimited, whose answer tells stale bytes from fresh ones.
"""

from __future__ import annotations

import base64
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.errors import GuestUnreachable, LabError

_SENTINEL = b"\xff"
_FIRST_PATIENCE = 0.5  # seconds to wait for an answer before asking the next host
_MOST_PATIENCE = 4.0


class AgentError(LabError):
    """The guest agent refused a command."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a helper program in the guest ended."""

    code: int
    stdout: bytes
    stderr: bytes


class _Connection:
    """One dialled socket, in step with the agent."""

    def __init__(self, path: Path, patience: float) -> None:
        self.path = path
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(patience)
            self._socket.connect(str(path))
            self._synchronise(patience)
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def ask(self, command: str, arguments: Mapping[str, Any], patience: float) -> Any:
        """Send one command and return its answer's value; OSError when none comes."""
        self._send({"execute": command, "arguments": dict(arguments)})
        reply = self._receive(time.monotonic() + patience)
        if "error" in reply:
            raise AgentError(f"{command}: {reply['error'].get('desc', reply['error'])}")
        return reply["return"]

    def _synchronise(self, patience: float) -> None:
        end = time.monotonic() + patience
        token = random.getrandbits(31)
        self._socket.sendall(_SENTINEL)
        self._send({"execute": "guest-sync-delimited", "arguments": {"id": token}})
        while self._receive(end).get("return") != token:
            continue

    def _send(self, message: Mapping[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _receive(self, end: float) -> dict[str, Any]:
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                try:
                    value = json.loads(line.rpartition(_SENTINEL)[2])
                except ValueError:
                    continue  # the end of an answer that was cut off
                if isinstance(value, dict):
                    return value
                continue
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError
            self._buffer += data


class Agent:
    """The lab's agent in one guest.

    Args:
        name: the guest's name, for messages.
        sockets: where the agent's socket can be now, one path per host that has one.
    """

    def __init__(self, name: str, sockets: Callable[[], Sequence[Path]]) -> None:
        self._name = name
        self._sockets = sockets
        self._connection: _Connection | None = None
        self._last: Path | None = None
        self._users = 0
        self._lock = threading.RLock()

    def close(self) -> None:
        """Hang up."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def ask(self, command: str, arguments: Mapping[str, Any], *, seconds: float) -> Any:
        """One agent command; sent again, on whichever host answers, until it is answered.

        Raises:
            GuestUnreachable: no answer within `seconds`.
            AgentError: the agent refused the command.
        """
        with self._in_use():
            return self._ask(command, arguments, time.monotonic() + seconds)

    def execute(self, argv: Sequence[str], *, stdin: bytes = b"", seconds: float = 30) -> Answer:
        """Run a short helper program in the guest, more than once if an answer gets lost.

        Raises:
            GuestUnreachable: no result within `seconds`.
            AgentError: the program can't be run.
        """
        end = time.monotonic() + seconds
        request: dict[str, Any] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
        if stdin:
            request["input-data"] = base64.b64encode(stdin).decode()
        with self._in_use():
            while True:
                status = self._result(self._ask("guest-exec", request, end)["pid"], end)
                if status is not None:
                    return Answer(
                        int(status.get("exitcode", -int(status.get("signal", 0)))),
                        base64.b64decode(status.get("out-data", "")),
                        base64.b64decode(status.get("err-data", "")),
                    )

    def _result(self, pid: int, end: float) -> dict[str, Any] | None:
        """The status of a program that has ended; None when the agent forgot it.

        The agent tells a result once, and forgets it all on a reboot.
        """
        pause = 0.005
        while True:
            try:
                status: dict[str, Any] = self._ask("guest-exec-status", {"pid": pid}, end)
            except AgentError:
                return None
            if status["exited"]:
                return status
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)

    def _ask(self, command: str, arguments: Mapping[str, Any], end: float) -> Any:
        began = time.monotonic()
        patience = _FIRST_PATIENCE
        while True:
            with self._lock:
                for path in self._candidates():
                    left = max(end - time.monotonic(), 0.01)
                    try:
                        connection = self._on(path, min(patience, left))
                        return connection.ask(command, arguments, min(2 * patience, left))
                    except OSError:
                        self.close()
            if time.monotonic() >= end:
                break
            patience = min(patience * 1.5, _MOST_PATIENCE)
            time.sleep(0.05)
        raise GuestUnreachable(
            f"the guest agent of {self._name} answered on no host for {end - began:.0f} s: is the "
            "guest running? `python -m tests.lab status` and its console log say more"
        )

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Hang up when nobody in this process needs the line: it has room for one caller."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self.close()

    def _on(self, path: Path, patience: float) -> _Connection:
        if self._connection is None:
            self._connection = _Connection(path, patience)
            self._last = path
        return self._connection

    def _candidates(self) -> list[Path]:
        """Sockets to try; the one that answered last first, then the others."""
        return sorted(self._sockets(), key=lambda path: path != self._last)
