"""Checks of libvirt: that it can be asked, which it is, and that its VMs can be told apart."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from enabler import domains, safexml
from enabler.checks import Check
from enabler.devices import FILTER, NETWORK
from enabler.errors import ConfigurationError, EnablerError, HypervisorDenied, HypervisorError
from enabler.runs import WITH_PROCESS, Runs

MINIMUM = 1_003_003
"""Libvirt 1.3.3: the first with both events that migrations are followed by
(``VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION``, ``VIR_DOMAIN_EVENT_ID_JOB_COMPLETED``)."""

TESTED = 9_000_000
"""The oldest libvirt that the lab's tests are run with."""

_SPOOFING_FILTERS = (FILTER, "clean-traffic", "no-mac-spoofing")


@dataclass(frozen=True, slots=True)
class Nic:
    """A network interface of a running VM."""

    mac: str
    bridge: str | None
    """The bridge that libvirt plugged it into."""
    tap: str | None
    """Its other end on the host (``vnet0``)."""
    filter: str | None


@dataclass(frozen=True, slots=True)
class Vm:
    """A running VM, as far as it is checked."""

    name: str
    has_generation_id: bool
    nics: tuple[Nic, ...]
    cid: int | None = None
    """Its vsock address."""
    token_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Libvirt:
    """What libvirt answered."""

    driver: str
    version: int
    """Of the daemon: 1,000,000 * major + 1,000 * minor + release."""
    sysinfo: str | None
    sysinfo_error: str | None
    capabilities: str
    node_info: tuple[Any, ...]
    vms: tuple[Vm, ...]
    resting: tuple[Vm, ...] = ()
    """Those that don't run now."""
    networks: frozenset[str] = frozenset()
    """The names of its own networks that are active."""


def ask(uri: str, within: float) -> Libvirt:
    """What libvirt at ``uri`` answers within so many seconds.

    The questions are put in a thread that is left behind if libvirt hangs.

    Raises:
        ConfigurationError: ``uri`` is not one of this host.
        HypervisorError: libvirt can't be asked, or does not answer in time.
    """
    answer: queue.SimpleQueue[Libvirt | EnablerError] = queue.SimpleQueue()
    threading.Thread(
        target=_ask, args=(uri, answer.put), name="doctor-libvirt", daemon=True
    ).start()
    try:
        result = answer.get(timeout=within)
    except queue.Empty:
        raise HypervisorError(
            f"libvirt at {uri} did not answer within {within:g} s; if it hangs, restart it: "
            "systemctl restart libvirtd (or virtqemud)"
        ) from None
    if isinstance(result, EnablerError):
        raise result
    return result


def _ask(uri: str, put: Callable[[Libvirt | EnablerError], None]) -> None:
    import libvirt

    from enabler.libvirt_host import check_uri, translate

    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # else it writes to stderr
    try:
        check_uri(uri)
        connection = libvirt.open(uri)
        try:
            put(_interview(libvirt, connection))
        finally:
            connection.close()
    except ConfigurationError as error:
        put(error)
    except libvirt.libvirtError as error:
        put(translate(error, uri))


def _interview(libvirt: Any, connection: Any) -> Libvirt:
    sysinfo: str | None = None
    sysinfo_error: str | None = None
    try:
        sysinfo = connection.getSysinfo()
    except libvirt.libvirtError as error:
        sysinfo_error = error.get_error_message()
    vms: list[Vm] = []
    resting: list[Vm] = []
    for domain in connection.listAllDomains():
        try:
            found = vms if domain.isActive() else resting
            found.append(parse_vm(domain.name(), domain.XMLDesc()))
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
    return Libvirt(
        driver=connection.getType(),
        version=connection.getLibVersion(),
        sysinfo=sysinfo,
        sysinfo_error=sysinfo_error,
        capabilities=connection.getCapabilities(),
        node_info=tuple(connection.getInfo()),
        vms=tuple(vms),
        resting=tuple(resting),
        networks=_networks(libvirt, connection),
    )


def _networks(libvirt: Any, connection: Any) -> frozenset[str]:
    try:
        return frozenset(connection.listNetworks())
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_NO_CONNECT):
            return frozenset()  # not every driver has networks
        raise


