"""Where a VM is now: which of two hosts' words on it counts. Pure.

The bucket holds, for each VM, the event that counts most (`Event.claim`), as its host signed it.
Source and destination write within moments of each other, in either order, late and more than once;
the greater claim stays. So:

- a late event of the old host never takes the place of the new host's;
- a departure is the old host's last word on its own stay, and says nothing of another;
- in every order, the end is the same.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from enabler.fleet.event import HOST_STOPPED, Event

MISSED = 3
"""Signs of life that a host may miss before it counts as silent."""


class HostState(StrEnum):
    """How a host is."""

    UP = "up"
    STOPPED = "stopped"
    """Its enabler was stopped in good order; its VMs may well run on."""
    SILENT = "silent"
    """It gives no sign of life: it died, hangs, or is cut off. What it said last stands."""
    UNKNOWN = "unknown"
    """It has never given one."""


class VmState(StrEnum):
    """How a VM is."""

    HERE = "here"
    MIGRATING = "migrating"
    """Its host is moving it away; it runs there still, or is being switched over."""
    GONE = "gone"
    """It was stopped, or moved to where nobody tells of it."""
    HOST_SILENT = "host-silent"
    """It was there when its host was last heard of; it has not been seen to leave."""


def supersedes(told: Event, kept: Event | None) -> bool:
    """Return whether an event takes the place of the one that is kept."""
    return kept is None or told.claim > kept.claim


def host_state(seen: Event | None, now: datetime) -> HostState:
    """Return how a host is, by its last sign of life."""
    if seen is None:
        return HostState.UNKNOWN
    if seen.kind == HOST_STOPPED:
        return HostState.STOPPED
    interval = seen.data.get("interval")
    seconds = float(interval) if isinstance(interval, int | float) else 30.0
    late = now - seen.time > timedelta(seconds=MISSED * seconds)
    return HostState.SILENT if late else HostState.UP


def vm_state(kept: Event, host: HostState) -> VmState:
    """Return how a VM is, by the event that counts and the state of its host."""
    if not kept.here:
        return VmState.GONE
    if host is HostState.SILENT:
        return VmState.HOST_SILENT
    moving: Any = kept.data.get("migration") or {}
    if moving.get("state") == "outgoing" or kept.kind == "migration-switched-over":
        return VmState.MIGRATING
    return VmState.HERE
