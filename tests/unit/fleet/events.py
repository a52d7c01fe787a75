"""Events for the tests, as a fleet of hosts would tell them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from enabler.changes import EventKind
from enabler.documents import EventDocument, EventVmDocument, ResidencyDocument, timestamp
from enabler.events import ArrivedBy, Carried
from enabler.fleet.event import Event, Mark, make

T0 = datetime(2026, 11, 23, 12, tzinfo=UTC)
A, B, C = (f"aaaaaaaa-0000-4000-8000-00000000000{each}" for each in "abc")
VM = "11111111-0000-4000-8000-000000000001"


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def component(host: str) -> str:
    return "sha256:" + host[-1] * 64


def told(
    host: str,
    kind: str,
    number: int,
    seconds: float,
    stay: str,
    since: float,
    *,
    arrived_by: str = "migration",
    vm: str = VM,
    order: int | None = None,
    spool: str = "1",
    **data: Any,
) -> Event:
    """What a host tells of a stay that began at ``since``."""
    since_at = at(since)
    return make(
        host,
        vm,
        kind,
        at(seconds),
        Mark(spool, number),
        {
            "component_id": component(host),
            "vm": {"uuid": vm, "name": "db01"},
            "residency": {"id": stay, "since": timestamp(since_at), "arrived_by": arrived_by},
            "order": round(since_at.timestamp() * 1000) if order is None else order,
            **data,
        },
    )


def of_host(host: str, kind: str, number: int, seconds: float, **data: Any) -> Event:
    """What a host tells of itself."""
    return make(
        host,
        None,
        kind,
        at(seconds),
        Mark("1", number),
        {"component_id": component(host), **data},
    )


def document(
    kind: str,
    seconds: float,
    stay: str,
    since: float,
    *,
    arrived_by: str = "migration",
    vm: str = VM,
) -> tuple[EventDocument, Carried]:
    """What the inventory tells its witness."""
    told_of = EventDocument(
        kind=EventKind(kind),
        at=at(seconds),
        vm=EventVmDocument(uuid=vm, name="db01"),
        residency=ResidencyDocument(id=stay, since=at(since), arrived_by=ArrivedBy(arrived_by)),
    )
    return told_of, Carried()
