"""A real nats-server for the tests: on the loopback, a free port, a store of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.api.running import eventually, free_port


class NatsServer:
    """One server with JetStream. ``more`` goes into its configuration as it is."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self._file = folder / "nats.conf"
        self._log = folder / "nats.log"
        self._file.write_text(
            f"listen: 127.0.0.1:{self.port}\nserver_name: single\n"
            f"jetstream {{ store_dir: {folder}/store }}\nlog_file: {self._log}\n{more}\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(["nats-server", "-c", self._file])
        eventually(self._answers)

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait()
        self.process = None

    def log(self) -> str:
        return self._log.read_text()

    @contextmanager
    def running(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            if self.process is not None:
                self.stop()

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
