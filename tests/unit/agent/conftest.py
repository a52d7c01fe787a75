"""Real agents: processes with a state of their own, an enabler and receivers on loopback."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from guest_client.agent import views
from guest_client.agent.state import State
from tests.lab.receiver import Receiver

from ..guest.documents import document
from ..guest.enabler_server import EnablerServer, Handler

GUEST_CLIENT = (sys.executable, "-m", "guest_client")
PATIENCE = 60.0
"""Seconds after which a test gives up on something that should long have happened."""


class RunningAgent:
    """An agent's process, and what it tells its service manager."""

    def __init__(self, argv: Sequence[str], environment: dict[str, str], home: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = home / f"notify.{len(list(home.glob('notify.*')))}"
        self._socket.bind(str(address))
        self._socket.settimeout(PATIENCE)
        self.log = home / "agent.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*argv],
                env={**environment, "NOTIFY_SOCKET": str(address)},
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_told(self, word: str = "READY=1") -> str:
        """Wait until it tells its service manager this."""
        while True:
            told = self._socket.recv(4096).decode()
            if word in told.split("\n"):
                return told

    def wait(self) -> int:
        """Wait until it has ended."""
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def stop(self) -> int:
        self.process.terminate()
        return self.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self._socket.close()


class AgentHome:
    """A guest with an agent: runs its commands in a folder of its own."""

    def __init__(self, home: Path, server: EnablerServer) -> None:
        self.home = home
        self.server = server
        self.config = home / "config.toml"
        self.state_dir = home / "state"
        self.agents: list[RunningAgent] = []
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("GUEST_CLIENT_")},
            "GUEST_CLIENT_CONFIG": str(self.config),
            "GUEST_CLIENT_ENABLER": server.url,
            "GUEST_CLIENT_DEADLINE": "20",
            "GUEST_CLIENT_STATE_DIR": str(self.state_dir),
        }
        self.configure()
        self.say()

    def say(self, changes: dict[str, Any] | None = None) -> None:
        """Let the enabler tell this from now on, with an ETag."""
        said = document(changes)
        body = json.dumps(said).encode()
        etag = f'"{hash(body) & 0xFFFFFFFF:x}"'

        def answer(handler: Handler) -> None:
            if handler.headers.get("If-None-Match") == etag:
                handler.reply(b"", 304, ETag=etag)
            else:
                handler.reply(body, ETag=etag)

        with self.server.lock:
            self.server.otherwise = answer

    def configure(self, *receivers: Receiver, programs: bool = False, more: str = "") -> None:
        """Write the configuration; without ``programs``, not even the built-in one is there."""
        lines = [] if programs else ["program = []"]
        lines += ["watch_interval = 3600", more]
        lines += [f'[[destination]]\nurl = "{receiver.url}"' for receiver in receivers]
        self.config.write_text("\n".join(lines))

    def agent(self, *arguments: str, driver: Sequence[str] = GUEST_CLIENT) -> RunningAgent:
        """Start an agent."""
        agent = RunningAgent([*driver, "agent", "run", *arguments], self.environment, self.home)
        self.agents.append(agent)
        return agent

    def ready_agent(self, *arguments: str) -> RunningAgent:
        agent = self.agent(*arguments)
        agent.wait_told()
        return agent

    def run(self, *arguments: str, expect: int = 0, **more: Any) -> str:
        """Run a command, and give what it prints."""
        done = subprocess.run(
            [*GUEST_CLIENT, *arguments],
            env={**self.environment, **more.pop("env", {})},
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            **more,
        )
        assert done.returncode == expect, (done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout if expect == 0 else done.stderr

    def json(self, *arguments: str, expect: int = 0) -> Any:
        done = subprocess.run(
            [*GUEST_CLIENT, *arguments, "--json"],
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == expect, (done.stdout, done.stderr)
        return json.loads(done.stdout)

    def register(self, name: str, line: str, *options: str) -> None:
        """Register a line of shell."""
        self.run("agent", "register", name, *options, "--", "/bin/sh", "-c", line)

    def history(self) -> list[dict[str, Any]]:
        """What `agent history --json` prints, without the price of a process."""
        with State(self.state_dir) as state:
            return [views.entry(state, found) for found in state.latest(1000)]

    def wait_known(self, residency_id: str) -> None:
        """Wait until the agent has taken in this stay."""
        with State(self.state_dir) as state:
            until(
                lambda: (
                    (known := state.known()) is not None
                    and known.identity.residency.id == residency_id
                )
            )

    def wait_done(self, number: int) -> None:
        """Wait until so many triggers have come to their end."""
        until(lambda: sum(one["state"] == "done" for one in self.history()) >= number)

    def wait_asked(self, number: int) -> None:
        """Wait until the enabler has been asked so often."""
        until(lambda: len(self.server.requests) >= number)

    def migrate(self, number: int) -> None:
        """Let the enabler tell of the VM's further stay: on host B if it is odd, A if even."""
        self.say(stay(number))

    def close(self) -> None:
        for agent in self.agents:
            agent.close()


def stay(number: int) -> dict[str, Any]:
    """What the enabler tells of the VM's stay after so many migrations."""
    where = "ab"[number % 2]
    return {
        "component_id": f"sha256:{where * 64}",
        "machine.serial_number": f"78{where.upper() * 5}",
        "residency.id": f"stay-{number + 1}",
        "residency.arrived_by": "migration" if number else "start",
    }


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that nobody tells of."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


class Fifo:
    """A named pipe: lets a program of the agent's and a test wait for each other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        # Both ends are ours as well, so that nobody waits for the other to open it.
        self._fd = os.open(path, os.O_RDWR)
        self._read = b""

    def line(self) -> str:
        """Wait for a line."""
        while b"\n" not in self._read:
            self._read += os.read(self._fd, 4096)
        line, self._read = self._read.split(b"\n", 1)
        return line.decode()

    def say(self, line: str = "go") -> None:
        os.write(self._fd, line.encode() + b"\n")

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def server() -> Iterator[EnablerServer]:
    with EnablerServer() as running:
        yield running


@pytest.fixture
def home(tmp_path: Path, server: EnablerServer) -> Iterator[AgentHome]:
    made = AgentHome(tmp_path, server)
    yield made
    made.close()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    made = Receiver(tmp_path / "receiver.jsonl")
    yield made
    made.close()


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Fifo]:
    made = Fifo(tmp_path / "fifo")
    yield made
    made.close()


def said(agent: RunningAgent, pattern: str) -> int:
    """How often an agent has said something."""
    return len(re.findall(pattern, agent.log.read_text()))
