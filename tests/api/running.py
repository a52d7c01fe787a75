"""A running enabler for the API tests: the real service, in a thread, on libvirt's own test driver.

``test:///default`` is one hypervisor for the whole process, so a test works on the very domains
that the service watches, through a connection of its own.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import libvirt

from enabler.config import MachineSettings, Settings
from enabler.hypervisor import start_event_loop
from enabler.service import Service

DEFAULT_VM = "6695eb01-f6a4-8304-79aa-97f2502e193f"
MACHINE = {"manufacturer": "Acme", "model": "Rack 1", "serial_number": "SN-0001"}


class Enabler:
    """The service, and a client on its admin socket."""

    def __init__(self, folder: Path, *guests: str, **settings: Any) -> None:
        self.socket = folder / "admin.sock"
        self.settings = Settings(
            libvirt_uri="test:///default",
            listen=(f"unix:{self.socket}", *guests),
            machine=MachineSettings(**MACHINE),
            **settings,
            keys_directory=folder / "keys",
        )
        self.client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.socket)), base_url="http://enabler"
        )

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.client.get(path, headers=headers)

    def identity(self, vm_uuid: str = DEFAULT_VM) -> dict[str, Any]:
        answer = self.get(f"/v1/vms/{vm_uuid}/identity")
        assert answer.status_code == 200, answer.text
        content: dict[str, Any] = answer.json()
        return content

    @contextmanager
    def running(self) -> Iterator[None]:
        started: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

        async def serve() -> None:
            stop = asyncio.Event()
            started.append((asyncio.get_running_loop(), stop))
            await Service(self.settings).run(stop)

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        try:
            eventually(self.is_ready)
            yield
        finally:
            loop, stop = started[0]
            loop.call_soon_threadsafe(stop.set)
            thread.join()

    def is_ready(self) -> bool:
        try:
            return self.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False


def free_port() -> int:
    """Return a TCP port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until a condition holds; fail if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{condition} never held"
        time.sleep(0.01)


def connect() -> libvirt.virConnect:
    """Return a connection of the test's own."""
    start_event_loop()
    return libvirt.open("test:///default")
