"""Publishing: what the enabler sees goes to the spool, from there to the stream and the buckets.

Everything here but `Publisher`'s methods runs in a thread of its own, with its own event loop, key
and files: nothing that a disk, a signature or a server takes its time for is noticed by a guest.

    inventory ──tell──▶ handover ──▶ spool ──▶ stream ENABLER
    (its thread)        (memory)     (disk)└─▶ bucket enabler-vms     heartbeat ──▶ enabler-hosts

- Events are sent one by one, in order, each until the stream has it. The stream knows their IDs and
  takes none twice within its window; who reads knows the IDs too.
- The bucket is written after the stream, by revision: `enabler.fleet.present` decides. Of a VM
  with newer events in the spool it is not written yet.
- At the start each VM that was told to be here and is not is told to have left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from enabler.config import FleetSettings
from enabler.documents import EventDocument, timestamp
from enabler.errors import EnablerError, FleetError, FleetRefused, SigningUnavailable
from enabler.events import Carried, Stay
from enabler.fleet import bus as buses
from enabler.fleet.bus import Bus, Conflict
from enabler.fleet.counters import Counters
from enabler.fleet.event import (
    ARRIVALS,
    DEPARTURE,
    EVENTS_LOST,
    HOST_SEEN,
    HOST_STARTED,
    HOST_STOPPED,
    HOSTS,
    RECORDED,
    REFUSED,
    TYPE,
    VMS,
    Event,
    MalformedEvent,
    Mark,
    make,
    parse,
)
from enabler.fleet.present import supersedes
from enabler.fleet.spool import Known, Lost, Spool
from enabler.history import digest, order
from enabler.keys import Keys

log = logging.getLogger(__name__)

HANDOVER = 65_536
"""Events that wait for the spool in memory; no disk is as slow as that."""

_BATCH = 512
_BACKOFF_FIRST, _BACKOFF_MOST = 0.5, 15.0
_SPOOL_RETRY = 5.0
_LOOK_AGAIN = 900.0
"""Seconds after which the bucket is looked at again for every VM that is here."""
_TRIES = 10
_GOODBYE = 3.0
"""Seconds that the servers have to take what is left when the enabler ends."""
_NOT_TOLD = ("kind", "at")


@dataclass(frozen=True, slots=True)
class Host:
    """Who publishes. ``uuid`` names the host in the fleet."""

    uuid: str
    name: str
    component_id: str
    machine: Mapping[str, Any]
    capacity: Mapping[str, Any]
    version: str


@dataclass(frozen=True, slots=True)
class _Told:
    document: EventDocument
    carried: Carried | None


@dataclass(frozen=True, slots=True)
class _Recorded:
    vm: str
    entry: str
    at: datetime


@dataclass(frozen=True, slots=True)
class _Settled:
    residents: frozenset[tuple[str, str]]
    at: datetime


@dataclass(slots=True)
class _Overrun:
    since: datetime
    count: int = 0


_News = _Told | _Recorded | _Settled | _Overrun
_Maker = Callable[[Mark], Event]


class Publisher:
    """Publishes for one host. It is the inventory's `enabler.inventory.Witness`: its methods are
    called in the inventory's thread, and do not block.
    """

    def __init__(self, settings: FleetSettings, host: Host, keys: Keys) -> None:
        self.counters = Counters(most_bytes=settings.spool_megabytes << 20)
        self._handover: deque[_News] = deque()
        self._overrun: _Overrun | None = None
        self._worker = _Worker(settings, host, keys, self.counters, self._take)
        self._thread = threading.Thread(target=self._worker.run, name="fleet", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Say goodbye and end; what the servers don't take within seconds stays in the spool."""
        self._worker.stop()
        self._thread.join(_GOODBYE + 2)

    def tell(self, event: EventDocument, carried: Carried | None) -> None:
        """Take in an event; with one of a VM, the history that it carried then."""
        self._put(_Told(event, carried))

    def recorded(self, vm_uuid: str, entry: str) -> None:
        """Take in that an entry of a VM's history is kept with its domain now."""
        self._put(_Recorded(vm_uuid, entry, datetime.now(UTC)))

    def settled(self, residents: frozenset[tuple[str, str]]) -> None:
        """Take in which VMs are here, by UUID and residency, now that all have been looked at."""
        self._put(_Settled(residents, datetime.now(UTC)))

    def _put(self, news: _News) -> None:
        if len(self._handover) >= HANDOVER:
            self._overrun = self._overrun or _Overrun(datetime.now(UTC))
            self._overrun.count += 1
            return
        if self._overrun is not None:
            self._handover.append(self._overrun)
            self._overrun = None
        self._handover.append(news)
        self._worker.wake()

    def _take(self, most: int) -> list[_News]:
        return [self._handover.popleft() for _ in range(min(most, len(self._handover)))]


