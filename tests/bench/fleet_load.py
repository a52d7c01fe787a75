"""What a fleet of 10,000 hosts and 300,000 VMs is to the real cluster of three nodes.

The cluster is that of deploy/nats, on this one machine, with this program as its clients: 16
connections, over TLS, stand for the hosts' 10,000. All VMs are told to be there first (every host
starts at once), each in the stream and in the bucket; then come the migrations of the simulation
(`tests.bench.fleet`): a drained rack at its own pace, ten racks at once at theirs, and as many as
go.
The events are the product's own, with a real signature's bytes; signing is the hosts' work, and is
not done here for each one anew. A host's next event waits for the answer to its last, as it does
in the enabler.

The baseline of the stream is the same bytes, published to a stream of three replicas without an ID.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import ssl
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import nats
from nats.js import JetStreamContext
from nats.js.api import Header

from enabler.documents import timestamp
from enabler.fleet.event import VMS, Event, Mark, make
from tests.bench.figures import Figure, at_least, say
from tests.bench.fleet.model import Fleet, Parameters
from tests.fleet.cluster import OPERATOR, Cluster
from tests.lab.processes import wait_until

FLEET = Parameters()
CONNECTIONS = 16
WINDOW = 256
"""Publishes of one connection that wait for their answers."""
BARE = 100_000
REPLAYED = 60
"""Seconds of a simulated wave that are replayed."""
FLAT_OUT = 10_000
"""Migrations."""

_SIGNATURE = f"{'e' * 94}..{'s' * 86}"
_BEGAN = datetime.now(UTC)
_COMPONENT = f"sha256:{'c' * 64}"
_MACHINE = {
    "manufacturer": "IBM", "type": "9040", "model": "MR9", "serial_number": "78ABCDE",
    "uuid": "aaaaaaaa-0000-4000-8000-000000000001",
}  # fmt: skip
_CAPACITY = {
    "cpu_model": "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz", "sockets": 2, "cores_per_socket": 12,
    "threads_per_core": 8, "memory_bytes": 1 << 40,
}  # fmt: skip


@dataclass(slots=True)
class _Fleet:
    """The hosts: where each VM is, what its key's revision is, each host's count."""

    hosts: int = FLEET.hosts
    at: list[int] = field(
        default_factory=lambda: [vm % FLEET.hosts for vm in range(FLEET.hosts * FLEET.vms_per_host)]
    )
    revisions: dict[int, int] = field(default_factory=dict)
    count: int = 0

    def event(self, vm: int, host: int, kind: str, stay: int) -> Event:
        """What a host tells of a VM."""
        self.count += 1
        since = _BEGAN + timedelta(milliseconds=stay)
        data: dict[str, Any] = {
            "component_id": _COMPONENT,
            "vm": {"uuid": _uuid(1, vm), "name": f"vm{vm}"},
            "residency": {
                "id": _uuid(2, stay), "since": timestamp(since), "arrived_by": "migration",
            },
            "order": round(since.timestamp() * 1000),
            "migration": {"state": "none"},
        }  # fmt: skip
        if kind in ("present", "arrival"):
            data |= {"machine": _MACHINE, "capacity": _CAPACITY, "carried": "d" * 64}
            data["allocation"] = {"generation_id": None, "vcpus": 4, "memory_bytes": 8 << 30}
        made = make(
            _uuid(3, host), _uuid(1, vm), kind, datetime.now(UTC), Mark("18a1", self.count), data
        )
        return made.with_signature(_SIGNATURE)


def _uuid(kind: int, number: int) -> str:
    return str(UUID(int=kind << 120 | 0x4000 << 64 | 0x8 << 60 | number))


class _Clients:
    """The connections; each may do what all the hosts may."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._streams: list[JetStreamContext] = []
        self._next = 0

    async def open(self) -> None:
        for number in range(CONNECTIONS):
            client = await nats.connect(
                self._cluster.urls[number % 3],
                tls=ssl.create_default_context(cafile=self._cluster.ca),
                nkeys_seed_str=self._cluster.credentials("load").read_text().strip(),
            )
            self._streams.append(client.jetstream(timeout=60, publish_async_max_pending=WINDOW))

    async def close(self) -> None:
        for each in self._streams:
            await each._nc.close()  # it has no other name

    def one(self) -> JetStreamContext:
        self._next += 1
        return self._streams[self._next % CONNECTIONS]

    async def all(self, work: Iterable[Callable[[JetStreamContext], Awaitable[Any]]]) -> float:
        """Do it all, as much at once as the windows let; returns the seconds it took."""
        queue = iter(work)
        began = time.monotonic()

        async def lane(stream: JetStreamContext) -> None:
            turns = asyncio.Semaphore(WINDOW)
            async with asyncio.TaskGroup() as tasks:
                for each in queue:
                    await turns.acquire()
                    tasks.create_task(do(stream, each, turns))

        async def do(
            stream: JetStreamContext,
            each: Callable[[JetStreamContext], Awaitable[Any]],
            turns: asyncio.Semaphore,
        ) -> None:
            try:
                await each(stream)
            finally:
                turns.release()

        await asyncio.gather(*(lane(stream) for stream in self._streams))
        return time.monotonic() - began


