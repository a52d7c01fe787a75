"""Libvirt: one connection, its events, and questions to it. All libvirt calls of ``enabler serve``
are made here.

Theory of operation. Libvirt's event loop runs in a thread of its own (``virEventRunDefaultImpl``).
The *link* thread opens the connection, asks it once a second whether it still answers, and opens it
again, with back-off, when it breaks. A few *asking* threads put the questions that the inventory
has about single VMs, so that one VM whose QEMU hangs delays no other; one *writing* thread keeps
records in domain metadata, which libvirt may hold up for as long as a migration lasts. Nothing here
decides anything: news goes to a `Listener`, always through ``post``, which brings it to the
listener's own thread in order.

Threads are daemons: a libvirtd that hangs (SIGSTOP) blocks whoever asks it, and must not keep the
enabler from ending.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

import libvirt

from enabler import domains, history
from enabler.domains import Keep, Record
from enabler.errors import HypervisorDenied, HypervisorError
from enabler.events import (
    Changed,
    Event,
    Job,
    MigrationIteration,
    Observation,
    Seen,
    Unseen,
)
from enabler.libvirt_host import HostFacts, check_uri, host_facts, silence, translate
from enabler.libvirt_words import arrival_of, lifecycle_event, migration_job, presence_of
from enabler.runs import WITH_PROCESS, Run, Runs, StatusFile

log = logging.getLogger(__name__)

HEARTBEAT = 1.0
"""Seconds between two confirmations that libvirt still answers."""

_KEEPALIVE_INTERVAL, _KEEPALIVE_COUNT = 2, 3
_BACKOFF_FIRST, _BACKOFF_MOST = 0.2, 5.0
_ASKERS = 4
_RESYNC_BEATS = 60


class Listener(Protocol):
    """Who is told. Every method is called through ``post``."""

    def connected(self, host: HostFacts, running: frozenset[str]) -> None:
        """A connection stands, its events flow from now on, and these VMs (UUIDs) are active."""

    def listed(self, host: HostFacts, running: frozenset[str]) -> None:
        """These VMs (UUIDs) are active: a regular look at the whole."""

    def disconnected(self, error: HypervisorError) -> None:
        """The connection broke or could not be opened; events may be lost from here on."""

    def confirmed(self, asked: datetime, asked_at: float) -> None:
        """Libvirt answered a question put at ``asked`` (wall clock; ``asked_at``: `clock`), and all
        earlier events were told.
        """

    def event(self, event: Event) -> None:
        """An event."""

    def observation(
        self, observation: Observation, run: Run | None, status: StatusFile | None
    ) -> None:
        """An answer to `Hypervisor.ask`."""

    def unanswered(self, vm_uuid: str, error: HypervisorError) -> None:
        """A question of `Hypervisor.ask` got no answer."""

    def recorded(self, vm_uuid: str, record: Record, error: HypervisorError | None) -> None:
        """What came of `Hypervisor.record`."""


def clock() -> float:
    """Return seconds on a clock that nobody sets, and that runs while the host is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Hypervisor:
    """The connection to libvirt.

    ``post(function, *arguments)`` runs a function in the listener's thread, in order.
    """

    def __init__(
        self,
        uri: str,
        listener: Listener,
        post: Callable[..., object],
        runs: Runs,
    ) -> None:
        check_uri(uri)
        self._uri = uri
        self._listener = listener
        self._post = post
        self._runs = runs
        self._connection: libvirt.virConnect | None = None
        self._driver = ""
        self._has_jobs = True
        self._threads: list[threading.Thread] = []
        self._broken = threading.Event()
        self._beat = threading.Event()
        self._look = threading.Event()
        self._stopping = threading.Event()
        self._listed: dict[str, libvirt.virDomain] = {}
        """From the last list, to be asked about once: a call of libvirt's less for each. What
        became of a domain since then is told by events, and then it is asked about anew.
        """
        self._questions: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._records: queue.SimpleQueue[tuple[str, Record]] = queue.SimpleQueue()

    # What the inventory's thread calls -----------------------------------------------------------

    def start(self) -> None:
        """Begin: open the connection, and keep it open."""
        start_event_loop()
        self._thread("link", self._keep_link)
        for number in range(_ASKERS):
            self._thread(f"ask-{number}", self._keep_asking)
        self._thread("record", self._keep_recording)

    def stop(self) -> None:
        """End. Returns at once; whatever hangs in libvirt is left hanging."""
        self._stopping.set()
        self._beat.set()

    def ask(self, vm_uuid: str, news: int) -> None:
        """Ask libvirt where a VM is; the answer comes as an observation that carries ``news``."""
        self._questions.put((vm_uuid, news))

    def confirm(self) -> None:
        """Ask libvirt now, not at the next second, whether it answers."""
        self._beat.set()

    def look(self) -> None:
        """Ask libvirt now which VMs are active."""
        self._look.set()
        self._beat.set()

    def round_trip(self, back: Callable[[], None]) -> None:
        """Have ``back`` called in the listener's thread, by way of libvirt's event thread; never if
        one of our threads has died.
        """
        if all(thread.is_alive() for thread in self._threads):
            self._after_events(back)

    def record(self, vm_uuid: str, record: Record) -> None:
        """Write a record into a domain's metadata; what comes of it is told as `recorded`."""
        self._records.put((vm_uuid, record))

    # The link ------------------------------------------------------------------------------------

    def _thread(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=f"libvirt-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _keep_link(self) -> None:
        delay = _BACKOFF_FIRST
        while not self._stopping.is_set():
            try:
                connection = self._open()
            except libvirt.libvirtError as error:
                self._tell(self._listener.disconnected, translate(error, self._uri))
                self._stopping.wait(delay * random.uniform(0.5, 1.0))  # noqa: S311  jitter, no secret
                delay = min(delay * 2, _BACKOFF_MOST)
                continue
            delay = _BACKOFF_FIRST
            try:
                self._beat_until_broken(connection)
            except libvirt.libvirtError as error:
                self._connection = None
                self._tell(self._listener.disconnected, translate(error, self._uri))
            self._close(connection)

    def _open(self) -> libvirt.virConnect:
        connection = libvirt.open(self._uri)
        self._broken.clear()
        self._watch_connection(connection)
        self._driver = connection.getType()
        # Events first, the list after: what changes in between is then told, not lost.
        self._register(connection)
        host, running = host_facts(connection), self._running(connection)
        self._connection = connection
        self._tell(self._listener.connected, host, running)
        return connection

    def _watch_connection(self, connection: libvirt.virConnect) -> None:
        try:
            connection.registerCloseCallback(self._on_close, None)
            connection.setKeepAlive(_KEEPALIVE_INTERVAL, _KEEPALIVE_COUNT)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise
            # A driver that runs in this process has no connection that could break.
            log.debug("%s: %s", self._uri, error)

    def _register(self, connection: libvirt.virConnect) -> None:
        wanted: list[tuple[str, Callable[..., None]]] = [
            ("VIR_DOMAIN_EVENT_ID_LIFECYCLE", self._on_lifecycle),
            ("VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION", self._on_iteration),
            ("VIR_DOMAIN_EVENT_ID_JOB_COMPLETED", self._on_changed),
            # A container that reboots has another process then, and LXC's driver says no more.
            ("VIR_DOMAIN_EVENT_ID_REBOOT", self._on_changed),
            ("VIR_DOMAIN_EVENT_ID_DEVICE_ADDED", self._on_changed),
            ("VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED", self._on_changed),
            ("VIR_DOMAIN_EVENT_ID_METADATA_CHANGE", self._on_metadata),
        ]
        for name, callback in wanted:
            try:
                connection.domainEventRegisterAny(None, getattr(libvirt, name), callback, None)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                    raise
                log.info("the driver of %s sends no %s events", self._uri, name)

    def _running(self, connection: libvirt.virConnect) -> frozenset[str]:
        active = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        self._listed = {domain.UUIDString(): domain for domain in active}
        return frozenset(self._listed)

    def _beat_until_broken(self, connection: libvirt.virConnect) -> None:
        beats = 0
        while not self._stopping.is_set() and not self._broken.is_set():
            self._beat.clear()
            asked, asked_at = datetime.now(UTC), clock()
            beats += 1
            if beats % _RESYNC_BEATS == 0 or self._look.is_set():
                self._look.clear()
                host, running = host_facts(connection), self._running(connection)
                self._tell(self._listener.listed, host, running)
            connection.numOfDomains()
            self._after_events(self._listener.confirmed, asked, asked_at)
            self._beat.wait(HEARTBEAT)
        if not self._stopping.is_set():
            self._connection = None
            self._tell(
                self._listener.disconnected,
                HypervisorError(
                    f"libvirt at {self._uri} closed the connection, or stopped answering"
                ),
            )

    def _after_events(self, function: Callable[..., None], *arguments: object) -> None:
        """Tell something after every event that libvirt had sent before it.

        Such events are already in this process when an answer is, but perhaps not handled yet.
        Libvirt hands them out from a timer of the connection's; a timer made later fires later in
        the same turn.
        """

        def fire(timer: int, _: object) -> None:
            libvirt.virEventRemoveTimeout(timer)
            self._tell(function, *arguments)

        libvirt.virEventAddTimeout(0, fire, None)

    def _close(self, connection: libvirt.virConnect) -> None:
        self._connection = None
        self._listed = {}  # whose domains would keep it open
        try:
            connection.unregisterCloseCallback()
            connection.close()
        except libvirt.libvirtError as error:
            log.debug("closing the connection: %s", error)

    # Events, called in libvirt's event thread -------------------------------------------------

    def _tell(self, function: Callable[..., None], *arguments: object) -> None:
        if not self._stopping.is_set():
            self._post(function, *arguments)

    def _on_close(self, _connection: libvirt.virConnect, reason: int, _: object) -> None:
        log.warning("libvirt closed the connection (virConnectCloseReason %d)", reason)
        self._broken.set()
        self._beat.set()

    def _on_lifecycle(
        self,
        _connection: libvirt.virConnect,
        domain: libvirt.virDomain,
        event: int,
        detail: int,
        _: object,
    ) -> None:
        self._tell(
            self._listener.event,
            lifecycle_event(domain.UUIDString(), event, detail, datetime.now(UTC)),
        )

    def _on_iteration(
        self, _connection: libvirt.virConnect, domain: libvirt.virDomain, *_: object
    ) -> None:
        self._tell(self._listener.event, MigrationIteration(domain.UUIDString()))

    def _on_changed(
        self, _connection: libvirt.virConnect, domain: libvirt.virDomain, *_: object
    ) -> None:
        self._tell(self._listener.event, Changed(domain.UUIDString()))

    def _on_metadata(
        self,
        _connection: libvirt.virConnect,
        domain: libvirt.virDomain,
        _kind: int,
        namespace: str | None,
        _: object,
    ) -> None:
        # Of the record of a stay nobody need be told: who wrote it knows it.
        if namespace in (domains.TOKEN_NAMESPACE, history.NAMESPACE):
            self._tell(self._listener.event, Changed(domain.UUIDString()))

    # Questions ----------------------------------------------------------------------------------

    def _keep_asking(self) -> None:
        while not self._stopping.is_set():
            vm_uuid, news = self._questions.get()
            connection = self._connection
            try:
                if connection is None:
                    raise HypervisorError(f"there is no connection to libvirt at {self._uri}")
                observation, run, status = self._observe(connection, vm_uuid, news)
            except libvirt.libvirtError as error:
                self._tell(self._listener.unanswered, vm_uuid, translate(error, self._uri))
            except HypervisorError as error:
                self._tell(self._listener.unanswered, vm_uuid, error)
            else:
                self._after_events(self._listener.observation, observation, run, status)

    def _observe(
        self, connection: libvirt.virConnect, vm_uuid: str, news: int
    ) -> tuple[Observation, Run | None, StatusFile | None]:
        at = datetime.now(UTC)
        try:
            domain = self._listed.pop(vm_uuid, None) or connection.lookupByUUIDString(vm_uuid)
            # Run and status file come before the state: if a run ends, or its state changes,
            # between these questions, then the answer is about what was, and is seen to be.
            seen_by_files = self._driver in WITH_PROCESS
            status = self._runs.status_file(domain.name()) if seen_by_files else None
            run = self._run(domain) if domain.ID() >= 0 else None
            state, reason = domain.state()
            presence = presence_of(state, reason)
            if presence is None or run is None:
                return Unseen(vm_uuid, at, news), None, None
            facts = domains.parse(domain.XMLDesc())
            job = self._job(domain)
        except libvirt.libvirtError as error:
            gone = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)
            if error.get_error_code() in gone:
                return Unseen(vm_uuid, at, news), None, None
            raise
        except domains.MalformedDomain as error:
            raise HypervisorError(
                f"libvirt's description of VM {vm_uuid} can't be used: {error}"
            ) from error
        arrived_by = arrival_of(state, reason)
        seen = Seen(facts, presence, job, run.key, arrived_by, at, news, run.began)
        return seen, run, status

    def _run(self, domain: libvirt.virDomain) -> Run | None:
        if self._driver in WITH_PROCESS:
            try:
                return self._runs.of_process(domain.name())
            except OSError as error:
                raise HypervisorDenied(
                    f"{error.filename} can't be read ({error.strerror}), "
                    "and by it one run of a VM is told from the next; run the enabler as root, "
                    "or give its user read access to libvirt's run-time folder"
                ) from error
        return self._runs.of_domain_id(domain.ID())

    def _job(self, domain: libvirt.virDomain) -> Job:
        if not self._has_jobs:
            return Job.NONE
        try:
            return migration_job(domain.jobStats())
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
                self._has_jobs = False
            else:  # QEMU's driver refuses while it is itself between two jobs
                log.debug("jobStats: %s", error)
            return Job.NONE

    # Records -------------------------------------------------------------------------------------

    def _keep_recording(self) -> None:
        while not self._stopping.is_set():
            vm_uuid, record = self._records.get()
            problem: HypervisorError | None = None
            try:
                connection = self._connection
                if connection is None:
                    raise HypervisorError(f"there is no connection to libvirt at {self._uri}")
                self._write(connection.lookupByUUIDString(vm_uuid), record)
            except libvirt.libvirtError as error:
                problem = translate(error, self._uri)
            except HypervisorError as error:
                problem = error
            self._after_events(self._listener.recorded, vm_uuid, record, problem)

    def _write(self, domain: libvirt.virDomain, record: Record) -> None:
        flags = 0 if record.keep is Keep.CONFIG else libvirt.VIR_DOMAIN_AFFECT_LIVE
        if record.keep is not Keep.LIVE and domain.isPersistent():
            flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG
        if not flags:
            return  # it had nothing but its live domain, and that is gone
        domain.setMetadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT,
            record.element,
            domains.PREFIX,
            record.namespace,
            flags,
        )


_event_loop_started = threading.Lock()


def start_event_loop() -> None:
    """Start libvirt's event loop, once in a process and before its first connection is opened."""
    if not _event_loop_started.acquire(blocking=False):
        return
    silence()
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=run, name="libvirt-events", daemon=True).start()
