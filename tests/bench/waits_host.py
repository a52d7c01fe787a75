"""A host for the bench of waits: the real service on libvirt's test driver, in its own process.

    python -m tests.bench.waits_host FOLDER VMS

It takes orders on its standard input, a word a line, and answers each with a line of JSON:
`capacity` changes the host's capacity, `storm N` ends N stays and begins others.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import libvirt

from enabler.config import MachineSettings, Settings
from enabler.hypervisor import start_event_loop
from enabler.service import Service

URI = "test:///default"
_DOMAIN = (
    "<domain type='test'><name>bench{n}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory>\
<os><type>hvm</type></os></domain>"
)
_CALM = 0.1
"""Seconds between two changes of a storm: a real host has some in a minute."""


def vm_uuid(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"vm-enabler bench {number}"))


class Host:
    def __init__(self, folder: Path, vms: int) -> None:
        self._settings = Settings(
            libvirt_uri=URI,
            listen=(f"unix:{folder}/admin.sock",),
            keys_directory=folder / "keys",
            machine=MachineSettings(manufacturer="Acme", model="Rack", serial_number="SN-1"),
        )
        start_event_loop()
        self._libvirt = libvirt.open(URI)
        for number in range(vms):
            self._libvirt.defineXML(_DOMAIN.format(n=number, uuid=vm_uuid(number))).create()
        self._vms = vms
        self._loop = asyncio.new_event_loop()
        self._service: Service | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        self._service = Service(self._settings)
        await self._service.run(self._stop)

    def capacity(self) -> dict[str, Any]:
        """As when an admin adds memory. The test driver knows no way to: the inventory is told."""
        assert self._service is not None
        inventory = self._service._inventory
        assert inventory is not None
        more = inventory.capacity.model_copy(
            update={"memory_bytes": inventory.capacity.memory_bytes * 2}
        )
        at = time.monotonic()
        self._loop.call_soon_threadsafe(inventory.set_capacity, more)
        return {"at": at}

    def storm(self, count: int) -> dict[str, Any]:
        began: list[tuple[str, float]] = []
        for _ in range(count):
            wanted = vm_uuid(random.randrange(self._vms))
            domain = self._libvirt.lookupByUUIDString(wanted)
            domain.destroy()
            domain.create()
            began.append((wanted, time.monotonic()))
            time.sleep(_CALM)
        return {"began": began}

    def close(self) -> None:
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


def main() -> None:
    host = Host(Path(sys.argv[1]), int(sys.argv[2]))
    for line in sys.stdin:
        word, *rest = line.split()
        print(json.dumps(host.capacity() if word == "capacity" else host.storm(*map(int, rest))))
        sys.stdout.flush()
    host.close()


if __name__ == "__main__":
    main()
