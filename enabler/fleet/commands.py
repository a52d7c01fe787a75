"""What the commands of ``enabler fleet`` do, once their arguments are read."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from enabler.config import FleetSettings
from enabler.documents import timestamp
from enabler.errors import ConfigurationError, FleetError, FleetUnknown
from enabler.fleet import exported, store, usage
from enabler.fleet import setup as setting_up
from enabler.fleet.advice import ADVICE
from enabler.fleet.audit import Audit
from enabler.fleet.bus import Bus, connected
from enabler.fleet.event import HOSTS, VMS, Event
from enabler.fleet.keyring import Keyring
from enabler.fleet.present import HostState, VmState, host_state, vm_state
from enabler.fleet.tables import table
from enabler.fleet.timeline import Stay, Timeline

_Command = Callable[[argparse.Namespace, Bus], Awaitable[int]]
_NOWHERE = 1
_DOES_NOT_FIT = 1


def run(options: argparse.Namespace, settings: FleetSettings) -> int:
    """Run a command and return its exit code. Raises `enabler.errors.EnablerError`."""
    return asyncio.run(_run(_COMMANDS[options.fleet_command], options, settings))


async def _run(command: _Command, options: argparse.Namespace, settings: FleetSettings) -> int:
    async with connected(settings, f"enabler fleet {options.fleet_command}") as bus:
        return await command(options, bus)


# Hosts -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Host:
    """A host, by its last sign of life."""

    uuid: str
    seen: Event | None
    state: HostState

    @property
    def name(self) -> str:
        """What it calls itself; its UUID if that is not known."""
        about = {} if self.seen is None else self.seen.data.get("host") or {}
        return str(about.get("name") or self.uuid)

    def part(self, name: str) -> Any:
        """Return what the sign says of something; None if nothing."""
        return None if self.seen is None else self.seen.data.get(name)

    def as_dict(self) -> dict[str, Any]:
        about = self.part("host") or {}
        return {
            "uuid": self.uuid,
            "name": about.get("name"),
            "state": self.state.value,
            "last_seen": None if self.seen is None else timestamp(self.seen.time),
            "component_id": self.part("component_id"),
            "machine": self.part("machine"),
            "capacity": self.part("capacity"),
            "vms": self.part("vms"),
            "waiting_events": self.part("waiting"),
            "version": about.get("version"),
        }


async def _host(bus: Bus, uuid: str) -> _Host:
    kept = await bus.kept(HOSTS, uuid)
    return _as_host(uuid, None if kept is None else kept.event)


async def _all_hosts(bus: Bus) -> dict[str, _Host]:
    return {uuid: _as_host(uuid, kept.event) async for uuid, kept in store.bucket(bus, HOSTS)}


def _as_host(uuid: str, seen: Event | None) -> _Host:
    return _Host(uuid, seen, host_state(seen, datetime.now(UTC)))


async def _host_named(bus: Bus, name: str) -> str:
    """Return a host's UUID. Raises `FleetUnknown`."""
    uuid = _uuid(name)
    if uuid is not None:
        return uuid
    found = [host.uuid for host in (await _all_hosts(bus)).values() if host.name == name]
    if len(found) == 1:
        return found[0]
    raise _unknown("host", name, found, "hosts")


async def _hosts(options: argparse.Namespace, bus: Bus) -> int:
    hosts = sorted((await _all_hosts(bus)).values(), key=lambda host: (host.name, host.uuid))
    if options.json:
        _print_json({"hosts": [host.as_dict() for host in hosts]})
        return 0
    head = ("HOST", "UUID", "STATE", "LAST SEEN", "MACHINE", "VMS", "WAITING")
    rows = [
        (
            host.name,
            host.uuid,
            host.state.value,
            None if host.seen is None else host.seen.time,
            _machine(host.part("machine")),
            host.part("vms"),
            host.part("waiting"),
        )
        for host in hosts
    ]
    print(table(head, rows))
    return 0


# VMs ---------------------------------------------------------------------------------------------


def _present(event: Event, host: _Host) -> dict[str, Any]:
    state = vm_state(event, host.state)
    return {
        "vm": {"uuid": event.vm, "name": event.name},
        "state": state.value,
        "host": {
            "uuid": event.host,
            "name": host.name,
            "state": host.state.value,
            "component_id": event.component_id,
            "machine": event.data.get("machine") or host.part("machine"),
            "capacity": host.part("capacity") or event.data.get("capacity"),
            "last_seen": None if host.seen is None else timestamp(host.seen.time),
        },
        "residency": event.data["residency"],
        "left_at": None if event.here else timestamp(event.time),
        "told_at": timestamp(event.time),
    }


