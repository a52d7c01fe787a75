"""guest-client.pyz on each Python that guests run: a day with a real enabler, and a move."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.api.network import Network, network, run_in, serving
from tests.api.running import eventually
from tests.packages.pythons import RELEASES, Python, of_release, on_path

PATH_PYTHONS = {v: python for v, python in on_path().items() if v not in RELEASES.values()}
SCANNER = "echo run >> runs; while [ ! -e go ]; do sleep 0.05; done; cat serial"


class Guest:
    """A guest, as the enabler sees it, with one Python and one file."""

    def __init__(self, python: Python, network: Network, folder: Path, pyz: Path) -> None:
        self.folder = folder
        self._python = python
        self._network = network
        shutil.copy2(pyz, folder / "guest-client")
        (folder / "config.toml").write_text(
            f'enabler = "{network.url}"\ndeadline = 5\nstate_dir = "{self.here}/state"\n'
        )

    @property
    def here(self) -> str:
        """The guest's own name of its folder."""
        return str(self.folder) if self._python.root is None else "/mnt"

    def command(self, *arguments: str) -> list[str | Path]:
        words = 2 if arguments[0].startswith("agent") else 1
        configured = (*arguments[:words], "--config", "config.toml", *arguments[words:])
        inside = self._python.running(self.folder, f"{self.here}/guest-client", *configured)
        return [*run_in(self._network.guest), *inside]

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    def report(self, name: str) -> dict[str, object]:
        content: dict[str, object] = json.loads((self.folder / name).read_text())
        return content


@contextmanager
def host(network: Network, folder: Path, serial: str) -> Iterator[None]:
    """An enabler on the network's host, which is the machine of that serial number."""
    machine = {"ENABLER_MACHINE__SERIAL_NUMBER": serial}
    with serving(network, folder / f"{serial}.log", environment=machine):
        yield


def a_day(guest: Guest, network: Network, logs: Path) -> None:
    with host(network, logs, "SN-0001"):
        assert json.loads(guest.run("identity", "--json"))["machine"]["serial_number"] == "SN-0001"
        assert "SN-0001" in guest.run("doctor")
        guest.run("agent-id", "regenerate")
        agent_id = guest.run("agent-id", "show")
        guest.run("agent", "run", "--once")
        modules = ("--module", "a=echo one", "--module", "b=echo two")
        guest.run("scan", "--output", "plain", "--", "echo", "hello")
        guest.run("scan", *modules, "--output", "set", "--report", "set.json")
        (guest.folder / "serial").write_text("SN-0001\n")
        crossed = subprocess.Popen(
            guest.command(
                *(
                    "scan",
                    "--output",
                    "crossed",
                    "--report",
                    "crossed.json",
                    "--notify-if-migrated",
                ),
                *("--repeat-if-migrated", "2", "--", "sh", "-c", SCANNER),
            ),
            stderr=subprocess.PIPE,
        )
        eventually((guest.folder / "runs").exists)
    with host(network, logs, "SN-0002"):
        (guest.folder / "serial").write_text("SN-0002\n")
        (guest.folder / "go").touch()
        stderr = crossed.communicate(timeout=60)[1].decode()
        assert crossed.returncode == 0, stderr
        guest.run("agent", "run", "--once")
        history = guest.run("agent", "history")
        assert "SN-0002" in history
        assert guest.run("agent-id", "show") != agent_id
    assert (guest.folder / "plain").read_text() == "hello\n"
    assert (guest.folder / "set" / "b.out").read_text() == "two\n"
    assert (guest.folder / "crossed").read_text() == "SN-0002\n"
    attempts = guest.report("crossed.json")["attempts"]
    assert isinstance(attempts, list)
    assert [attempt["verdict"]["reason"] for attempt in attempts] == ["migrated", None]


@pytest.mark.parametrize("suite", RELEASES)
def test_the_pythons_of_debians_releases(built: Path, tmp_path: Path, suite: str) -> None:
    python = of_release(suite)
    assert python.version == RELEASES[suite]
    run_a_day(python, built, tmp_path)


@pytest.mark.parametrize("version", PATH_PYTHONS)
def test_the_pythons_on_path(built: Path, tmp_path: Path, version: str) -> None:
    run_a_day(PATH_PYTHONS[version], built, tmp_path)


def run_a_day(python: Python, built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "guest"
    folder.mkdir()
    with network("py") as made:
        a_day(Guest(python, made, folder, built / "guest-client.pyz"), made, tmp_path)
