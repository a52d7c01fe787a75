"""Under systemd: sockets that it listens on for us, readiness, signs of life, the end."""

from __future__ import annotations

import queue
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from enabler.hypervisor import Hypervisor
from enabler.runs import Runs
from tests.api.test_start import IDENTITY, TEST, fails

# Does what systemd does for a service with a socket unit, and becomes the service.
LAUNCHER = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "WATCHDOG_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, "-m", "enabler", "serve", *sys.argv[2:]])
"""


@contextmanager
def manager(folder: Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """The notification socket of a service manager, and what waits for a word on it."""
    path = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(path))
        channel.settimeout(60)

        def hear(word: str) -> None:
            while word not in channel.recv(4096).decode().splitlines():
                pass

        yield path, hear


def started_by_systemd(
    handed: Path, listen: Path, environment: dict[str, str]
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(handed), *TEST, "--listen", f"unix:{listen}"],
        stderr=subprocess.PIPE,
        text=True,
        env=IDENTITY | environment,
    )


def test_a_life_under_systemd(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with manager(tmp_path) as (notify, hear):
        told = {"NOTIFY_SOCKET": str(notify), "WATCHDOG_USEC": "200000"}
        with started_by_systemd(path, path, told) as service:
            hear("READY=1")
            transport = httpx.HTTPTransport(uds=str(path))
            with httpx.Client(transport=transport, base_url="http://enabler") as client:
                assert client.get("/readyz").status_code == 200
            for _ in range(3):
                hear("WATCHDOG=1")
            service.send_signal(signal.SIGTERM)
            hear("STOPPING=1")
            assert service.wait(60) == 0
    assert path.is_socket(), "it is systemd's, who goes on listening for the next start"


def test_a_socket_that_nobody_would_answer_on(tmp_path: Path) -> None:
    handed, named = tmp_path / "handed.sock", tmp_path / "named.sock"
    with started_by_systemd(handed, named, {}) as service:
        _, stderr = service.communicate(timeout=60)
        done = subprocess.CompletedProcess([], service.returncode, "", stderr)
    fails(done, 78, str(handed), "enabler.socket", "enabler.toml")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_no_sign_of_life_when_a_thread_has_died() -> None:
    class Anybody:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_: None

    came: queue.SimpleQueue[str] = queue.SimpleQueue()
    hypervisor = Hypervisor("test:///default", Anybody(), lambda function, *a: function(*a), Runs())  # type: ignore[arg-type]
    hypervisor.start()
    try:
        hypervisor.round_trip(lambda: came.put("alive"))
        assert came.get(timeout=60) == "alive"
        asking = next(t for t in hypervisor._threads if t.name == "libvirt-record")
        hypervisor._records.put(None)  # type: ignore[arg-type]
        asking.join(60)
        assert not asking.is_alive()
        hypervisor.round_trip(lambda: came.put("alive"))
        hypervisor._after_events(lambda: came.put("later"))
        assert came.get(timeout=60) == "later"
    finally:
        hypervisor.stop()