def parse_vm(name: str, xml: str) -> Vm:
    """A VM out of its live XML (https://libvirt.org/formatdomain.html)."""
    try:
        root = safexml.parse(xml)
    except safexml.UnsafeXmlError:
        return Vm(name, has_generation_id=False, nics=())
    nics = []
    for interface in root.iterfind("devices/interface"):
        parts = {child.tag: child for child in interface}
        mac, source, target, filtered = (
            parts[tag].attrib if tag in parts else {}
            for tag in ("mac", "source", "target", "filterref")
        )
        nics.append(
            Nic(
                mac=mac.get("address", "").lower(),
                bridge=source.get("bridge"),
                tap=target.get("dev"),
                filter=filtered.get("filter"),
            )
        )
    return Vm(
        name,
        has_generation_id=root.find("genid") is not None,
        nics=tuple(nics),
        cid=domains.cid_of(root),
        token_sha256=domains.token_of(root),
    )


def check_failed(error: EnablerError, unit: str | None) -> Check:
    """Why libvirt can't be asked, and what to do on this very host."""
    name = "libvirt"
    if isinstance(error, HypervisorDenied | ConfigurationError):
        return Check.failed(name, error)
    check = Check.failed(name, error)
    if "Failed to connect socket" not in check.found and "Cannot recv" not in check.found:
        return check
    if unit is None:
        remedy = (
            "install libvirt's QEMU daemon: apt install libvirt-daemon-system, or dnf install "
            "libvirt-daemon-kvm"
        )
    else:
        remedy = f"start it: systemctl enable --now {unit}"
    return Check.fail(name, check.found, remedy)


def check_driver(uri: str, found: Libvirt) -> list[Check]:
    """Which hypervisor answers, and whether it is new enough."""
    version = _spell(found.version)
    checks = [Check.ok("libvirt", f"{version} at {uri}")]
    if found.version < MINIMUM:
        checks = [
            Check.fail(
                "libvirt",
                f"{version} at {uri} does not send the events of a migration",
                f"upgrade libvirt to {_spell(TESTED)} or newer",
            )
        ]
    elif found.version < TESTED:
        checks = [
            Check.warn(
                "libvirt",
                f"{version} at {uri} is older than what the enabler is tested with",
                f"upgrade libvirt to {_spell(TESTED)} or newer",
            )
        ]
    if found.driver == "LXC":
        checks.append(Check.ok("hypervisor", "LXC: containers, which stay on their host"))
    elif found.driver == "TEST":
        checks.append(Check.ok("hypervisor", "libvirt's test driver: no VM here is a real one"))
    elif found.driver != "QEMU":
        checks.append(
            Check.warn(
                "hypervisor",
                f"{found.driver}: the enabler is tested with QEMU/KVM",
                "if this host runs KVM, set libvirt_uri to qemu:///system in "
                "/etc/enabler/enabler.toml",
            )
        )
    elif "<domain type='kvm'" not in found.capabilities:
        checks.append(
            Check.warn(
                "hypervisor",
                "QEMU without KVM: VMs are emulated, and slow",
                "turn on virtualisation in the firmware's settings and load kvm_intel or kvm_amd",
            )
        )
    else:
        checks.append(Check.ok("hypervisor", "QEMU with KVM"))
    return checks


def check_dnsmasq(found: Libvirt, program: str | None) -> list[Check]:
    """That libvirt finds dnsmasq, where it has the network: libvirtd 9.0 was seen to end by a
    segmentation fault at its next start without, though the network has no DHCP and no DNS.
    """
    if found.driver != "QEMU" or NETWORK not in found.networks:
        return []
    name = "dnsmasq"
    if program is not None:
        return [Check.ok(name, f"{program}, which libvirtd looks for with the network {NETWORK}")]
    return [
        Check.warn(
            name,
            f"not installed, and libvirt has the network {NETWORK}: some libvirtd crash by that at "
            "their next start",
            "apt install dnsmasq-base, or dnf install dnsmasq; it is not run for this network",
        )
    ]