async def _publish(
    stream: JetStreamContext, subject: str, content: bytes, headers: dict[str, str] | None
) -> int:
    future = await stream.publish_async(subject, content, headers=headers)
    return int((await asyncio.wait_for(future, 60)).seq)


async def _tell(stream: JetStreamContext, event: Event) -> None:
    await _publish(stream, event.topic, event.encode(), {Header.MSG_ID: event.id})


async def _keep(stream: JetStreamContext, event: Event, revision: int) -> int:
    expected = {Header.EXPECTED_LAST_SUBJECT_SEQUENCE: str(revision)}
    return await _publish(stream, f"$KV.{VMS}.{event.vm}", event.encode(), expected)


async def _begin(
    stream: JetStreamContext, fleet: _Fleet, vm: int, late: list[float], due: float
) -> None:
    """Tell that a migration has begun, as its source does: the event, and the bucket."""
    await _say(stream, fleet, vm, fleet.at[vm], "migration-begun", late, due)


async def _end(
    stream: JetStreamContext, fleet: _Fleet, vm: int, target: int, late: list[float], due: float
) -> None:
    """Tell the rest of it, as its two hosts do."""
    source, fleet.at[vm] = fleet.at[vm], target
    for host, kind in (
        (source, "migration-switched-over"), (target, "arrival"), (source, "departure"),
    ):  # fmt: skip
        await _say(stream, fleet, vm, host, kind, late, due)
        due = time.monotonic()


async def _say(
    stream: JetStreamContext,
    fleet: _Fleet,
    vm: int,
    host: int,
    kind: str,
    late: list[float],
    due: float,
) -> None:
    event = fleet.event(vm, host, kind, fleet.count + FLEET.hosts * FLEET.vms_per_host)
    await _tell(stream, event)
    late.append(time.monotonic() - due)
    if kind in ("arrival", "departure"):
        # Neither of them knows the key's revision; the departure finds a later stay there.
        found = await stream.get_msg(f"KV_{VMS}", subject=f"$KV.{VMS}.{event.vm}")
        fleet.revisions[vm] = found.seq or 0
    if kind != "departure":
        fleet.revisions[vm] = await _keep(stream, event, fleet.revisions[vm])


def run() -> list[Figure]:
    """Measure; needs nats-server."""
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # nats-py over TLS is talkative
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder) / "cluster", max_store="20GB")
        _let_in(cluster)
        with cluster:
            return asyncio.run(_run(cluster))


def _let_in(cluster: Cluster) -> None:
    """Add a user without bounds, in place of 10,000 hosts."""
    cluster.add("reader", "load")
    conf = cluster.directory / "users.conf"
    bounded = re.compile(r"(# reader load\n +\{ nkey: \w+).*?\n      \}\n", re.DOTALL)
    conf.write_text(bounded.sub(r"\1 }\n", conf.read_text()))