_HEAD = ("VM", "UUID", "STATE", "HOST", "MACHINE", "SINCE", "LEFT")


def _present_row(found: Mapping[str, Any]) -> tuple[object, ...]:
    vm, host = found["vm"], found["host"]
    since = found["residency"]["since"]
    machine = _machine(host["machine"])
    return vm["name"], vm["uuid"], found["state"], host["name"], machine, since, found["left_at"]


async def _vm_named(bus: Bus, name: str) -> str:
    """Return a VM's UUID. Raises `FleetUnknown`."""
    uuid = _uuid(name)
    if uuid is not None:
        return uuid
    found = [
        vm
        async for vm, kept in store.bucket(bus, VMS)
        if kept.event is not None and kept.event.name == name
    ]
    if len(found) == 1:
        return found[0]
    raise _unknown("VM", name, found, "vms --gone")


async def _where(options: argparse.Namespace, bus: Bus) -> int:
    vm = await _vm_named(bus, options.vm)
    if options.at is not None:
        return await _where_at(options, bus, vm)
    kept = await bus.kept(VMS, vm)
    if kept is None or kept.event is None:
        raise _unknown("VM", options.vm, [], "vms --gone")
    found = _present(kept.event, await _host(bus, kept.event.host))
    if options.json:
        _print_json(found)
    else:
        print(table(_HEAD, [_present_row(found)]))
    return _NOWHERE if found["state"] == VmState.GONE else 0


async def _where_at(options: argparse.Namespace, bus: Bus, vm: str) -> int:
    timeline, _ = await _timeline_of(bus, vm)
    stay = timeline.at(vm, options.at)
    host = None if stay is None else await _host(bus, stay.host)
    if options.json:
        _print_json(
            {
                "vm": {"uuid": vm},
                "at": timestamp(options.at),
                "stay": None if stay is None else stay.as_dict(),
            }
        )
    elif stay is None or host is None:
        print(f"at {timestamp(options.at)} VM {options.vm} was on no host, as far as is known")
    else:
        print(table(_STAY_HEAD, [_stay_row(stay, host.name)]))
    return _NOWHERE if stay is None else 0


async def _vms(options: argparse.Namespace, bus: Bus) -> int:
    only = None if options.host is None else await _host_named(bus, options.host)
    hosts = await _all_hosts(bus)
    found = []
    async for _, kept in store.bucket(bus, VMS):
        event = kept.event
        if event is None or only not in (None, event.host):
            continue
        if event.here or options.gone:
            found.append(_present(event, hosts.get(event.host) or _as_host(event.host, None)))
    found.sort(key=lambda each: (each["vm"]["name"], each["vm"]["uuid"]))
    if options.json:
        _print_json({"vms": found})
    else:
        print(table(_HEAD, [_present_row(each) for each in found]))
    return 0


# The past ----------------------------------------------------------------------------------------

_STAY_HEAD = ("HOST", "MACHINE", "FROM", "UNTIL", "ARRIVED BY", "RESIDENCY")


def _stay_row(stay: Stay, host: str) -> tuple[object, ...]:
    until = None if stay.until is None else timestamp(stay.until)
    if stay.until_told_by == "latest":
        until = f"by {until}"
    machine = _machine(stay.machine)
    return host, machine, stay.since, until, stay.arrived_by, stay.residency


async def _timeline_of(bus: Bus, vm: str) -> tuple[Timeline, list[Event]]:
    """Return what was told of one VM, in the order of its hosts' clocks.

    Raises `FleetUnknown` if that is nothing.
    """
    events = {event.id: event async for event in store.events(bus, store.topics(vm=vm))}
    kept = await bus.kept(VMS, vm)
    if kept is not None and kept.event is not None:
        # What came before the stream's beginning, as far as it still counts.
        events.setdefault(kept.event.id, kept.event)
    if not events:
        raise _unknown("VM", vm, [], "vms --gone")
    ordered = sorted(events.values(), key=lambda event: (event.time, event.host, event.mark))
    return Timeline(ordered), ordered


async def _history(options: argparse.Namespace, bus: Bus) -> int:
    vm = await _vm_named(bus, options.vm)
    timeline, events = await _timeline_of(bus, vm)
    stays = timeline.stays(vm)
    if options.json:
        _print_json(
            {
                "vm": {"uuid": vm, "name": stays[-1].name if stays else None},
                "stays": [stay.as_dict() for stay in stays],
                "events": [_event(event) for event in events],
            }
        )
        return 0
    hosts = {uuid: (await _host(bus, uuid)).name for uuid in {each.host for each in events}}
    if options.events:
        print(table(_EVENT_HEAD, [_event_row(event, hosts[event.host]) for event in events]))
    else:
        print(table(_STAY_HEAD, [_stay_row(stay, hosts[stay.host]) for stay in stays]))
    return 0


