"""What a host that lies can send: each is no event, or one that every reader can take."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from enabler.documents import timestamp
from enabler.fleet import usage
from enabler.fleet.audit import Audit
from enabler.fleet.event import Event, MalformedEvent, parse
from enabler.fleet.keyring import Keyring
from enabler.fleet.present import HostState, host_state, vm_state
from enabler.fleet.tables import table
from enabler.fleet.timeline import Timeline
from enabler.keys import Keys
from tests.unit.fleet.events import VM, A, at, of_host, told

CAPACITY = {"sockets": 1, "cores_per_socket": 1, "threads_per_core": 1, "memory_bytes": 1}
DESCRIBED: dict[str, Any] = {"machine": {"serial_number": "A"}, "capacity": CAPACITY}

Json = dict[str, Any]


def written(event: Event, **more: Any) -> Json:
    content: Json = json.loads(event.with_signature("e30..x").encode())
    content["data"] |= more
    return content


ARRIVAL = written(
    told(A, "arrival", 1, 0, "a1", 0, migration={"state": "outgoing"}, carried="x", **DESCRIBED)
)
SIGN = written(
    of_host(A, "host-seen", 0, 0, interval=30, vms=1, waiting=0, last=1, **DESCRIBED),
    host={"name": "host-a", "version": "1", "boot_id": None},
)
RECORDED = written(of_host(A, "recorded", 2, 0, entry="e30.e30.x")) | {"subject": VM}
LOST = written(of_host(A, "events-lost", 3, 0, lost={"count": 1}))

REMOVED = object()
NONSENSE = [
    *(REMOVED, None, True, 1, -1, 1.5, 1e308, float("nan"), 10**300, 10**4000),
    *("", "x", "\ud800", "\x1b]0;x\a", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"),
    *("²", f"{A}-1-²", f"{A}-1-1_0", [], {}, [[]], {"state": {}}, {"x": "\udfff"}),
]


def places(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for name, each in value.items():
            yield from places(each, (*path, name))


def with_nonsense(content: Json) -> Iterator[bytes]:
    for *path, name in places(content):
        for nonsense in NONSENSE:
            changed = copy.deepcopy(content)
            inner = changed
            for each in path:
                inner = inner[each]
            if nonsense is REMOVED:
                del inner[name]
            else:
                inner[name] = nonsense
            yield json.dumps(changed).encode()


def take(event: Event, keyring: Keyring) -> None:
    """Do with an event what the commands do."""
    told_of: list[Json] = []
    for ring in (keyring, None):
        audit = Audit(ring, timedelta(seconds=5))
        audit.add(event.topic, event)
        audit.add_claim(event.vm or VM, event)
        audit.add_sign(event.host, event)
        told_of += [finding.as_dict() for finding in audit.findings()]
    timeline = Timeline([event])
    hours = list(usage.hours(timeline, at(-10), at(10), at(10)))
    told_of += [hour.as_dict() for hour in hours]
    told_of += [stay.as_dict() for vm in timeline.vms() for stay in timeline.stays(vm)]
    told_of += [{"state": host_state(event, at(5)), "data": event.data}]
    if event.vm is not None:
        told_of += [{"state": vm_state(event, HostState.UP)}]
    json.dumps(told_of, ensure_ascii=False, allow_nan=False).encode()
    rows = [(timestamp(event.time), event.kind, event.name, event.residency, usage.as_csv(hours))]
    table(("",) * 5, rows).encode()


@pytest.mark.parametrize("content", [ARRIVAL, SIGN, RECORDED, LOST], ids=lambda it: it["type"])
def test_what_is_read_can_be_taken_by_every_reader(content: Json, tmp_path: Path) -> None:
    keyring = Keyring(Keys(tmp_path).public())
    take(parse(json.dumps(content).encode()), keyring)
    read = 0
    for raw in with_nonsense(content):
        try:
            event = parse(raw)
        except MalformedEvent:
            continue
        read += 1
        take(event, keyring)
    assert read, "nonsense in a part that nobody reads does no harm"


@pytest.mark.parametrize("depth", [200, 800, 990, 5000, 30_000])
def test_what_is_nested_deep_is_no_event(depth: int) -> None:
    raw = json.dumps(ARRIVAL | {"x": "@"}).replace('"@"', "[" * depth + "]" * depth).encode()
    if depth <= 200:
        assert parse(raw).vm == VM
    else:
        with pytest.raises(MalformedEvent, match="nested"):
            parse(raw)


def test_what_a_host_or_a_vm_is_called_does_not_control_the_terminal() -> None:
    assert table(("\x1b]0;x\a",), [("\x9b2J",)]) == "?]0;x?\n?2J"
