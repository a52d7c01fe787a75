"""What a hypervisor can tell the enabler, in libvirt's words and free of libvirt's objects.

Two kinds of news, which weigh differently (`enabler.residency` says how):

- an **event** (`Lifecycle`, `MigrationIteration`, `Changed`) was true when libvirt sent it; it can
  come late, twice,
  or, when the connection breaks, never;
- an **observation** (`Seen`, `Unseen`) is libvirt's answer to a question asked now.

Sources: libvirt's ``virDomainEventType`` and its detail enumerations, ``virDomainState`` and its
reasons (https://libvirt.org/html/libvirt-libvirt-domain.html).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class ArrivedBy(StrEnum):
    """How a stay began."""

    START = "start"
    MIGRATION = "migration"
    RESTORE = "restore"
    SNAPSHOT = "snapshot"
    UNKNOWN = "unknown"
    """It began while nobody watched, and libvirt no longer says how."""


class Kind(StrEnum):
    """Lifecycle events, cut by what they mean for residency rather than by every detail."""

    STARTED = "started"
    """Booted, restored or started from a snapshot: a new run of the VM."""
    STARTED_INCOMING = "started-incoming"
    """``STARTED_MIGRATED``: the domain exists and waits for its memory."""
    RESUMED = "resumed"
    """``RESUMED_UNPAUSED``, ``RESUMED_FROM_SNAPSHOT``: an admin's doing."""
    RESUMED_MIGRATED = "resumed-migrated"
    """``RESUMED_MIGRATED``: on the destination the guest runs here; on the source the switch-over
    was taken back.
    """
    RESUMED_POSTCOPY = "resumed-postcopy"
    """``RESUMED_POSTCOPY``: the guest runs here, its memory is still arriving."""
    SUSPENDED = "suspended"
    """Paused by an admin, by an I/O error, by the watchdog: the VM still lives here."""
    SUSPENDED_MIGRATED = "suspended-migrated"
    """``SUSPENDED_MIGRATED``, ``SUSPENDED_POSTCOPY``: the switch-over to another host has begun."""
    STOPPED = "stopped"
    """Shut down, destroyed, crashed, saved, failed, or gone to another host: this run is over."""


class Presence(StrEnum):
    """What a domain's state and reason say of where its guest runs."""

    HERE = "here"
    HERE_POSTCOPY = "here-postcopy"
    """Running here while its memory is still arriving (``VIR_DOMAIN_RUNNING_POSTCOPY``)."""
    IN_TRANSIT = "in-transit"
    """Paused for a migration: either not here yet, or no longer."""


class Job(StrEnum):
    """The migration job libvirt runs on a domain, if any."""

    NONE = "none"
    OUTGOING = "outgoing"
    INCOMING = "incoming"


@dataclass(frozen=True, slots=True)
class Stay:
    """One residency: an unbroken stay of one VM on one host.

    ``id`` is new at every arrival and the same for the whole stay, whoever restarts meanwhile. It
    is opaque: only equality means anything. ``since`` is exact when the enabler saw the arrival or
    found its own record of it; otherwise it is the moment by which the stay had begun.
    """

    id: str
    since: datetime
    arrived_by: ArrivedBy


@dataclass(frozen=True, slots=True)
class Carried:
    """The chain of entries in a VM's metadata (`enabler.history`), as it was found."""

    checkpoint: str | None = None
    entries: tuple[str, ...] = ()
    flaw: str | None = None
    """Why it can't be continued; None if it can."""
    stays: frozenset[str] = frozenset()
    """The residencies whose beginning it tells of."""
    latest: tuple[str, int] | None = None
    """The last of them, and its place in order (`enabler.history.order`)."""


@dataclass(frozen=True, slots=True)
class VmFacts:
    """What a domain's live XML says of the VM, as far as the contract needs it."""

    uuid: str
    name: str
    generation_id: str | None
    vcpus: int
    memory_bytes: int
    macs: frozenset[str]
    """Lower-case, colon-separated."""
    recorded: Stay | None = None
    """The stay some enabler wrote into the domain's metadata; perhaps another host's."""
    cid: int | None = None
    """Its address on the host's vsock, as libvirt gave it (vsock(7))."""
    token_sha256: str | None = None
    """The hash of its token, if it is enrolled (`enabler.tokens`)."""
    history: Carried = Carried()
    """Where it has been, by its own metadata."""


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """A libvirt lifecycle event."""

    vm_uuid: str
    kind: Kind
    at: datetime
    arrived_by: ArrivedBy = ArrivedBy.UNKNOWN
    """How, for the started and resumed kinds that tell."""


@dataclass(frozen=True, slots=True)
class MigrationIteration:
    """The source copies memory: an outgoing migration is in progress."""

    vm_uuid: str


@dataclass(frozen=True, slots=True)
class Changed:
    """Something else about the VM changed (a device, a job that ended): look again."""

    vm_uuid: str


@dataclass(frozen=True, slots=True)
class Seen:
    """Libvirt, asked now, has the domain active."""

    facts: VmFacts
    presence: Presence
    job: Job
    run: str
    """Which run of the VM this is (`enabler.runs`): two runs never share it, on any host."""
    arrived_by: ArrivedBy
    """What the domain's state reason says of its beginning."""
    at: datetime
    """When the question was asked, not when the answer came."""
    news: int
    """The VM's count of news when the question was asked (`enabler.residency.Vm.news`)."""
    run_began: datetime | None = None
    """When the run's process was started, where that is known."""


@dataclass(frozen=True, slots=True)
class Unseen:
    """Libvirt, asked now, has no such active domain."""

    vm_uuid: str
    at: datetime
    news: int


Event = Lifecycle | MigrationIteration | Changed
Observation = Seen | Unseen