_EVENT_HEAD = ("TIME", "HOST", "VM", "EVENT", "RESIDENCY")


def _event(event: Event) -> dict[str, Any]:
    return {
        "id": event.id,
        "time": timestamp(event.time),
        "host": event.host,
        "vm": event.vm,
        "kind": event.kind,
        "data": event.data,
    }


def _event_row(event: Event, host: str) -> tuple[object, ...]:
    return event.time, host, event.name or event.vm, event.kind, event.residency


async def _watch(options: argparse.Namespace, bus: Bus) -> int:
    host = None if options.host is None else await _host_named(bus, options.host)
    vm = None if options.vm is None else await _vm_named(bus, options.vm)
    names = {uuid: each.name for uuid, each in (await _all_hosts(bus)).items()}
    async for event in store.events(bus, store.topics(host, vm), follow=True):
        if options.json:
            print(json.dumps(_event(event), ensure_ascii=False), flush=True)
        else:
            name = names.get(event.host, event.host)
            what = event.name or event.vm or ""
            line = table((timestamp(event.time), name, event.kind, what), [])
            print(line, flush=True)
    return 0


async def _all_events(bus: Bus) -> AsyncIterator[Event]:
    async for event in store.events(bus, store.topics()):
        yield event
    async for _, kept in store.bucket(bus, VMS):
        if kept.event is not None:  # perhaps from before the stream's beginning
            yield kept.event


async def _capacity(options: argparse.Namespace, bus: Bus) -> int:
    now = datetime.now(UTC)
    keyring = None if options.jwks is None else Keyring.load(options.jwks)
    timeline, left_out = Timeline(), 0
    async for event in _all_events(bus):
        if keyring is None or keyring.holds(event):
            timeline.add(event)
        else:
            left_out += 1
    if left_out:
        print(
            f"enabler: {left_out} events that no host of --jwks signed do not count; "
            "'enabler fleet audit' lists them",
            file=sys.stderr,
        )
    found = list(usage.hours(timeline, options.begin, options.end or now, now))
    if options.json:
        _print_json({"hours": [hour.as_dict() for hour in found]})
    elif options.csv:
        print(usage.as_csv(found), end="")
    else:
        head = ("HOUR", "VM", "MACHINES", "LARGEST", "SOCKETS", "CORES", "THREADS", "GIB")
        print(table(head, [_hour_row(hour) for hour in found]))
    return 0


def _hour_row(hour: usage.Hour) -> tuple[object, ...]:
    found = hour.as_dict()
    memory = found["memory_bytes"]
    return (
        hour.hour.strftime("%Y-%m-%dT%H:00Z"),
        hour.stay.name or hour.stay.vm,
        hour.machines,
        _machine(hour.stay.machine) or hour.stay.host,
        found["sockets"],
        found["cores"],
        found["threads"],
        None if memory is None else f"{memory / 2**30:.1f}",
    )


def _exported(file: Path) -> exported.Exported:
    """Read a history that a VM gave out. Raises `ConfigurationError`."""
    try:
        with file.open("rb") as stream:
            return exported.read(file.name, stream.read(exported.LARGEST + 1))
    except OSError as error:
        raise ConfigurationError(
            f"the history in {file} can't be read: {error.strerror}; name a file that you may read"
        ) from error
    except ValueError as error:
        raise ConfigurationError(
            f"{file} has no VM's history: {error}; name what `guest-client history --json` printed"
        ) from error


