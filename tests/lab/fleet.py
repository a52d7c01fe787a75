"""A fleet in the lab: a real NATS cluster that the hosts reach, and enablers that publish to it.

The nodes are in the namespace of the wire between the hosts, each with an address there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tests.fleet.cluster import OPERATOR, READER, Cluster
from tests.lab import network
from tests.lab.commands import execute
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.state import ROOT

_NETWORK = f"/run/netns/{network.SWITCH}"
_ADDRESSES = ("10.77.0.101", "10.77.0.102", "10.77.0.103")

_SETTINGS = """
[fleet]
servers = {servers}
credentials = "{credentials}"
ca = "{ca}"
spool = "{spool}"
heartbeat_seconds = 1
"""

# What the stream holds, one line each, in its order; by the product's own reader.
_READ = """\
import asyncio, json, sys
from pathlib import Path
from enabler.config import load
from enabler.fleet.bus import connected
from enabler.fleet.store import told, topics

async def read():
    async with connected(load(Path(sys.argv[1]), {}, {}).fleet, "test") as bus:
        async for each in told(bus, topics()):
            event = each.event
            print(json.dumps([each.topic, each.flaw, event and event.id, event and event.host,
                  event and event.vm, event and event.kind, event and event.mark.spool,
                  event and event.mark.number]))

asyncio.run(read())
"""


@dataclass(frozen=True, slots=True)
class Told:
    """One message of the stream."""

    topic: str
    flaw: str | None
    id: str
    host: str
    vm: str | None
    kind: str
    spool: str
    number: int


@dataclass(frozen=True, slots=True)
class Stay:
    """One line of `enabler fleet history`."""

    host: str
    since: datetime
    until: datetime | None
    arrived_by: str


class Fleet:
    """The lab's hosts as one fleet. Commands run on the first of them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.cluster = Cluster(
            ROOT / "nats",
            _ADDRESSES,
            command=lambda *argv: ["nsenter", f"--net={_NETWORK}", "--", *argv],
        )
        self._reader = ROOT / "nats" / "reader.toml"

    def up(self) -> None:
        """Start the cluster, set it up, and have all enablers publish to it."""
        addresses = "".join(f"address add {each}/24 dev wire\n" for each in _ADDRESSES)
        execute(["ip", "-n", network.SWITCH, "-batch", "-"], stdin=f"link set lo up\n{addresses}")
        for host in self.lab.hosts:
            self.cluster.add("host", self.uuid(host))
        self.cluster.start()
        self._write_settings()
        operator = ROOT / "nats" / "operator.toml"
        operator.write_text(self._settings(OPERATOR, self.lab.hosts[0]))
        self.lab.hosts[0].run("enabler", "fleet", "setup", "--config", str(operator))
        for host in self.lab.hosts:
            host.enabler.restart()

    def uuid(self, host: Host) -> str:
        """A host's UUID in the fleet: libvirt's."""
        assert host.machine is not None
        return host.machine.uuid

    def host(self, uuid: str) -> Host:
        """The host with this UUID."""
        return next(host for host in self.lab.hosts if self.uuid(host) == uuid)

    def ask(self, *command: str) -> Any:
        """What `enabler fleet … --json` says."""
        config = ("--json", "--config", str(self._reader))
        done = self.lab.hosts[0].run("enabler", "fleet", *command, *config, check=False)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def stays(self, vm: str) -> list[Stay]:
        """`enabler fleet history`."""
        return [
            Stay(
                self.host(each["host"]).name,
                datetime.fromisoformat(each["from"]),
                None if each["until"] is None else datetime.fromisoformat(each["until"]),
                each["arrived_by"],
            )
            for each in self.ask("history", vm)["stays"]
        ]

    def stream(self) -> list[Told]:
        """All that the stream holds, in its order."""
        host = self.lab.hosts[0]
        python = host.environment["PATH"].split(":")[0] + "/python"
        said = host.run(python, "-c", _READ, str(self._reader)).stdout
        return [Told(*json.loads(line)) for line in said.splitlines()]

    def _write_settings(self) -> None:
        self._reader.write_text(self._settings(READER, self.lab.hosts[0]))
        for host in self.lab.hosts:
            with host.enabler_config.open("a") as config:
                config.write(self._settings(self.uuid(host), host))

    def _settings(self, user: str, host: Host) -> str:
        return _SETTINGS.format(
            servers=json.dumps(self.cluster.urls),
            credentials=self.cluster.credentials(user),
            ca=self.cluster.ca,
            spool=host.directory / "fleet",
        )


@contextmanager
def fleet_of(lab: Lab) -> Iterator[Fleet]:
    """A fleet of the lab's hosts, for as long as the lab is up."""
    fleet = Fleet(lab)
    try:
        fleet.up()
        yield fleet
    finally:
        fleet.cluster.close()
