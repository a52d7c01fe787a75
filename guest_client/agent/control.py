"""The agent's door: a Unix socket in the state folder, open to whoever may write there.

One request and one answer, each a line of JSON: ``{"do": "status"}``. The agent can be asked:

    wake     look at the state, the triggers and the enabler now; something has changed
    status   how things stand with what is not in the state
    stop     end. The connection stays open until the agent has ended: its end of file is the news
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from guest_client.errors import AgentNotRunning, StateNotMade

FILE = "agent.sock"
ANSWER_LIMIT = 10.0
"""Seconds for an agent to answer."""

Handler = Callable[[], Mapping[str, Any]]


class ControlServer:
    """Answers requests. ``handlers`` are called in the loop, by what is asked."""

    def __init__(self, state_dir: Path, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self.path = state_dir / FILE
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Begin to listen. An old socket is an agent's that died: the lock says that none lives."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.path.unlink(missing_ok=True)
            with _short(self.path) as short:
                before = os.umask(0o177)
                try:
                    sock.bind(short)
                finally:
                    os.umask(before)
            # Not asyncio's own for Unix sockets: from 3.13 on that looks its path up again.
            self._server = await asyncio.start_server(self._serve, sock=sock)
        except OSError as error:
            sock.close()
            raise StateNotMade(
                f"can't listen at {self.path}: {error.strerror}; mend the folder's mode and owner"
            ) from error

    async def close(self) -> None:
        """Listen no longer. Connections that wait for our end stay open until we do."""
        if self._server is not None:
            self._server.close()
            self.path.unlink(missing_ok=True)
        for task in self._tasks:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(OSError, ValueError, asyncio.TimeoutError, asyncio.CancelledError):
                request = json.loads(await asyncio.wait_for(reader.readline(), ANSWER_LIMIT))
                what = request.get("do") if isinstance(request, dict) else None
                handler = self._handlers.get(what) if isinstance(what, str) else None
                answer = {"error": "unknown request"} if handler is None else handler()
                writer.write(json.dumps(answer).encode() + b"\n")
                await asyncio.wait_for(writer.drain(), ANSWER_LIMIT)
                if what == "stop":
                    self._connections.append(writer)
                    return
        finally:
            self._tasks.discard(task)
            if writer not in self._connections:
                writer.close()


def ask(state_dir: Path, what: str, *, to_the_end: bool = False) -> dict[str, Any]:
    """Ask a running agent; raises :class:`AgentNotRunning` if none answers.

    With ``to_the_end`` it returns when the agent has hung up.
    """
    path = state_dir / FILE
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(ANSWER_LIMIT)
        with _short(path) as short:
            sock.connect(short)
        sock.sendall(json.dumps({"do": what}).encode() + b"\n")
        with sock.makefile("rb") as stream:
            line = stream.readline()
            if to_the_end:
                sock.settimeout(None)
                stream.read()
        answer = json.loads(line)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise AgentNotRunning(
            f"no agent runs on {state_dir}; start one with `guest-client agent run`"
        ) from error
    except (OSError, ValueError) as error:
        raise AgentNotRunning(
            f"the agent on {state_dir} does not answer ({error}); look at its process"
        ) from error
    finally:
        sock.close()
    return answer if isinstance(answer, dict) else {}


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """Give a name for a socket that fits its 108 bytes, however deep its folder is."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