async def _run(cluster: Cluster) -> list[Figure]:
    await cluster.set_up()
    clients, fleet = _Clients(cluster), _Fleet()
    await clients.open()
    vms = range(len(fleet.at))
    try:
        bare = await _bare(cluster, clients, fleet)
        say(f"bare: {bare:,.0f}/s")

        before = cluster.disk_bytes()
        took = await clients.all(
            (lambda stream, vm=vm: _tell(stream, fleet.event(vm, fleet.at[vm], "present", vm)))
            for vm in vms
        )
        disk = (cluster.disk_bytes() - before) / len(cluster.nodes) / len(vms)
        told = len(vms) / took
        say(f"stream: {told:,.0f}/s, {disk:,.0f} bytes an event on each node")

        async def keep(stream: JetStreamContext, vm: int) -> None:
            event = fleet.event(vm, fleet.at[vm], "present", vm)
            fleet.revisions[vm] = await _keep(stream, event, 0)

        took = await clients.all((lambda stream, vm=vm: keep(stream, vm)) for vm in vms)
        kept = len(vms) / took
        say(f"bucket: {kept:,.0f}/s")

        rack = await _replay(clients, fleet, FLEET.hosts_per_rack)
        racks = await _replay(clients, fleet, 10 * FLEET.hosts_per_rack)

        async def flat_out_one(stream: JetStreamContext, vm: int) -> None:
            await _begin(stream, fleet, vm, [], 0.0)
            await _end(stream, fleet, vm, (fleet.at[vm] + 1) % fleet.hosts, [], 0.0)

        took = await clients.all(
            (lambda stream, vm=vm: flat_out_one(stream, vm)) for vm in range(FLAT_OUT)
        )
        flat_out = 4 * FLAT_OUT / took
        say(f"flat out: {flat_out:,.0f} events/s")
        cluster.wait_well()
    finally:
        await clients.close()
    return [
        Figure("fleet_load", "events into the stream, R3, by ID", told, "events/s", bare,
               "the same bytes, no ID", at_least(0.5)),
        Figure("fleet_load", "VMs into the bucket, R3, by revision", kept, "VMs/s", bare,
               "the same bytes, no revision"),
        Figure("fleet_load", "migrations' events, stream and bucket, flat out", flat_out,
               "events/s"),
        *rack.figures("a drained rack"),
        *racks.figures("ten racks at once"),
        Figure("fleet_load", "disk for a million events, each node", disk * 1e6 / 1e9, "GB"),
    ]  # fmt: skip


async def _bare(cluster: Cluster, clients: _Clients, fleet: _Fleet) -> float:
    operator = await nats.connect(
        cluster.urls[0],
        tls=ssl.create_default_context(cafile=cluster.ca),
        nkeys_seed_str=cluster.credentials(OPERATOR).read_text().strip(),
    )
    jetstream = operator.jetstream()
    await jetstream.add_stream(name="BARE", subjects=["bare.*.*.*"], num_replicas=3)

    async def publish(stream: JetStreamContext, vm: int) -> None:
        event = fleet.event(vm, fleet.at[vm], "present", vm)
        await _publish(stream, f"bare.{event.topic.partition('.')[2]}", event.encode(), None)

    took = await clients.all((lambda stream, vm=vm: publish(stream, vm)) for vm in range(BARE))
    await jetstream.delete_stream("BARE")
    await operator.close()
    # They would be counted.
    await asyncio.to_thread(wait_until, lambda: not cluster.has_files_of("BARE"), 60, 0.1)
    return BARE / took


@dataclass(frozen=True, slots=True)
class _Replay:
    peak: int
    late: list[float]

    def figures(self, wave: str) -> list[Figure]:
        cuts = statistics.quantiles(self.late, n=100)
        name = f"{wave}, its first minute"
        return [
            Figure("fleet_load", f"{wave}: events in its busiest second", self.peak, "events"),
            Figure("fleet_load", f"{name}: from due to stored, median", cuts[49] * 1e3, "ms"),
            Figure("fleet_load", f"{name}: the same, 99 of 100", cuts[98] * 1e3, "ms"),
        ]


async def _replay(clients: _Clients, fleet: _Fleet, drained: int) -> _Replay:
    """Play the first minute of a wave, which is the busiest, at its own pace, whatever the servers
    do: in each second as many migrations begin and end as in the simulation.
    """
    simulated = Fleet(FLEET)
    tally = simulated.run([simulated.drain(host) for host in range(drained)])
    late: list[float] = []
    under_way: deque[tuple[int, asyncio.Task[None]]] = deque()
    ended: list[asyncio.Task[None]] = []
    began, vm = time.monotonic() + 0.5, 0

    async def end(vm: int, begun: asyncio.Task[None], due: float) -> None:
        await begun  # a host tells one thing after the other
        target = (fleet.at[vm] + 1 + secrets.randbelow(fleet.hosts - 1)) % fleet.hosts
        await _end(clients.one(), fleet, vm, target, late, due)

    for second in range(REPLAYED):
        ends = tally.migrations[second]
        begins = tally.host_events[second] - 3 * ends
        for number in range(begins + ends):
            due = began + second + number / (begins + ends)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if number < ends:
                ended.append(asyncio.create_task(end(*under_way.popleft(), due)))
            else:
                begun = _begin(clients.one(), fleet, vm, late, due)
                under_way.append((vm, asyncio.create_task(begun)))
                vm += 1
    await asyncio.gather(*ended, *(begun for _, begun in under_way))
    peak = max(tally.host_events[second] for second in range(REPLAYED))
    say(f"{drained} hosts drained: {len(late)} events, {peak} in the busiest second")
    return _Replay(peak, late)