def check_runs(found: Libvirt, runs: Callable[[], Runs]) -> Check:
    """That the process behind each running VM can be seen: it tells one stay from the next."""
    name = "VM processes"
    if found.driver not in WITH_PROCESS:
        return Check.ok(name, f"not looked for with the driver {found.driver}")
    unseen: dict[str, str] = {}
    try:
        finder = runs()
    except OSError as error:
        return _no_processes(name, f"{error.filename}: {error.strerror}")
    for vm in found.vms:
        try:
            run = finder.of_process(vm.name)
        except OSError as error:
            unseen[vm.name] = f"{error.filename}: {error.strerror}"
        else:
            if run is None:
                unseen[vm.name] = "its process is gone"
            else:
                run.close()
    if unseen:
        return _no_processes(name, _listed([f"{vm} ({why})" for vm, why in unseen.items()]))
    return Check.ok(
        name, f"{len(found.vms)} of {len(found.vms)} seen" if found.vms else "no VM runs"
    )


def _no_processes(name: str, found: str) -> Check:
    return Check.fail(
        name,
        f"not seen: {found}",
        "run the enabler as root, in the same PID and mount namespaces as libvirt's daemon",
    )


def check_bridge_members(vms: Sequence[Vm], bridge: str, ports: frozenset[str]) -> Check:
    """That each running VM can ask: it has an interface on the host-only bridge."""
    name = "VMs on the bridge"
    if not vms:
        return Check.ok(name, "no VM runs")
    without = [vm.name for vm in vms if not any(_on(nic, bridge, ports) for nic in vm.nics)]
    if not without:
        return Check.ok(name, f"{len(vms)} of {len(vms)} running VMs have an interface on {bridge}")
    return Check.warn(
        name,
        f"not on {bridge}, so they can't ask: {_listed(without)}",
        f"give each one: enabler attach VM{_on_a_bridge(bridge)}",
    )


def check_generation_ids(vms: Sequence[Vm], driver: str = "QEMU") -> Check:
    """That a reverted or cloned VM can be told."""
    name = "generation IDs"
    if driver == "LXC":
        return Check.ok(name, "not of containers, which no driver reverts")
    without = [vm.name for vm in vms if not vm.has_generation_id]
    if not without:
        return Check.ok(
            name, f"{len(vms)} of {len(vms)} running VMs have one" if vms else "no VM runs"
        )
    return Check.warn(
        name,
        f"no <genid>, so a revert to a snapshot is not noticed: {_listed(without)}",
        "add <genid/> beneath <domain> with 'virsh edit VM', then shut it down and start it",
    )


def check_macs(vms: Sequence[Vm], bridge_mac: str | None) -> Check:
    """That a MAC address stands for one VM: a caller is known by it."""
    name = "MAC addresses"
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for vm in vms:
        for nic in vm.nics:
            owners[nic.mac].add(vm.name)
    if bridge_mac is not None and bridge_mac in owners:
        owners[bridge_mac].add("the bridge itself")
    shared = [
        f"{mac} ({', '.join(sorted(names))})"
        for mac, names in sorted(owners.items())
        if len(names) > 1
    ]
    if not shared:
        return Check.ok(name, f"{len(owners)}, each of one VM" if owners else "no VM runs")
    return Check.fail(
        name,
        f"shared, so these callers are refused: {_listed(shared)}",
        "give each its own with 'virsh edit VM' (delete the <mac> line and libvirt makes one up)",
    )


def check_spoofing(vms: Sequence[Vm], bridge: str, ports: frozenset[str]) -> Check:
    """That a VM can't send under another's MAC address."""
    name = "forged MAC addresses"
    open_doors = [
        vm.name
        for vm in vms
        if any(_on(nic, bridge, ports) and nic.filter not in _SPOOFING_FILTERS for nic in vm.nics)
    ]
    if not open_doors:
        return Check.ok(name, f"filtered for every VM on {bridge}" if vms else "no VM runs")
    return Check.warn(
        name,
        f"not filtered, so one VM could ask as another: {_listed(open_doors)}",
        f"enabler network, then for each one: enabler attach VM{_on_a_bridge(bridge)}",
    )


def _on_a_bridge(bridge: str) -> str:
    return "" if bridge == NETWORK else f" --bridge {bridge}"


def _on(nic: Nic, bridge: str, ports: frozenset[str]) -> bool:
    return nic.bridge == bridge or nic.tap in ports


def _spell(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1_000 % 1_000}.{version % 1_000}"


def _listed(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(sorted(names)[:most]) + more
