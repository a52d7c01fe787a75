"""Where each VM was, and when: from the events, in whatever order and however often. Pure.

Of each stay only what is needed is kept, and every part of it is the least or the greatest of what
was told (by `Mark`, the host's own count): so adding an event twice, late, or before those that
came before it changes nothing of the result.

A stay's end is told by

    departure      its own host saw the VM leave
    next-arrival   the VM arrived elsewhere by live migration: until then it was here, whatever the
                   source saw later, or a moment before (`TRANSIT`)
    latest         nobody saw it: it had ended by then
"""

from __future__ import annotations

import json
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from sys import intern
from typing import Any

from enabler.documents import timestamp
from enabler.fleet.event import DEPARTURE, RECORDED, Event, Mark

TRANSIT = timedelta(seconds=30)
"""A VM that left no longer than that before it arrived by migration was on its way: its source sees
it stop before the target sees it run, and their clocks may differ. It was never nowhere.
"""

_SWITCHED_OVER, _ABORTED = "migration-switched-over", "migration-aborted"


@dataclass(frozen=True, slots=True)
class Stay:
    """One stay of a VM on a host. ``until`` None: it goes on, as far as was told."""

    vm: str
    name: str
    host: str
    component_id: str
    residency: str
    order: int
    since: datetime
    arrived_by: str
    until: datetime | None
    until_told_by: str | None
    machine: Mapping[str, Any] | None
    """None: its arrival was not told, or is no longer kept."""
    capacity: Mapping[str, Any] | None
    """Of the machine when the VM came."""
    seen_until: datetime | None
    """When its own host last said that the VM was there, or that it was there no more."""
    moved_away: bool
    """Its host has seen it switched over to another."""

    def holds(self, at: datetime) -> bool:
        """Return whether the VM was on this host then."""
        return self.since <= at and (self.until is None or at < self.until)

    def as_dict(self) -> dict[str, Any]:
        """Give it for programs."""
        return {
            "host": self.host,
            "component_id": self.component_id,
            "machine": self.machine,
            "capacity": self.capacity,
            "residency_id": self.residency,
            "from": timestamp(self.since),
            "until": None if self.until is None else timestamp(self.until),
            "until_told_by": self.until_told_by,
            "arrived_by": self.arrived_by,
            "name": self.name,
        }


class _Told:
    """What was told of one stay, so far: no event is kept, for of some there are millions."""

    __slots__ = (
        "arrived_by",
        "capacity",
        "component_id",
        "described",
        "first",
        "host",
        "last",
        "last_time",
        "left",
        "machine",
        "moved",
        "moved_away",
        "moved_time",
        "name",
        "noticed",
        "order",
        "residency",
        "since",
        "vm",
    )

    def __init__(self, event: Event) -> None:
        assert event.vm is not None
        self.vm, self.host = event.vm, intern(event.host)
        self.residency = event.residency or ""
        self._begin(event)
        self._end(event)
        self.described: Mark | None = None
        self.machine: Mapping[str, Any] | None = None
        self.capacity: Mapping[str, Any] | None = None
        self.moved: Mark | None = None
        self.moved_away = False
        self.moved_time: datetime | None = None

    def add(self, event: Event, share: Callable[[Any], Any]) -> None:
        mark = event.mark
        if mark < self.first:
            self._begin(event)
        if mark > self.last:
            self._end(event)
        machine = event.data.get("machine")
        if machine is not None and (self.described is None or mark < self.described):
            self.described = mark
            self.machine, self.capacity = share(machine), share(event.data.get("capacity"))
        if event.kind in (_SWITCHED_OVER, _ABORTED) and (self.moved is None or mark > self.moved):
            self.moved, self.moved_time = mark, event.time
            self.moved_away = event.kind == _SWITCHED_OVER

    def _begin(self, event: Event) -> None:
        self.first = event.mark
        self.component_id = intern(event.component_id)
        self.order = int(event.data["order"])
        self.since = event.since
        self.arrived_by = intern(str(event.data["residency"]["arrived_by"]))

    def _end(self, event: Event) -> None:
        self.last, self.last_time = event.mark, event.time
        self.left = event.kind == DEPARTURE
        self.noticed = bool(event.data.get("noticed"))
        self.name = intern(event.name or "")


