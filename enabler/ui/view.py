"""What the page shows, made of what the service says. Pure; escaping is the template's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from enabler.ui.source import Told

_ARRIVED_BY = {
    "start": "started here",
    "migration": "migrated here",
    "restore": "restored here",
    "snapshot": "reverted to a snapshot here",
    "unknown": "was here when first seen",
}
_WHAT = {
    "present": "was here when the enabler started",
    "departure": "left, or was stopped",
    "migration-begun": "began to migrate to another host",
    "migration-switched-over": "switched over to another host",
    "migration-ended": "had all of its memory here; its migration was complete",
    "migration-aborted": "stayed: its migration was aborted",
    "vm-changed": "was changed: its name, size or generation",
    "capacity-changed": "This host's capacity changed",
    "libvirt-lost": "Libvirt can't be asked",
    "libvirt-found": "Libvirt answers again",
}
_STATES = {
    "absent": "gone",
    "arriving": "arriving",
    "resident": "resident",
    "leaving": "switched over",
    "doubtful": "being looked at",
}
_MOVES = {
    "outgoing": "migrating",
    "postcopy": "arrived, memory follows",
}
_EXPLAINED = {
    "arriving": "It is on its way here and does not run here yet.",
    "migrating": "It still runs here.",
    "arrived, memory follows": "It runs here; its memory is still arriving (post-copy).",
    "switched over": "It runs on another host now.",
}


@dataclass(frozen=True, slots=True)
class VmRow:
    """One VM."""

    uuid: str
    name: str
    state: str
    moving: bool
    explained: str
    since: str | None
    arrived_by: str
    residency_id: str | None
    size: str
    known_by: str


@dataclass(frozen=True, slots=True)
class EventRow:
    """One line of the timeline."""

    id: str
    kind: str
    at: str
    vm: str | None
    uuid: str | None
    what: str


@dataclass(frozen=True, slots=True)
class Page:
    """Everything on the page."""

    machine: dict[str, Any]
    title: str
    component_id: str
    machine_source: str
    capacity: dict[str, Any]
    processors: str
    threads: int
    memory: str
    allotted_cpus: int
    allotted_memory: str
    version: str
    libvirt: dict[str, Any]
    vms: list[VmRow] | None
    moving: list[VmRow]
    events: list[EventRow]
    last_event_id: str


def page(told: Told) -> Page:
    """Return the page for what the service said."""
    host, capacity = told.host, told.host["capacity"]
    rows = None if told.vms is None else sorted(map(_vm, told.vms), key=lambda vm: vm.name)
    here = [vm for vm in told.vms or () if vm["place"] == "resident" and vm["allocation"]]
    machine = host["machine"]
    model = "-".join(filter(None, (machine["type"], machine["model"])))
    return Page(
        machine=machine,
        title=" ".join(filter(None, (machine["manufacturer"], model, machine["serial_number"]))),
        component_id=host["component_id"],
        machine_source=host["machine_source"],
        capacity=capacity,
        processors=", ".join(
            (
                _count(capacity["sockets"], "socket"),
                _count(capacity["cores_per_socket"], "core") + " each",
                _count(capacity["threads_per_core"], "thread") + " each",
            )
        ),
        threads=capacity["sockets"] * capacity["cores_per_socket"] * capacity["threads_per_core"],
        memory=size(capacity["memory_bytes"]),
        allotted_cpus=sum(vm["allocation"]["vcpus"] for vm in here),
        allotted_memory=size(sum(vm["allocation"]["memory_bytes"] for vm in here)),
        version=host["version"],
        libvirt=host["libvirt"],
        vms=rows,
        moving=[row for row in rows or () if row.moving],
        events=[_event(event) for event in reversed(told.recent["events"])],
        last_event_id=told.recent["last_event_id"],
    )


def size(count: int) -> str:
    """Return a number of bytes for people to read."""
    if count < 2**30:
        return f"{count / 2**20:.0f} MiB"
    return f"{count / 2**30:.1f} GiB"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _vm(vm: dict[str, Any]) -> VmRow:
    stay, allocation = vm["residency"], vm["allocation"]
    state = _MOVES.get(vm["migration"]["state"]) or _STATES.get(vm["place"], vm["place"])
    return VmRow(
        uuid=vm["uuid"],
        name=vm["name"] or "(no name yet)",
        state=state,
        moving=state in _EXPLAINED,
        explained=_EXPLAINED.get(state, ""),
        since=stay["since"] if stay else None,
        arrived_by=_ARRIVED_BY.get(stay["arrived_by"], stay["arrived_by"]) if stay else "",
        residency_id=stay["id"] if stay else None,
        size=f"{allocation['vcpus']} vCPU, {size(allocation['memory_bytes'])}"
        if allocation
        else "",
        known_by=" and ".join(vm["known_by"]),
    )


def _event(event: dict[str, Any]) -> EventRow:
    kind, vm = event["kind"], event.get("vm")
    if kind == "arrival":
        what = _ARRIVED_BY.get(event["residency"]["arrived_by"], "arrived")
        if event.get("migration", {}).get("state") == "postcopy":
            what += "; its memory is still arriving"
    else:
        what = _WHAT.get(kind, kind)
    if event.get("detail"):
        what = f"{what}: {event['detail']}"
    return EventRow(
        id=event["id"],
        kind=kind,
        at=event["at"],
        vm=vm["name"] if vm else None,
        uuid=vm["uuid"] if vm else None,
        what=what,
    )