async def _audit(options: argparse.Namespace, bus: Bus) -> int:
    keyring = None if options.jwks is None else Keyring.load(options.jwks)
    histories = [_exported(file) for file in options.history]
    vm = None if options.vm is None else await _vm_named(bus, options.vm)
    for history in histories:
        if vm not in (None, history.vm):
            raise ConfigurationError(
                f"{history.name} is of VM {history.vm}; leave --vm out, or name that one"
            )
    audit = Audit(keyring, timedelta(seconds=options.tolerance), whole=vm is None)
    async for read in store.told(bus, store.topics(vm=vm)):
        if read.event is None:
            audit.add_flawed(read.topic, read.flaw or "", read.stored_at)
        else:
            audit.add(read.topic, read.event)
    async for key, kept in store.bucket(bus, VMS, vm or ">"):
        audit.add_claim(key, kept.event)
    if vm is None:
        async for key, kept in store.bucket(bus, HOSTS):
            audit.add_sign(key, kept.event)
    found = audit.findings()
    for history in histories:
        found += exported.compare(history, audit, keyring)
    since, counts = options.since, audit.counts | {"exported_histories": len(histories)}
    found = [each for each in found if since is None or each.at is None or each.at >= since]
    if options.json:
        findings = [finding.as_dict() for finding in found]
        _print_json({"verified": keyring is not None, **counts, "findings": findings})
    else:
        rows = [(each.at, each.reason, each.vm, each.sentence) for each in found]
        if rows:
            print(table(("TIME", "REASON", "VM", "WHAT"), rows) + "\n")
            reasons = sorted({each.reason for each in found})
            print(
                table(("REASON", "WHAT TO DO"), [(each, ADVICE[each]) for each in reasons]) + "\n"
            )
        amounts = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in counts.items())
        fits = "all fits" if not found else f"{len(found)} things do not fit"
        verified = "signatures verified" if keyring else "signatures not verified (no --jwks)"
        print(f"{fits}: {amounts}; {verified}")
    return _DOES_NOT_FIT if found else 0


# Forgetting --------------------------------------------------------------------------------------


async def _forget(options: argparse.Namespace, bus: Bus) -> int:
    if not options.names and not options.host:
        raise FleetError("there is nothing to forget; name a VM, or a host with --host")
    vms, hosts = [], []
    for name in options.host:
        host = await _host(bus, await _host_named(bus, name))
        if host.state is HostState.UP:
            raise FleetError(
                f"host {host.name} is up, and would be there again at once; stop its enabler first"
            )
        hosts.append(host.uuid)
        vms += [
            vm
            async for vm, kept in store.bucket(bus, VMS)
            if kept.event is not None and kept.event.host == host.uuid
        ]
    for name in options.names:
        vm = await _vm_named(bus, name)
        kept = await bus.kept(VMS, vm)
        if kept is None:
            raise _unknown("VM", name, [], "vms --gone")
        if kept.event is not None and kept.event.here:
            host = await _host(bus, kept.event.host)
            raise FleetError(
                f"VM {name} is on host {host.name} ({host.state.value}) as far as is known; if "
                f"that host is no more: enabler fleet forget --host {host.name}"
            )
        vms.append(vm)
    if not options.dry_run:
        for bucket, keys in ((VMS, vms), (HOSTS, hosts)):
            for key in keys:
                await bus.forget(bucket, key)
    if options.json:
        _print_json({"dry_run": options.dry_run, "vms": vms, "hosts": hosts})
        return 0
    would = "would be forgotten" if options.dry_run else "forgotten"
    print(f"{len(vms)} VMs and {len(hosts)} hosts {would}; their history stays")
    return 0


# Setting up --------------------------------------------------------------------------------------


async def _setup(options: argparse.Namespace, bus: Bus) -> int:
    wanted = setting_up.Wanted(
        options.replicas, options.days, options.max_bytes, options.duplicate_minutes
    )
    steps = await setting_up.set_up(bus, wanted, dry_run=options.dry_run)
    if options.json:
        _print_json({"dry_run": options.dry_run, "steps": [step.as_dict() for step in steps]})
        return 0
    rows = [(step.stream, step.action, "; ".join(step.changes)) for step in steps]
    print(table(("STREAM", "WOULD" if options.dry_run else "DONE", "CHANGES"), rows))
    return 0


# For all -----------------------------------------------------------------------------------------


def _machine(machine: Mapping[str, Any] | None) -> str | None:
    """Return a machine in a few words."""
    if machine is None:
        return None
    kind = "-".join(str(machine[part]) for part in ("type", "model") if machine.get(part))
    words = (machine.get("manufacturer"), kind, machine.get("serial_number"))
    return " ".join(str(word) for word in words if word)


def _uuid(text: str) -> str | None:
    try:
        return str(UUID(text))
    except ValueError:
        return None


def _unknown(what: str, name: str, several: list[str], command: str) -> FleetUnknown:
    if several:
        return FleetUnknown(
            f"{len(several)} have the name {name!r}: {', '.join(sorted(several)[:5])}; "
            "name it by its UUID"
        )
    return FleetUnknown(
        f"no host has told of a {what} {name!r}; 'enabler fleet {command}' lists those that are "
        "known"
    )


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


_COMMANDS: dict[str, _Command] = {
    "where": _where,
    "vms": _vms,
    "history": _history,
    "hosts": _hosts,
    "watch": _watch,
    "capacity": _capacity,
    "audit": _audit,
    "forget": _forget,
    "setup": _setup,
}
