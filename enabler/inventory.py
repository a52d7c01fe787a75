"""The VMs of this host: kept by `enabler.residency`, fed by the hypervisor, asked by the api. The
one mutable state.

Everything here runs in one thread (the asyncio loop's). An answer is given without asking libvirt
when all of this holds:

- the VM is resident by all news so far, and no news is unsettled;
- libvirt confirmed, within `MAX_AGE`, that it answers and that its events have been told;
- the VM's process lives, and libvirt's status file of it is unchanged (`enabler.runs`): two system
  calls.

Otherwise libvirt is asked, within `PATIENCE`; and if that settles nothing, the answer is the error
that says why.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

from enabler import answers, history, residency
from enabler.answers import Answer
from enabler.changes import EventKind, Known, changes
from enabler.documents import (
    CapacityDocument,
    EventDocument,
    MachineDocument,
    VmSummary,
)
from enabler.domains import Record
from enabler.errors import (
    EnablerError,
    HypervisorError,
    VmArriving,
    VmLeaving,
    VmNotFound,
)
from enabler.events import Carried, Event, Kind, Lifecycle, Observation, Seen, Stay, VmFacts
from enabler.feed import Feed
from enabler.history import Archive
from enabler.migrations import Migrations
from enabler.recording import Recording
from enabler.residency import Place, Vm
from enabler.runs import Run, StatusFile

log = logging.getLogger(__name__)

MAX_AGE = 3.0
"""Seconds for which libvirt's last confirmation is good."""

PATIENCE = 2.0
"""Seconds that a request waits for libvirt to settle a doubt."""

WATCH_INTERVAL = 0.5
"""Seconds between two looks at a VM whose next step may come without an event."""

LOOK_INTERVAL = 1.0
"""Seconds between two looks at the whole list for callers that nobody knows."""

Mark = tuple[str, str | int]
"""What a VM is known by: the kind and the thing, as in ``("mac", "52:54:00:…")``."""

_RETRY_INTERVAL = 1.0
_LOOKS = 3


class Source(Protocol):
    """Whom the inventory asks: the hypervisor."""

    def ask(self, vm_uuid: str, news: int) -> None:
        """Ask where a VM is; the answer comes to `Inventory.observation` or `unanswered`."""

    def confirm(self) -> None:
        """Ask for a confirmation now; it comes to `Inventory.confirmed`."""

    def look(self) -> None:
        """Ask which VMs are active; it comes to `Inventory.listed`, and a confirmation after it."""

    def record(self, vm_uuid: str, record: Record) -> None:
        """Keep a record with its domain; what came of it comes to `Inventory.recorded`."""


class Witness(Protocol):
    """Who hears of every event at once, in order. May not block."""

    def tell(self, event: EventDocument, carried: Carried | None) -> None:
        """Take in an event; with one of a VM, the history that it carried then."""

    def recorded(self, vm_uuid: str, entry: str) -> None:
        """Take in that an entry of a VM's history is kept with its domain now."""


@dataclass(slots=True)
class _Entry:
    vm: Vm
    run: Run | None = None
    status: StatusFile | None = None
    answer: Answer | None = None
    """Made when it is first asked for; None after each change."""
    told: Known | None = None
    asked: bool = False
    observed_at: datetime | None = None
    failure: HypervisorError | None = None
    known_by: tuple[str, ...] = ()
    """The ways by which the VM was known when it last came to ask."""
    waiting: list[asyncio.Future[None]] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    watchers: set[asyncio.Future[None]] = field(default_factory=set)


