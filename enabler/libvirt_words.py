"""Libvirt's numbers, put into the words of `enabler.events`. Pure; the tables are the whole of it.

Source: https://libvirt.org/html/libvirt-libvirt-domain.html. What a table does not name falls to
the cautious side: an event becomes "look again", a state becomes "the guest is here" only where
libvirt calls the domain active and not in transit.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import libvirt

from enabler.events import ArrivedBy, Changed, Event, Job, Kind, Lifecycle, Presence

_STARTED = {
    libvirt.VIR_DOMAIN_EVENT_STARTED_BOOTED: (Kind.STARTED, ArrivedBy.START),
    libvirt.VIR_DOMAIN_EVENT_STARTED_MIGRATED: (Kind.STARTED_INCOMING, ArrivedBy.MIGRATION),
    libvirt.VIR_DOMAIN_EVENT_STARTED_RESTORED: (Kind.STARTED, ArrivedBy.RESTORE),
    libvirt.VIR_DOMAIN_EVENT_STARTED_FROM_SNAPSHOT: (Kind.STARTED, ArrivedBy.SNAPSHOT),
}
_RESUMED = {
    libvirt.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED: (Kind.RESUMED, ArrivedBy.UNKNOWN),
    libvirt.VIR_DOMAIN_EVENT_RESUMED_MIGRATED: (Kind.RESUMED_MIGRATED, ArrivedBy.MIGRATION),
    libvirt.VIR_DOMAIN_EVENT_RESUMED_FROM_SNAPSHOT: (Kind.RESUMED, ArrivedBy.SNAPSHOT),
    libvirt.VIR_DOMAIN_EVENT_RESUMED_POSTCOPY: (Kind.RESUMED_POSTCOPY, ArrivedBy.MIGRATION),
}
_SWITCHED_OVER = (
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED,
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY,
)
_RUNNING_POSTCOPY = (
    libvirt.VIR_DOMAIN_RUNNING_POSTCOPY,
    libvirt.VIR_DOMAIN_RUNNING_POSTCOPY_FAILED,
)
_PAUSED_IN_TRANSIT = (
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION,
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP,
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY,
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED,
)
_BEGAN = {
    libvirt.VIR_DOMAIN_RUNNING_BOOTED: ArrivedBy.START,
    libvirt.VIR_DOMAIN_RUNNING_MIGRATED: ArrivedBy.MIGRATION,
    libvirt.VIR_DOMAIN_RUNNING_POSTCOPY: ArrivedBy.MIGRATION,
    libvirt.VIR_DOMAIN_RUNNING_POSTCOPY_FAILED: ArrivedBy.MIGRATION,
    libvirt.VIR_DOMAIN_RUNNING_RESTORED: ArrivedBy.RESTORE,
    libvirt.VIR_DOMAIN_RUNNING_FROM_SNAPSHOT: ArrivedBy.SNAPSHOT,
}
_JOBS = {
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT: Job.OUTGOING,
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN: Job.INCOMING,
}


def lifecycle_event(vm_uuid: str, event: int, detail: int, at: datetime) -> Event:
    """Return a ``virDomainEventType`` with its detail in our words."""
    match event:
        case libvirt.VIR_DOMAIN_EVENT_STARTED if detail in _STARTED:
            kind, arrived_by = _STARTED[detail]
            return Lifecycle(vm_uuid, kind, at, arrived_by)
        case libvirt.VIR_DOMAIN_EVENT_RESUMED if detail in _RESUMED:
            kind, arrived_by = _RESUMED[detail]
            return Lifecycle(vm_uuid, kind, at, arrived_by)
        case libvirt.VIR_DOMAIN_EVENT_SUSPENDED:
            kind = Kind.SUSPENDED_MIGRATED if detail in _SWITCHED_OVER else Kind.SUSPENDED
            return Lifecycle(vm_uuid, kind, at)
        case libvirt.VIR_DOMAIN_EVENT_STOPPED:
            return Lifecycle(vm_uuid, Kind.STOPPED, at)
        case _:
            return Changed(vm_uuid)


def presence_of(state: int, reason: int) -> Presence | None:
    """Return where the guest of a domain in this ``virDomainState`` runs; None if the domain is not
    active.
    """
    match state:
        case libvirt.VIR_DOMAIN_SHUTOFF | libvirt.VIR_DOMAIN_NOSTATE:
            return None
        case libvirt.VIR_DOMAIN_RUNNING if reason in _RUNNING_POSTCOPY:
            return Presence.HERE_POSTCOPY
        case libvirt.VIR_DOMAIN_PAUSED if reason in _PAUSED_IN_TRANSIT:
            return Presence.IN_TRANSIT
        case _:
            return Presence.HERE


def arrival_of(state: int, reason: int) -> ArrivedBy:
    """Return what a state says of how the domain came to run here: little, once it was paused and
    resumed.
    """
    if state != libvirt.VIR_DOMAIN_RUNNING:
        return ArrivedBy.UNKNOWN
    return _BEGAN.get(reason, ArrivedBy.UNKNOWN)


def migration_job(stats: Mapping[str, object]) -> Job:
    """Return the migration in the result of ``virDomainGetJobStats``."""
    if stats.get("type", libvirt.VIR_DOMAIN_JOB_NONE) == libvirt.VIR_DOMAIN_JOB_NONE:
        return Job.NONE
    operation = stats.get("operation")
    return _JOBS.get(operation, Job.NONE) if isinstance(operation, int) else Job.NONE