class Timeline:
    """Takes events in, and tells the stays."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._told: dict[str, dict[tuple[str, str], _Told]] = {}
        self._capacities: dict[str, list[tuple[datetime, Mark, Mapping[str, Any]]]] = {}
        self._shared: dict[str, Any] = {}
        for event in events:
            self.add(event)

    def add(self, event: Event) -> None:
        """Take an event in."""
        if event.vm is None:
            capacity = event.data.get("capacity")
            if capacity is not None:
                told = (event.time, event.mark, self._share(capacity))
                known = self._capacities.setdefault(event.host, [])
                if all(each[:2] != told[:2] for each in known):
                    insort(known, told, key=lambda each: each[:2])
            return
        if event.kind == RECORDED or event.residency is None:
            return
        stays = self._told.setdefault(event.vm, {})
        key = (event.host, event.residency)
        found = stays.get(key)
        if found is None:
            found = stays[key] = _Told(event)
        found.add(event, self._share)

    def _share(self, value: Any) -> Any:
        """Return the one copy of what is told time and again: a host's machine and capacity."""
        return self._shared.setdefault(json.dumps(value, sort_keys=True), value)

    def vms(self) -> Iterator[str]:
        """Return the VMs of which anything was told, in the order of their UUIDs."""
        return iter(sorted(self._told))

    def stays(self, vm: str) -> list[Stay]:
        """Return a VM's stays, the first one first."""
        found = [_stay(each) for each in self._told.get(vm, {}).values()]
        found.sort(key=lambda stay: (stay.order, stay.residency, stay.host))
        return [
            _ended(stay, found[place + 1]) if place + 1 < len(found) else stay
            for place, stay in enumerate(found)
        ]

    def at(self, vm: str, at: datetime) -> Stay | None:
        """Return the stay of a VM at some time; the latest, should there be several."""
        holding = [stay for stay in self.stays(vm) if stay.holds(at)]
        return holding[-1] if holding else None

    def capacities(self, stay: Stay, until: datetime) -> list[tuple[datetime, Mapping[str, Any]]]:
        """Return the capacity of the machine during a stay: from when, and which; the first one
        holds from its beginning. ``until`` ends a stay that goes on.
        """
        end = stay.until or until
        found: list[tuple[datetime, Mapping[str, Any]]] = []
        if stay.capacity is not None:
            found.append((stay.since, stay.capacity))
        for at, _, capacity in self._capacities.get(stay.host, ()):
            if at <= stay.since:
                if stay.capacity is None:
                    found = [(stay.since, capacity)]
            elif at < end:
                found.append((at, capacity))
        return found


def _stay(told: _Told) -> Stay:
    return Stay(
        vm=told.vm,
        name=told.name,
        host=told.host,
        component_id=told.component_id,
        residency=told.residency,
        order=told.order,
        since=told.since,
        arrived_by=told.arrived_by,
        until=told.last_time if told.left else None,
        until_told_by=None if not told.left else ("latest" if told.noticed else "departure"),
        machine=told.machine,
        capacity=told.capacity,
        seen_until=told.moved_time
        if told.moved_away
        else (None if told.noticed else told.last_time),
        moved_away=told.moved_away,
    )


def _ended(stay: Stay, following: Stay) -> Stay:
    """Return a stay with its end by what came after it."""
    migrated = following.arrived_by == "migration"
    if migrated and (stay.until is None or following.since - stay.until <= TRANSIT):
        return _until(stay, following.since, "next-arrival")
    if stay.until is not None and stay.until <= following.since:
        return stay
    if stay.until is None or stay.until_told_by == "latest":
        return _until(stay, following.since, "latest")
    return stay  # both say that it was there: that is for the audit


def _until(stay: Stay, until: datetime, told_by: str) -> Stay:
    return replace(stay, until=max(until, stay.since), until_told_by=told_by)