class Inventory:
    """The VMs of one host.

    ``clock`` gives seconds on a clock that nobody sets (`enabler.hypervisor.clock`); ``patience``
    is how many of them a request waits for libvirt. With an ``archive`` each VM's history is kept
    with its domain.
    """

    def __init__(
        self,
        component_id: str,
        machine: MachineDocument,
        capacity: CapacityDocument,
        source: Source,
        clock: Callable[[], float],
        patience: float = PATIENCE,
        archive: Archive | None = None,
        witness: Witness | None = None,
    ) -> None:
        self.component_id = component_id
        self.machine = machine
        self.capacity = capacity
        self._source = source
        self._clock = clock
        self._patience = patience
        self.feed = Feed()
        self._witness = witness
        self.migrations = Migrations()
        self._entries: dict[str, _Entry] = {}
        self._records = Recording(source.record, self._vm, archive, clock)
        self._by_mark: dict[Mark, set[str]] = {}
        self.callers_version = 0
        """Counts the changes of what callers are known by: who was who before may not be now."""
        self._news = itertools.count()
        self._failure: HypervisorError | None = HypervisorError("libvirt was not asked yet")
        self._unsettled_at_start: set[str] = set()
        self._began = False
        """Whether a connection has stood before: what is found then was not here all along."""
        self._before_us: set[str] = set()
        """VMs that ran before anybody looked, until they are looked at."""
        self._confirmed_at: float | None = None
        self._looked_at: float | None = None
        self._listed_at: float | None = None
        self.observed_at: datetime | None = None
        self._confirmations: list[asyncio.Future[None]] = []

    # Fed by the hypervisor ----------------------------------------------------------------------

    def connected(self, running: Iterable[str]) -> None:
        """Take the inventory anew: a connection stands, and events may have been lost before it."""
        if self._failure is not None and self._began:
            self._announce(EventDocument(kind=EventKind.LIBVIRT_FOUND, at=datetime.now(UTC)))
        self._failure = None
        self._records.begin()
        self._unsettled_at_start = set(running)
        if not self._began:
            self._began, self._before_us = True, set(running)
            log.info("%d VMs run here", len(self._before_us))
        for vm_uuid, entry in self._entries.items():
            self._set(vm_uuid, entry, residency.doubt(entry.vm))
        self.listed(running)

    def listed(self, running: Iterable[str]) -> None:
        """Look again at every VM that runs, and at every one that was thought to."""
        self._listed_at = self._clock()
        for vm_uuid in {*running, *self._entries}:
            self._ask(vm_uuid, self._entry(vm_uuid))

    def disconnected(self, error: HypervisorError) -> None:
        """Say nothing more of any VM until libvirt can be asked again."""
        if self._failure is None:
            log.warning("%s", error)
            lost = EventDocument(
                kind=EventKind.LIBVIRT_LOST, at=datetime.now(UTC), detail=str(error)
            )
            self._announce(lost)
        self._failure = error
        for vm_uuid, entry in self._entries.items():
            entry.asked = False
            self._set(vm_uuid, entry, residency.doubt(entry.vm))
            self._wake(entry)

    def confirmed(self, asked: datetime, asked_at: float) -> None:
        """Libvirt answered what was asked at that time; its events until then have been told."""
        self.observed_at, self._confirmed_at = asked, asked_at
        for waiter in self._confirmations:
            if not waiter.done():
                waiter.set_result(None)
        self._confirmations.clear()
        for vm_uuid, entry in self._entries.items():
            # Who waits does not ask: a change without an event is looked for on its behalf.
            if entry.watchers and not self._current(entry):
                self._ask(vm_uuid, entry)
        self._records.resume(all_seen=not self._unsettled_at_start)

    def event(self, event: Event) -> None:
        """Take in an event, and have libvirt asked what it leaves open."""
        entry = self._entry(event.vm_uuid)
        if isinstance(event, Lifecycle) and event.kind is Kind.STOPPED:
            self._records.depart(event.vm_uuid, entry.vm, event.at)
        self._set(event.vm_uuid, entry, residency.apply(entry.vm, event))
        self._ask(event.vm_uuid, entry)

    def observation(
        self, seen: Observation, run: Run | None = None, status: StatusFile | None = None
    ) -> None:
        """Take in libvirt's answer about one VM; ask again if news overtook it."""
        vm_uuid = seen.facts.uuid if isinstance(seen, Seen) else seen.vm_uuid
        entry = self._entry(vm_uuid)
        entry.asked, entry.failure = False, None
        vm = residency.observe(entry.vm, seen, self.component_id)
        if not vm.settled:
            self._ask(vm_uuid, entry)
            return
        entry.run, entry.status, entry.observed_at = run, status, seen.at
        at_start = vm_uuid in self._unsettled_at_start
        self._unsettled_at_start.discard(vm_uuid)
        self._set(vm_uuid, entry, vm)
        self._tell(vm_uuid, entry, seen.at)
        if vm.place is Place.ABSENT:
            del self._entries[vm_uuid]
            self._records.forget(vm_uuid)
        elif vm.watched:
            self._later(WATCH_INTERVAL, vm_uuid)
        if not (at_start and self._records.put_off(vm_uuid, vm)):
            self._records.keep(vm_uuid, vm)
        self._records.resume(all_seen=not self._unsettled_at_start)
        self._wake(entry)

    def unanswered(self, vm_uuid: str, error: HypervisorError) -> None:
        """Libvirt did not say where a VM is: it stays in doubt, and is asked again."""
        entry = self._entry(vm_uuid)
        entry.asked, entry.failure = False, error
        log.warning("VM %s: %s", vm_uuid, error)
        self._set(vm_uuid, entry, residency.doubt(entry.vm))
        self._later(_RETRY_INTERVAL, vm_uuid)
        self._wake(entry)

    def recorded(self, vm_uuid: str, record: Record, error: HypervisorError | None) -> None:
        """What came of keeping a record with its domain: it may fail, and is tried again when the
        VM is next looked at. No residency hangs on it.
        """
        if error is not None:
            log.info("VM %s: %s was not kept in its metadata: %s", vm_uuid, record.namespace, error)
        elif record.namespace == history.NAMESPACE and self._witness is not None:
            self._witness.recorded(vm_uuid, history.last_entry(record.element))
        self._records.written(vm_uuid, record, failed=error is not None)

    def recognised(self, vm_uuid: str, ways: tuple[str, ...]) -> None:
        """Keep by which ways a caller was found to be this VM, for the admin to see."""
        entry = self._entries.get(vm_uuid)
        if entry is not None:
            entry.known_by = ways

    def set_capacity(self, capacity: CapacityDocument) -> None:
        """Take in the host's capacity, which an admin can change while VMs run."""
        if capacity == self.capacity:
            return
        self.capacity = capacity
        self._announce(
            EventDocument(kind=EventKind.CAPACITY_CHANGED, at=datetime.now(UTC), capacity=capacity)
        )
        for entry in self._entries.values():
            self._renew_answer(entry)

    # Asked by the api ----------------------------------------------------------------------------

    @property
    def failure(self) -> HypervisorError | None:
        """Why nothing can be said of any VM; None if it can."""
        if self._failure is not None:
            return self._failure
        if not self._fresh():
            return HypervisorError("libvirt has not answered for some seconds; is libvirtd hung?")
        return None

    @property
    def connected_now(self) -> bool:
        """Whether libvirt is connected, though it may not have answered for a while."""
        return self._failure is None

    @property
    def confirmed_age(self) -> float | None:
        """Seconds since libvirt confirmed that it answers; None if it never did."""
        return None if self._confirmed_at is None else self._clock() - self._confirmed_at

    @property
    def age(self) -> float | None:
        """Seconds since libvirt's whole list was taken in; None if it never was."""
        return None if self._listed_at is None else self._clock() - self._listed_at

    def places(self) -> Counter[Place]:
        """Return how many VMs are in each place."""
        return Counter(entry.vm.place for entry in self._entries.values())

    def unsettled(self) -> int:
        """Return of how many VMs there is news that libvirt was not asked about yet."""
        return sum(not entry.vm.settled for entry in self._entries.values())

    async def ready(self) -> None:
        """Raise `HypervisorError` unless the truth about the VMs here can be told."""
        await self._freshen()
        if self._unsettled_at_start:
            count = len(self._unsettled_at_start)
            raise HypervisorError(f"{count} VMs are not looked at yet, after libvirt was connected")

    def vms_of_mac(self, mac: str) -> frozenset[str]:
        """Return the UUIDs of the active domains that have this MAC address: one, unless there is
        something wrong.
        """
        return frozenset(self._by_mark.get(("mac", mac), ()))

    def vms_of_cid(self, cid: int) -> frozenset[str]:
        """Return the UUIDs of the active domains that have this vsock address, likewise."""
        return frozenset(self._by_mark.get(("cid", cid), ()))

    def vms_of_token(self, sha256: str) -> frozenset[str]:
        """Return the UUIDs of the active domains whose token has this hash, likewise."""
        return frozenset(self._by_mark.get(("token", sha256), ()))

    def token_sha256(self, vm_uuid: str) -> str | None:
        """Return the hash of a VM's token, if it is enrolled."""
        entry = self._entries.get(vm_uuid)
        return entry.vm.facts.token_sha256 if entry and entry.vm.facts else None

    async def identity(self, vm_uuid: str) -> tuple[Answer, datetime]:
        """Return a VM's identity, and when the hypervisor last confirmed it.

        Raises `VmNotFound`, `VmArriving`, `VmLeaving` or `HypervisorError`.
        """
        await self._freshen()
        current = self.current(vm_uuid)
        if current is None:
            entry = await self._settled(vm_uuid)
            if entry is None:
                raise VmNotFound(f"no VM {vm_uuid} runs on this host")
            current = self.current(vm_uuid)
            if current is None:
                raise self._why_not(vm_uuid, entry)
        return current

    def current(self, vm_uuid: str) -> tuple[Answer, datetime] | None:
        """Return the same without asking libvirt; None where it must be asked."""
        if self._failure is not None or not self._fresh():
            return None
        entry = self._entries.get(vm_uuid)
        if entry is None or not self._current(entry):
            return None
        if self.observed_at is None or entry.observed_at is None:
            return None
        answer = entry.answer or self._make_answer(entry)
        return None if answer is None else (answer, max(self.observed_at, entry.observed_at))

    async def history(self, vm_uuid: str) -> tuple[Carried, Stay]:
        """Return the history of a VM that lives here, and its present stay. Raises as `identity`
        does.
        """
        await self.identity(vm_uuid)
        entry = self._entries[vm_uuid]
        assert entry.vm.stay is not None
        return self._records.history(vm_uuid, entry.vm), entry.vm.stay

    async def change(
        self, vm_uuid: str, unlike: Callable[[str], bool], seconds: float
    ) -> tuple[Answer, datetime]:
        """Return a VM's identity when its ETag is ``unlike`` the known one, or after ``seconds``.

        Raises as `identity` does, also while it waits: a VM that leaves is no longer told anything.
        """
        deadline = self._clock() + seconds
        while True:
            answer, observed_at = await self.identity(vm_uuid)
            left = deadline - self._clock()
            if left <= 0 or unlike(answer.etag):
                return answer, observed_at
            watchers = self._entries[vm_uuid].watchers
            loop = asyncio.get_running_loop()
            watcher: asyncio.Future[None] = loop.create_future()
            watchers.add(watcher)
            # No asyncio.timeout: thousands wait, and it is memory. After the time, a last look.
            timer = loop.call_later(left, _end, watcher)
            try:
                await watcher
            finally:
                timer.cancel()
                watchers.discard(watcher)

    async def look_for_new(self) -> None:
        """Have everything libvirt lists looked at: a caller came whom no known VM explains.

        At most once in `LOOK_INTERVAL`: strangers must not make work. Raises `HypervisorError` if
        libvirt does not answer.
        """
        await self._freshen()
        if self._looked_at is not None and self._clock() - self._looked_at < LOOK_INTERVAL:
            return
        self._looked_at = self._clock()
        self._source.look()
        await self._confirmation()
        unsettled = [uuid for uuid, entry in self._entries.items() if not entry.vm.settled]
        await asyncio.gather(*(self._settle(vm_uuid) for vm_uuid in unsettled))

    def summaries(self) -> list[VmSummary]:
        """Return every VM known here, resident or not."""
        return [
            answers.summary(vm_uuid, entry.vm, entry.known_by)
            for vm_uuid, entry in sorted(self._entries.items())
        ]

    def state(self, at: datetime) -> EventDocument:
        """Return everything as it is now, as the event that a stream begins with."""
        return EventDocument(
            kind=EventKind.STATE,
            at=at,
            capacity=self.capacity,
            vms=self.summaries(),
            detail=None if self.failure is None else str(self.failure),
        )

    # Inside --------------------------------------------------------------------------------------

    def _entry(self, vm_uuid: str) -> _Entry:
        entry = self._entries.get(vm_uuid)
        if entry is None:
            # A count that no earlier entry of this VM had, so that an answer to an older question
            # finds no match.
            entry = self._entries[vm_uuid] = _Entry(Vm(news=next(self._news) << 32))
        return entry

    def _set(self, vm_uuid: str, entry: _Entry, vm: Vm) -> None:
        old, entry.vm = entry.vm, vm
        self.migrations.changed(vm_uuid, vm)
        if old.place is not vm.place or old.stay != vm.stay:
            # Those found at a start are told of by their number.
            level = logging.DEBUG if vm_uuid in self._before_us else logging.INFO
            log.log(level, "VM %s: %s%s", vm_uuid, vm.place, f" {vm.stay.id}" if vm.stay else "")
        now = vm.facts if vm.place is not Place.ABSENT else None
        self._index(vm_uuid, _marks(old.facts), _marks(now))
        self._renew_answer(entry)

    def _tell(self, vm_uuid: str, entry: _Entry, at: datetime) -> None:
        at_start = vm_uuid in self._before_us
        self._before_us.discard(vm_uuid)
        entry.told, told = changes(entry.told, entry.vm, at_start=at_start)
        self.migrations.tell(vm_uuid, told, entry.vm, at)
        for change in told:
            made = partial(answers.event, vm_uuid, change, at)
            if self._witness is None:
                self.feed.tell_of(change.kind, made)
            else:
                self._announce(made(), change.vm.facts.history)

    def _announce(self, event: EventDocument, carried: Carried | None = None) -> None:
        self.feed.tell(event)
        if self._witness is not None:
            self._witness.tell(event, carried)

    def _renew_answer(self, entry: _Entry) -> None:
        old, entry.answer = entry.answer, None
        if entry.watchers and (old is None or self._make_answer(entry) != old):
            for watcher in entry.watchers:
                if not watcher.done():
                    watcher.set_result(None)

    def _make_answer(self, entry: _Entry) -> Answer | None:
        entry.answer = answers.answer(entry.vm, self.component_id, self.machine, self.capacity)
        return entry.answer

    def _index(self, vm_uuid: str, before: frozenset[Mark], after: frozenset[Mark]) -> None:
        if before == after:
            return
        self.callers_version += 1
        for mark in before - after:
            holders = self._by_mark.get(mark, set())
            holders.discard(vm_uuid)
            if not holders:
                self._by_mark.pop(mark, None)
        for mark in after:
            self._by_mark.setdefault(mark, set()).add(vm_uuid)

    def _vm(self, vm_uuid: str) -> Vm | None:
        entry = self._entries.get(vm_uuid)
        return None if entry is None else entry.vm

    def _fresh(self) -> bool:
        return self._confirmed_at is not None and self._clock() - self._confirmed_at <= MAX_AGE

    def _current(self, entry: _Entry) -> bool:
        return (
            entry.vm.resident
            and entry.vm.settled
            and (entry.run is None or entry.run.alive())
            and (entry.status is None or entry.status.unchanged())
        )

    def _ask(self, vm_uuid: str, entry: _Entry) -> None:
        if not entry.asked and self._failure is None:
            entry.asked = True
            self._source.ask(vm_uuid, entry.vm.news)

    def _later(self, delay: float, vm_uuid: str) -> None:
        def again() -> None:
            entry = self._entries.get(vm_uuid)
            if entry is not None:
                entry.timer = None
                self._ask(vm_uuid, entry)

        entry = self._entries.get(vm_uuid)
        if entry is not None and entry.timer is None:
            entry.timer = asyncio.get_running_loop().call_later(delay, again)

    def _wake(self, entry: _Entry) -> None:
        for waiter in entry.waiting:
            if not waiter.done():
                waiter.set_result(None)
        entry.waiting.clear()

    async def _freshen(self) -> None:
        if self._failure is not None:
            raise self._failure
        if not self._fresh():
            self._source.confirm()
            await self._confirmation()

    async def _confirmation(self) -> None:
        """Wait for a confirmation that is good now."""
        began = self._clock()
        while True:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._confirmations.append(waiter)
            await self._patiently(waiter, self._patience - (self._clock() - began))
            if self._fresh():
                return

    async def _settled(self, vm_uuid: str) -> _Entry | None:
        """Ask libvirt until the answer is about now; a VM that changes all the while stays
        unsettled.
        """
        for _ in range(_LOOKS):
            await self._settle(vm_uuid)
            entry = self._entries.get(vm_uuid)
            if entry is None or not entry.vm.resident or self._current(entry):
                break
        return self._entries.get(vm_uuid)

    async def _settle(self, vm_uuid: str) -> None:
        entry = self._entry(vm_uuid)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry.waiting.append(waiter)
        self._ask(vm_uuid, entry)
        await self._patiently(waiter, self._patience)

    async def _patiently(self, waiter: asyncio.Future[None], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except TimeoutError:
            raise HypervisorError(
                f"libvirt did not answer within {self._patience:g} s; is libvirtd hung?"
            ) from None
        if self._failure is not None:
            raise self._failure

    def _why_not(self, vm_uuid: str, entry: _Entry) -> EnablerError:
        if entry.failure is not None:
            return entry.failure
        match entry.vm.place:
            case Place.ARRIVING:
                return VmArriving(f"VM {vm_uuid} is arriving and does not run here yet; ask again")
            case Place.LEAVING:
                return VmLeaving(
                    f"VM {vm_uuid} has been switched over to another host; ask again there"
                )
            case Place.ABSENT:
                return VmNotFound(f"no VM {vm_uuid} runs on this host")
            case _:
                return HypervisorError(
                    f"what libvirt says of VM {vm_uuid} changes just now; ask again"
                )


def _marks(facts: VmFacts | None) -> frozenset[Mark]:
    if facts is None:
        return frozenset()
    marks: set[Mark] = {("mac", mac) for mac in facts.macs}
    if facts.cid is not None:
        marks.add(("cid", facts.cid))
    if facts.token_sha256 is not None:
        marks.add(("token", facts.token_sha256))
    return frozenset(marks)


def _end(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