class _Worker:
    """All that runs in the thread."""

    def __init__(
        self,
        settings: FleetSettings,
        host: Host,
        keys: Keys,
        counters: Counters,
        take: Callable[[int], list[_News]],
    ) -> None:
        self._settings = settings
        self._host = host
        self._name = f"enabler on {host.name}"
        self._capacity = dict(host.capacity)
        self._keys = keys
        self._counters = counters
        self._take = take
        self._pending: list[_Maker] = []
        self._here: dict[str, Event] = {}
        """The last event of each VM that is here, as far as was told."""
        self._before: dict[str, Event] = {}
        """The same, as it was when the enabler ended, until the inventory is settled."""
        self._boot_id = _boot_id()
        self._revisions: dict[str, int] = {}
        self._refused = False
        """Since the last event that was taken."""
        self._complained: str | None = None
        self._key_complained = False
        self._stop_asked = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news: asyncio.Event | None = None
        self._spooled: asyncio.Event | None = None
        self._stopping: asyncio.Event | None = None
        self._bus: Bus | None = None

    # Called from the inventory's thread ----------------------------------------------------------

    def wake(self) -> None:
        """There is something to take."""
        loop, news = self._loop, self._news
        if loop is not None and news is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(news.set)

    def stop(self) -> None:
        """End."""
        self._stop_asked.set()
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(stopping.set)

    # The thread ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Publish until `stop`."""
        while not self._stop_asked.is_set():
            try:
                asyncio.run(self._run())
            except Exception:
                log.exception("publishing failed, and begins anew; report this")
                self._stop_asked.wait(_SPOOL_RETRY)

    async def _run(self) -> None:
        self._news, self._spooled = asyncio.Event(), asyncio.Event()
        self._stopping = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        if self._stop_asked.is_set():
            return
        self._news.set()
        stopping = asyncio.ensure_future(self._stopping.wait())
        work = asyncio.ensure_future(self._work())
        await asyncio.wait((stopping, work), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if work.done():
            work.result()
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work

    async def _work(self) -> None:
        spool = await self._open()
        try:
            self._before = self._known(spool)
            self._here = dict(self._before)
            self._pending.append(self._of_host(HOST_STARTED, self._about() | self._described()))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._take_in(spool))
                tasks.create_task(self._send(spool))
                tasks.create_task(self._beat(spool))
                tasks.create_task(self._look_again(spool))
        except asyncio.CancelledError:
            await asyncio.shield(self._say_goodbye(spool))
            raise
        finally:
            spool.close()

    async def _open(self) -> Spool:
        while True:
            try:
                return Spool(self._settings.spool, self._settings.spool_megabytes << 20)
            except FleetError as error:
                self._complain(str(error))
            await asyncio.sleep(_SPOOL_RETRY)

    def _known(self, spool: Spool) -> dict[str, Event]:
        known = {}
        for vm, content in spool.here().items():
            with contextlib.suppress(MalformedEvent):
                known[vm] = parse(content)
        return known

    # Into the spool ------------------------------------------------------------------------------

    async def _take_in(self, spool: Spool) -> None:
        assert self._news is not None
        while True:
            self._drain(spool)
            if self._pending:  # the disk would not take it
                await asyncio.sleep(_SPOOL_RETRY)
                continue
            await self._news.wait()
            self._news.clear()

    def _drain(self, spool: Spool) -> None:
        while True:
            for news in self._take(_BATCH):
                self._pending += self._makers(news)
            if not self._pending:
                return
            try:
                spool.append(self._pending)
            except FleetError as error:
                self._complain(str(error))
                return
            self._pending.clear()
            self._count(spool)
            assert self._spooled is not None
            self._spooled.set()

    def _makers(self, news: _News) -> list[_Maker]:
        match news:
            case _Told(document, carried):
                return self._of_document(document, carried)
            case _Recorded(vm, entry, at):
                data = {"component_id": self._host.component_id, "entry": entry}
                return [self._maker(vm, RECORDED, at, data)]
            case _Overrun(since, count):
                now = datetime.now(UTC)
                return [partial(self._lost, lost=Lost(count, since.timestamp(), now.timestamp()))]
            case _Settled(residents, at):
                before, self._before = self._before, {}
                gone = [
                    each for vm, each in before.items() if (vm, each.residency) not in residents
                ]
                # Those that are here in another stay have been told to have left already.
                gone = [each for each in gone if self._is_latest(each)]
                return [self._left(each, at) for each in gone]

    def _is_latest(self, event: Event) -> bool:
        known = self._here.get(event.vm or "")
        return known is not None and known.residency == event.residency

    def _left(self, event: Event, at: datetime) -> _Maker:
        """Tell that a VM had left, at some time until now, when nobody looked."""
        self._here.pop(event.vm or "", None)
        data = {name: event.data[name] for name in ("component_id", "vm", "residency", "order")} | {
            "noticed": True
        }
        return self._maker(event.vm, DEPARTURE, at, data)

    def _of_document(self, document: EventDocument, carried: Carried | None) -> list[_Maker]:
        content = json.loads(document.line())
        data: dict[str, Any] = {"component_id": self._host.component_id}
        data |= {name: value for name, value in content.items() if name not in _NOT_TOLD}
        kind = str(document.kind)
        if document.capacity is not None:
            self._capacity = dict(content["capacity"])
        if document.vm is None or document.residency is None:
            return [self._maker(None, kind, document.at, data)]
        vm, told = document.vm.uuid, document.residency
        makers = []
        known = self._here.get(vm)
        if known is not None and known.residency != told.id and known.here and kind in ARRIVALS:
            # It left while nobody looked: the enabler was down.
            makers.append(self._left(known, document.at))
        if carried is not None:
            stay = Stay(told.id, told.since, told.arrived_by)
            data["order"] = self._order(vm, stay, carried)
            if kind in ARRIVALS:
                data |= self._described()
                data["carried"] = digest(carried.entries[-1]) if carried.entries else None
                if carried.flaw is not None:
                    data["flaw"] = carried.flaw
        event = make(self._host.uuid, vm, kind, document.at, Mark("", 0), data)
        if event.here:
            self._here[vm] = event
        else:
            self._here.pop(vm, None)
        return [*makers, self._maker(vm, kind, document.at, data)]

    def _order(self, vm: str, stay: Stay, carried: Carried) -> int:
        """Return the stay's order; what was told once of a stay stands."""
        known = self._here.get(vm)
        if known is not None and known.residency == stay.id:
            return int(known.data["order"])
        return order(carried, stay)

    def _of_host(self, kind: str, data: Mapping[str, Any]) -> _Maker:
        told = {"component_id": self._host.component_id, **data}
        return self._maker(None, kind, datetime.now(UTC), told)

    def _maker(self, vm: str | None, kind: str, at: datetime, data: Mapping[str, Any]) -> _Maker:
        return lambda mark: self._signed(make(self._host.uuid, vm, kind, at, mark, data))

    def _signed(self, event: Event) -> Event:
        try:
            signature = self._keys.sign_detached(TYPE, event.content())
        except SigningUnavailable as error:
            self._counters.unsigned += 1
            if not self._key_complained:
                log.warning("events go out unsigned: %s", error)
            self._key_complained = True
            return event
        self._key_complained = False
        return event.with_signature(signature)

    def _about(self) -> dict[str, Any]:
        host = {"name": self._host.name, "version": self._host.version, "boot_id": self._boot_id}
        return {"host": host}

    def _described(self) -> dict[str, Any]:
        return {"machine": dict(self._host.machine), "capacity": self._capacity}

    # To the servers ------------------------------------------------------------------------------

    async def _send(self, spool: Spool) -> None:
        backoff = _BACKOFF_FIRST
        while True:
            try:
                self._bus = await buses.connect(self._settings, self._name, self._host.uuid)
                log.info("publishing to the fleet's servers")
                self._counters.connected, self._complained = True, None
                self._revisions.clear()
                while True:
                    await self._send_all(spool, self._bus)
                    backoff = _BACKOFF_FIRST
                    await self._more(spool, self._bus)
            except FleetRefused as error:
                self._counters.refused += 1
                self._tell_refused(spool, str(error))
                self._complain(str(error))
            except EnablerError as error:
                self._counters.failed += 1
                self._complain(str(error))
            finally:
                self._counters.connected = False
                if self._bus is not None:
                    await self._bus.close()
                    self._bus = None
            # Not all hosts in the same second.
            await asyncio.sleep(random.uniform(backoff / 2, backoff))  # noqa: S311  no secret
            backoff = min(backoff * 2, _BACKOFF_MOST)

    async def _more(self, spool: Spool, bus: Bus) -> None:
        """Wait until there is more to send; raises if the connection breaks."""
        assert self._spooled is not None
        while not bus.closed:
            if self._spooled.is_set() or spool.first() or spool.unsettled(spool.last):
                self._spooled.clear()
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._spooled.wait()
        raise FleetError("the connection to the fleet's servers broke; trying again")

    async def _send_all(self, spool: Spool, bus: Bus) -> None:
        spool.tell_lost(self._lost)
        while (waiting := spool.first()) is not None:
            event = parse(waiting.content)
            new = await bus.publish(event, waiting.content)
            spool.sent(waiting)
            self._counters.published += 1
            self._counters.duplicates += not new
            self._count(spool)
            self._refused = False
            await self._settle(spool, bus, waiting.number)
        await self._settle(spool, bus, spool.last)

    async def _settle(self, spool: Spool, bus: Bus, until: int) -> None:
        while (known := spool.unsettled(until)) is not None:
            await self._claim(bus, known)
            spool.settle(known)

    async def _claim(self, bus: Bus, known: Known) -> None:
        """See that the bucket holds this event, or one that counts more."""
        told = parse(known.content)
        for attempt in range(_TRIES):
            revision = self._revisions.get(known.vm)
            if revision is None:
                kept = await bus.kept(VMS, known.vm)
                revision = 0 if kept is None else kept.revision
                if kept is not None and not supersedes(told, kept.event):
                    same = kept.event is not None and kept.event.claim == told.claim
                    self._counters.outdated += not same
                    return
            try:
                revision = await bus.keep(VMS, known.vm, known.content, revision)
            except Conflict:
                self._counters.conflicts += 1
                self._revisions.pop(known.vm, None)
                await asyncio.sleep(random.uniform(0, 0.02 * 2**attempt))  # noqa: S311
                continue
            self._counters.claims += 1
            if told.here:
                self._revisions[known.vm] = revision
            else:
                self._revisions.pop(known.vm, None)
            return
        raise FleetError(f"the bucket's entry of VM {known.vm} changes all the while; trying again")

    async def _look_again(self, spool: Spool) -> None:
        """The bucket may have been lost, or put back from a copy: what is here is told again."""
        while True:
            await asyncio.sleep(random.uniform(_LOOK_AGAIN / 2, _LOOK_AGAIN))  # noqa: S311
            self._revisions.clear()
            with contextlib.suppress(FleetError):
                spool.unsettle()

    def _lost(self, mark: Mark, lost: Lost) -> Event:
        data = {
            "component_id": self._host.component_id,
            "lost": {
                "count": lost.count,
                "since": timestamp(datetime.fromtimestamp(lost.since, UTC)),
                "until": timestamp(datetime.fromtimestamp(lost.until, UTC)),
            },
        }
        self._counters.lost += lost.count
        return self._maker(None, EVENTS_LOST, datetime.now(UTC), data)(mark)

    def _tell_refused(self, spool: Spool, why: str) -> None:
        """Put it down, once, for when they take our events again: whoever mends it may have to
        start the enabler anew for that.
        """
        if self._refused:
            return
        self._refused = True
        since = timestamp(datetime.now(UTC))
        with contextlib.suppress(FleetError):
            spool.append([self._of_host(REFUSED, {"refused": {"since": since, "why": why[:300]}})])

    # Signs of life -------------------------------------------------------------------------------

    async def _beat(self, spool: Spool) -> None:
        while True:
            bus = self._bus
            if bus is not None and not bus.closed:
                await self._give_sign(spool, bus, HOST_SEEN)
                await asyncio.sleep(self._settings.heartbeat_seconds)
            else:
                await asyncio.sleep(0.2)

    async def _give_sign(self, spool: Spool, bus: Bus, kind: str) -> None:
        data = {
            **self._about(),
            **self._described(),
            "interval": self._settings.heartbeat_seconds,
            "vms": len(self._here),
            "waiting": spool.count,
            "last": spool.last,
        }
        sign = self._of_host(kind, data)(Mark(spool.id, 0))
        try:
            await bus.keep(HOSTS, self._host.uuid, sign.encode(), None)
        except FleetRefused as error:
            self._counters.refused += 1
            self._complain(str(error))
        except EnablerError as error:
            self._counters.failed += 1
            log.debug("no sign of life could be given: %s", error)

    async def _say_goodbye(self, spool: Spool) -> None:
        with contextlib.suppress(TimeoutError, EnablerError):
            self._drain(spool)
            spool.append([self._of_host(HOST_STOPPED, self._about())])
            async with asyncio.timeout(_GOODBYE):
                host = self._host.uuid
                async with buses.connected(self._settings, self._name, host) as bus:
                    await self._send_all(spool, bus)
                    await self._give_sign(spool, bus, HOST_STOPPED)

    # Counting ------------------------------------------------------------------------------------

    def _count(self, spool: Spool) -> None:
        self._counters.waiting, self._counters.waiting_bytes = spool.count, spool.size
        self._counters.oldest = spool.oldest

    def _complain(self, what: str) -> None:
        if what != self._complained:  # once, not at each attempt
            log.warning("%s; events wait in the spool", what)
        self._complained = what


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
