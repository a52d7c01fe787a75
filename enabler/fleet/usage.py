"""What sub-capacity licences are billed by: for each VM and hour, the largest machine. Pure.

An hour is one of UTC. A VM counts in every hour in which it was on a machine for any time at all; a
machine whose capacity changed meanwhile counts with each. The largest has the most cores; of
those, the most threads, then the most memory.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from enabler.documents import timestamp
from enabler.fleet.timeline import Stay, Timeline

HOUR = timedelta(hours=1)

COLUMNS = (
    "hour",
    "vm_uuid",
    "vm_name",
    "machines",
    "component_id",
    "serial_number",
    "sockets",
    "cores",
    "threads",
    "memory_bytes",
)


@dataclass(frozen=True, slots=True)
class Hour:
    """A VM's hour. ``stay`` is on the largest machine; ``capacity`` None: it was never told."""

    hour: datetime
    stay: Stay
    machines: int
    """On how many machines it was."""
    capacity: Mapping[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        """Give it for programs: a value for each of `COLUMNS`."""
        size = _size(self.capacity) if self.capacity is not None else (None, None, None)
        cores, threads, memory = size
        return {
            "hour": timestamp(self.hour),
            "vm_uuid": self.stay.vm,
            "vm_name": self.stay.name,
            "machines": self.machines,
            "component_id": self.stay.component_id,
            "serial_number": (self.stay.machine or {}).get("serial_number"),
            "sockets": None if self.capacity is None else self.capacity["sockets"],
            "cores": cores,
            "threads": threads,
            "memory_bytes": memory,
        }


def hours(timeline: Timeline, begin: datetime, end: datetime, now: datetime) -> Iterator[Hour]:
    """Give each VM's hours from ``begin`` until ``end``; a stay that goes on is known until now."""
    end = min(end, now)
    for vm in timeline.vms():
        found: dict[datetime, list[tuple[Stay, Mapping[str, Any] | None]]] = {}
        for stay in timeline.stays(vm):
            for since, until, capacity in _spans(timeline, stay, end):
                for hour in _touched(max(since, begin), min(until, end)):
                    found.setdefault(hour, []).append((stay, capacity))
        for hour, held in sorted(found.items()):
            stay, capacity = max(held, key=_largest)
            machines = {each.component_id for each, _ in held}
            yield Hour(hour, stay, len(machines), capacity)


def as_csv(rows: Iterable[Hour]) -> str:
    """Return hours as CSV (RFC 4180), with a head."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(_harmless(row.as_dict()) for row in rows)
    return text.getvalue()


def _harmless(row: dict[str, Any]) -> dict[str, Any]:
    """A VM's name is its owner's: no spreadsheet shall take it for a formula."""
    name = str(row["vm_name"])
    return row | {"vm_name": f"'{name}" if name[:1] in ("=", "+", "-", "@", "\t", "\r") else name}


def _spans(
    timeline: Timeline, stay: Stay, end: datetime
) -> Iterator[tuple[datetime, datetime, Mapping[str, Any] | None]]:
    last = stay.until or end
    known = timeline.capacities(stay, end)
    if not known:
        yield stay.since, last, None
    for place, (since, capacity) in enumerate(known):
        yield since, known[place + 1][0] if place + 1 < len(known) else last, capacity


def _touched(since: datetime, until: datetime) -> Iterator[datetime]:
    """Give each hour that a time from ``since`` until ``until`` is in."""
    hour = since.replace(minute=0, second=0, microsecond=0)
    while hour < until:
        yield hour
        hour += HOUR


def _size(capacity: Mapping[str, Any]) -> tuple[int, int, int]:
    cores = capacity["sockets"] * capacity["cores_per_socket"]
    return cores, cores * capacity["threads_per_core"], capacity["memory_bytes"]


def _largest(held: tuple[Stay, Mapping[str, Any] | None]) -> tuple[tuple[int, int, int], str]:
    stay, capacity = held
    return (-1, 0, 0) if capacity is None else _size(capacity), stay.component_id
