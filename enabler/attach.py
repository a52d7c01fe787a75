"""``enabler attach`` and ``detach``: the device by which a guest reaches its host's enabler, into a
VM that exists, or out of it; both idempotent.

They speak to libvirt by themselves; the running service learns of it by libvirt's event. A running
VM gets the device at once, where its hypervisor and its machine type can; its persistent definition
gets it for all later starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import libvirt

from enabler import addresses, devices
from enabler.devices import Found, Interface, Vsock
from enabler.errors import AttachError
from enabler.libvirt_host import connected, descriptions, existing, find_vm

_LET_GO_WITHIN = 15.0
"""Seconds that a guest has to let go of a device."""


class Where(Enum):
    """Which of a VM's two descriptions is changed."""

    LIVE = "live"
    """The running VM."""
    CONFIG = "config"
    """Its persistent definition."""

    @property
    def words(self) -> str:
        """It, in a sentence."""
        return "the running VM" if self is Where.LIVE else "its definition"


class Action(Enum):
    """What was done with a description, or would be."""

    NONE = "unchanged"
    ATTACH = "attached"
    UPDATE = "updated"
    DETACH = "detached"


@dataclass(frozen=True, slots=True)
class Done:
    """What was done to one description of a VM."""

    where: Where
    action: Action
    xml: str | None
    """The device. None: there is none."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a VM; of a dry run, what would."""

    name: str
    uuid: str
    device: str
    """``interface`` or ``vsock``."""
    mac: str | None
    done: tuple[Done, ...]
    bare: bool = False
    """Whether an interface is attached without our nwfilter, for libvirt has none."""

    @property
    def changed(self) -> bool:
        """Whether anything was to be changed."""
        return any(each.action is not Action.NONE for each in self.done)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a VM is to be given, or to be rid of.

    ``where``: None is both, the running VM if it runs, its definition if it has one.
    """

    vsock: bool = False
    bridge: str | None = None
    where: Where | None = None
    dry_run: bool = False

    def look(self, domain: str) -> list[Found]:
        """Return the devices of this kind that a domain's XML has."""
        return devices.vsocks(domain) if self.vsock else devices.interfaces(domain, self.bridge)


def attach(uri: str, vm: str, wish: Wish) -> Outcome:
    """Give a VM (name or UUID) of the libvirt at ``uri`` the device, where it lacks it.

    A MAC that the VM has on the host-only network already, running or defined, stays; a new one is
    `enabler.addresses.mac_of` its UUID. An interface without a filter is given ours.
    Raises `AttachError`, `NoSuchVm`, `HypervisorError`, `ConfigurationError`.
    """
    with connected(uri) as connection:
        domain = find_vm(connection, vm)
        places = _places(domain, wish)
        found = {where: wish.look(_xml(domain, where)) for where in places}
        device = Vsock() if wish.vsock else _interface(connection, domain, wish, found)
        plan = [step for where in places for step in _to_attach(where, found[where], device)]
        if not wish.dry_run:
            _carry_out(domain, plan)
        mac, bare = None, False
        if isinstance(device, Interface):
            mac = device.mac
            bare = device.filter is None and any(each.action is Action.ATTACH for each in plan)
        return Outcome(domain.name(), domain.UUIDString(), device.kind, mac, tuple(plan), bare)


def detach(uri: str, vm: str, wish: Wish) -> Outcome:
    """Take the device from a VM, all of its kind. Raises as `attach` does.

    A running guest has to let go of it, which takes a moment, and can fail.
    """
    with connected(uri) as connection:
        domain = find_vm(connection, vm)
        plan = []
        mac = None
        for where in _places(domain, wish):
            found = wish.look(_xml(domain, where))
            mac = mac or next((each.mac for each in found), None)
            plan += [Done(where, Action.DETACH, each.xml) for each in found] or [
                Done(where, Action.NONE, None)
            ]
        if not wish.dry_run:
            _carry_out(domain, plan)
            # Of several, all have been asked for by now: the guest lets go of them as it likes.
            if any(each.where is Where.LIVE and each.action is Action.DETACH for each in plan):
                _wait_until_gone(domain, wish)
        kind = Vsock.kind if wish.vsock else Interface.kind
        return Outcome(domain.name(), domain.UUIDString(), kind, mac, tuple(plan))


def _places(domain: libvirt.virDomain, wish: Wish) -> list[Where]:
    there = _of(domain)
    if wish.where is None:
        return there
    if wish.where not in there:
        why = (
            "does not run, so there is no running VM to change; leave out --only"
            if wish.where is Where.LIVE
            else "is transient: it has no definition; leave out --only"
        )
        raise AttachError(f"VM {domain.name()!r} {why}")
    return [wish.where]


def _xml(domain: libvirt.virDomain, where: Where) -> str:
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE if where is Where.CONFIG else 0
    return str(domain.XMLDesc(flags))


def _interface(
    connection: libvirt.virConnect,
    domain: libvirt.virDomain,
    wish: Wish,
    found: dict[Where, list[Found]],
) -> Interface:
    # With --only, the other description may have it, and its MAC.
    elsewhere = (wish.look(_xml(domain, where)) for where in _of(domain) if where not in found)
    mac = next(
        (each.mac for some in (*found.values(), *elsewhere) for each in some if each.mac), None
    )
    if mac is None:
        mac = addresses.mac_of(domain.UUIDString())
    others = [
        other.name()
        for other in connection.listAllDomains()
        if other.UUIDString() != domain.UUIDString()
        and any(mac in devices.macs(each) for each in descriptions(other))
    ]
    if others:
        raise AttachError(
            f"the MAC {mac} is another VM's as well: {', '.join(sorted(others))}; give that one "
            "its own ('virsh edit', delete the <mac> line), or this one"
        )
    missing = not all(found.values())
    if missing and wish.bridge is None and not _has_network(connection):
        raise AttachError(
            f"libvirt has no network {devices.NETWORK!r} that is active; run 'enabler network', or "
            "name a bridge that is there without libvirt with --bridge"
        )
    filtered = devices.FILTER if _has_filter(connection) else None
    return Interface(mac, wish.bridge, filtered)


