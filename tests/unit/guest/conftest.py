"""The command as a user runs it, with a stand-in enabler and nothing of this machine's settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from .documents import MIGRATED, document
from .enabler_server import EnablerServer

GUEST_CLIENT = (sys.executable, "-m", "guest_client")


class Guest:
    """A guest: runs ``guest-client`` in a folder of its own, against the server it is given."""

    def __init__(self, home: Path, server: EnablerServer) -> None:
        self.home = home
        self.server = server
        self.config = home / "config.toml"
        self.config.write_text("")
        self.state_dir = home / "state"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("GUEST_CLIENT_")},
            "GUEST_CLIENT_CONFIG": str(self.config),
            "GUEST_CLIENT_ENABLER": server.url,
            "GUEST_CLIENT_DEADLINE": "20",
            "GUEST_CLIENT_STATE_DIR": str(self.state_dir),
        }
        self.identity = home / "identity.json"
        self.say(document())
        server.file = self.identity

    def say(self, said: dict[str, Any]) -> None:
        """Let the enabler tell something else from now on."""
        whole = self.home / "identity.whole"
        whole.write_text(json.dumps(said))
        whole.rename(self.identity)

    def moving(self, changes: dict[str, Any] = MIGRATED, *, once: bool = False) -> str:
        """A shell line that changes what the enabler tells: a migration inside the scan."""
        there = self.home / "identity.there"
        there.write_text(json.dumps(document(changes)))
        line = (
            f"cp {there} {self.home}/identity.copy && mv {self.home}/identity.copy {self.identity}"
        )
        return line if not once else f"if [ ! -e moved ]; then touch moved; {line}; fi"

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*GUEST_CLIENT, *arguments],
            **{
                "cwd": self.home,
                "env": self.environment,
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                **more,
            },
        )

    def run(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **more)
        out, err = process.communicate()
        return subprocess.CompletedProcess(
            arguments, process.returncode, (out or b"").decode(), (err or b"").decode()
        )

    def scan(
        self, line: str, *options: str, command: Sequence[str] | None = None, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Guard a line of shell, with a report."""
        argv = command if command is not None else ["sh", "-c", line]
        return self.run("scan", "--report", "report.json", *options, "--", *argv, **more)

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / "report.json").read_text())
        return found

    def leftovers(self) -> list[str]:
        """Spools that were left behind, which there may not be."""
        return [path.name for path in self.home.rglob(".*") if path.name != ".lock"]


@pytest.fixture
def server() -> Iterator[EnablerServer]:
    with EnablerServer() as running:
        yield running


@pytest.fixture
def guest(tmp_path: Path, server: EnablerServer) -> Guest:
    return Guest(tmp_path, server)
