"""``enabler network``: the host-only network and the guests' nwfilter, in libvirt; idempotent, and
all of it can be taken out again.

What they are is `enabler.network_xml`. A network that runs and is other than it should be is not
touched: to start it anew would cut off its VMs.
"""

from __future__ import annotations

from dataclasses import dataclass

import libvirt

from enabler import devices, network_xml
from enabler.devices import FILTER, NETWORK
from enabler.errors import AttachError
from enabler.libvirt_host import connected, descriptions, existing

_NO_FILTERS = (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_NO_CONNECT)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was done; of a dry run, would be."""

    what: str
    """``network enabler0``, ``nwfilter vm-enabler-guest``."""
    done: str
    """``defined``, ``redefined``, ``started``, ``autostart``, ``stopped``, ``undefined``; or why
    nothing was: ``unchanged``, ``absent``, ``not supported by this driver``.
    """

    @property
    def changed(self) -> bool:
        """Whether it changes anything."""
        return self.done not in ("unchanged", "absent") and not self.done.startswith("not ")


def make(uri: str, *, mac_table: bool = True, dry_run: bool = False) -> list[Step]:
    """Have the libvirt at ``uri`` define filter and network, start the network now and with itself.

    ``mac_table``: let libvirt keep the bridge's table of MACs, which keeps a guest from taking what
    is another's (`SECURITY.md`). Raises `AttachError`, `HypervisorError`, `ConfigurationError`.
    """
    with connected(uri) as connection:
        steps = _make_filter(connection, dry_run=dry_run)
        return steps + _make_network(connection, mac_table=mac_table, dry_run=dry_run)


def remove(uri: str, *, dry_run: bool = False) -> list[Step]:
    """Have it stop and forget both; refuse while a VM has an interface there.

    Raises `AttachError`, `HypervisorError`, `ConfigurationError`.
    """
    with connected(uri) as connection:
        users = sorted(
            domain.name() for domain in connection.listAllDomains() if _uses_network(domain)
        )
        if users:
            raise AttachError(
                f"VMs have an interface on {NETWORK}: {', '.join(users)}; take it from each of "
                "them first: enabler detach VM"
            )
        # The filter first: a VM on another bridge may name it, and then nothing is done.
        steps = _remove_filter(connection, dry_run=dry_run)
        return steps + _remove_network(connection, dry_run=dry_run)


def _uses_network(domain: libvirt.virDomain) -> bool:
    return any(devices.interfaces(each) for each in descriptions(domain))


# The filter --------------------------------------------------------------------------------------


def _filter(connection: libvirt.virConnect) -> libvirt.virNWFilter | None:
    return existing(lambda: connection.nwfilterLookupByName(FILTER), libvirt.VIR_ERR_NO_NWFILTER)


def _make_filter(connection: libvirt.virConnect, *, dry_run: bool) -> list[Step]:
    what, wanted = f"nwfilter {FILTER}", network_xml.wanted(FILTER)
    try:
        found = _filter(connection)
        if found is not None and network_xml.same_filter(found.XMLDesc(), wanted):
            return [Step(what, "unchanged")]
        if found is not None:
            wanted = network_xml.with_uuid(wanted, found.UUIDString())
        if not dry_run:
            connection.nwfilterDefineXML(wanted)
    except libvirt.libvirtError as error:
        if error.get_error_code() in _NO_FILTERS:
            return [Step(what, "not supported by this driver")]
        raise
    return [Step(what, "defined" if found is None else "redefined")]


def _remove_filter(connection: libvirt.virConnect, *, dry_run: bool) -> list[Step]:
    what = f"nwfilter {FILTER}"
    try:
        found = _filter(connection)
    except libvirt.libvirtError as error:
        if error.get_error_code() in _NO_FILTERS:
            return [Step(what, "not supported by this driver")]
        raise
    if found is None:
        return [Step(what, "absent")]
    if not dry_run:
        try:
            found.undefine()
        except libvirt.libvirtError as error:
            raise AttachError(
                f"libvirt keeps the nwfilter {FILTER}: {_said(error)}; VMs on another bridge may "
                "name it: 'virsh edit' them"
            ) from error
    return [Step(what, "undefined")]


# The network -------------------------------------------------------------------------------------


def _network(connection: libvirt.virConnect) -> libvirt.virNetwork | None:
    return existing(lambda: connection.networkLookupByName(NETWORK), libvirt.VIR_ERR_NO_NETWORK)


def _make_network(connection: libvirt.virConnect, *, mac_table: bool, dry_run: bool) -> list[Step]:
    wanted = network_xml.wanted(NETWORK)
    if not mac_table:
        wanted = network_xml.without_mac_table(wanted)
    network = _network(connection)
    steps = []
    if network is None:
        steps.append(_step("defined"))
    else:
        differs = network_xml.differences(network.XMLDesc(), wanted)
        if differs and network.isActive():
            raise AttachError(
                f"the network {NETWORK} that runs is another one: it differs in "
                f"{'; '.join(differs)}; when no VM needs it: virsh net-destroy {NETWORK}, then "
                "'enabler network' again"
            )
        if differs:
            wanted = network_xml.with_uuid(wanted, network.UUIDString())
            steps.append(_step("redefined"))
    if steps and not dry_run:
        try:
            network = connection.networkDefineXML(wanted)
        except libvirt.libvirtError as error:
            raise AttachError(
                f"libvirt does not define the network {NETWORK}: {_said(error)}; "
                "'virsh net-list --all' names those that it has"
            ) from error
    if network is None or not network.isActive():
        steps.append(_step("started"))
        if not dry_run:
            assert network is not None
            _start(network)
    if network is None or not network.autostart():
        steps.append(_step("autostart"))
        if not dry_run:
            assert network is not None
            network.setAutostart(1)
    return steps or [_step("unchanged")]


def _start(network: libvirt.virNetwork) -> None:
    try:
        network.create()
    except libvirt.libvirtError as error:
        said = _said(error)
        if "vlan_filtering" in said:
            remedy = (
                "this kernel's bridges can't filter VLANs, by which libvirt keeps their MACs; "
                "run it again with --no-mac-table"
            )
        elif "already" in said:
            remedy = (
                f"a bridge or address of it is there without libvirt: remove that (ip link delete "
                f"{NETWORK}), or keep it and attach VMs with 'enabler attach --bridge {NETWORK}'"
            )
        else:
            remedy = "it is defined; 'virsh net-start' says the same, libvirtd's log may say more"
        raise AttachError(
            f"libvirt does not start the network {NETWORK}: {said}; {remedy}"
        ) from error


def _remove_network(connection: libvirt.virConnect, *, dry_run: bool) -> list[Step]:
    network = _network(connection)
    if network is None:
        return [_step("absent")]
    steps = []
    if network.isActive():
        steps.append(_step("stopped"))
        if not dry_run:
            network.destroy()
    if network.isPersistent():
        steps.append(_step("undefined"))
        if not dry_run:
            network.undefine()
    return steps


def _step(done: str) -> Step:
    return Step(f"network {NETWORK}", done)


def _said(error: libvirt.libvirtError) -> str:
    return " ".join(str(error).split())