def _of(domain: libvirt.virDomain) -> list[Where]:
    """The definition first: should the running VM not take it, it is there at its next start."""
    return [Where.CONFIG] * domain.isPersistent() + [Where.LIVE] * domain.isActive()


def _has_network(connection: libvirt.virConnect) -> bool:
    absent = (libvirt.VIR_ERR_NO_NETWORK, libvirt.VIR_ERR_NO_SUPPORT)
    network = existing(lambda: connection.networkLookupByName(devices.NETWORK), *absent)
    return network is not None and bool(network.isActive())


def _has_filter(connection: libvirt.virConnect) -> bool:
    absent = (libvirt.VIR_ERR_NO_NWFILTER, libvirt.VIR_ERR_NO_SUPPORT)
    return existing(lambda: connection.nwfilterLookupByName(devices.FILTER), *absent) is not None


def _to_attach(where: Where, found: list[Found], device: Interface | Vsock) -> list[Done]:
    if not found:
        return [Done(where, Action.ATTACH, device.xml())]
    if isinstance(device, Interface) and device.filter is not None:
        bare = [each for each in found if each.filter is None]
        if bare:
            filtered = (devices.with_filter(each, device.filter) for each in bare)
            return [Done(where, Action.UPDATE, xml) for xml in filtered]
    return [Done(where, Action.NONE, found[0].xml)]


def _carry_out(domain: libvirt.virDomain, plan: list[Done]) -> None:
    act: dict[Action, Callable[[str, int], object]] = {
        Action.ATTACH: domain.attachDeviceFlags,
        Action.UPDATE: domain.updateDeviceFlags,
        Action.DETACH: domain.detachDeviceFlags,
    }
    defined = any(step.where is Where.CONFIG for step in plan)
    for step in plan:
        if step.action is Action.NONE:
            continue
        assert step.xml is not None
        live = step.where is Where.LIVE
        flag = libvirt.VIR_DOMAIN_AFFECT_LIVE if live else libvirt.VIR_DOMAIN_AFFECT_CONFIG
        try:
            act[step.action](step.xml, flag)
        except libvirt.libvirtError as error:
            said = " ".join(str(error).split())
            raise AttachError(
                f"VM {domain.name()!r}: {step.where.words} is not changed: {said}; "
                + _remedy(said, live, defined=defined, persistent=bool(domain.isPersistent()))
            ) from error


def _remedy(said: str, live: bool, *, defined: bool, persistent: bool) -> str:
    """``defined``: the definition was to be changed, too, and so has been, before this."""
    if "vhost-vsock" in said:
        return "load the host's module: modprobe vhost_vsock"
    if not live:
        return "nothing is done"
    if defined:
        return "its definition is as it should be: it counts from the VM's next start"
    if persistent:
        return "leave out --only, and its definition is changed, for the VM's next start"
    return "a transient VM's device can be changed only where its hypervisor can do so live"


def _wait_until_gone(domain: libvirt.virDomain, wish: Wish) -> None:
    end = time.monotonic() + _LET_GO_WITHIN
    while wish.look(_xml(domain, Where.LIVE)):
        if time.monotonic() > end:
            raise AttachError(
                f"the guest in {domain.name()!r} has not let go of the device within "
                f"{_LET_GO_WITHIN:g} s; it may yet, or at its next start"
            )
        time.sleep(0.1)


def in_words(outcome: Outcome, *, dry_run: bool) -> list[str]:
    """Return what became of a VM, for people, as lines; of a dry run with the devices' XML."""
    would = "would be " if dry_run else ""
    lines = [f"{outcome.name}: {outcome.device} {outcome.mac or ''}".rstrip()]
    for each in outcome.done:
        if each.action is Action.NONE:
            said = "has it already" if each.xml else "has none"
        else:
            said = f"{would}{each.action.value}"
        lines.append(f"  {each.where.words}: {said}")
        if dry_run and each.xml and each.action is not Action.NONE:
            lines += [f"    {line}" for line in each.xml.splitlines()]
    if outcome.mac and not dry_run and any(each.action is Action.ATTACH for each in outcome.done):
        lines.append(f"  the guest's address there: {addresses.link_local(outcome.mac)}")
    if outcome.bare:
        lines.append(
            f"  without the nwfilter {devices.FILTER}, which libvirt does not have and by which a "
            "guest can't forge its MAC; 'enabler network' defines it"
        )
    return lines


def documented(outcome: Outcome, *, dry_run: bool) -> dict[str, object]:
    """Return the same as JSON has it."""
    return {
        "vm": {"name": outcome.name, "uuid": outcome.uuid},
        "device": outcome.device,
        "mac": outcome.mac,
        "link_local": None if outcome.mac is None else addresses.link_local(outcome.mac),
        "changed": outcome.changed,
        "dry_run": dry_run,
        "steps": [
            {"where": each.where.value, "action": each.action.value, "xml": each.xml}
            for each in outcome.done
        ],
    }
