"""Capacity: what licences count of the machine. Published beside the identity, never part of it.

Pure: it reads what libvirt and ``/proc/cpuinfo`` said, and asks neither.

Where the numbers are from, best first:

1. the NUMA cells of libvirt's capabilities, which list every logical CPU with its socket and core;
2. `virNodeInfo` (https://libvirt.org/html/libvirt-libvirt-host.html#virNodeInfo) and, there,
   ``<cpu><topology>``.

Memory is what is installed, by SMBIOS' memory devices: that is what was bought, and it stands
still. Where SMBIOS does not say, or says less than the kernel has (memory that was added on the
fly), it is what the kernel has: less by what firmware and kernel keep for themselves, which a
kernel update can change.

What is counted where the machine is not even:

- Offline CPUs have no socket and no core in the list and are not counted: the kernel tells nothing
  of them. But threads that are offline on every core (IBM Power runs KVM guests with SMT off) are
  counted where libvirt knows them.
- Sockets of different size: the cores of the largest socket, the threads of the largest core.
- One socket that is several NUMA nodes (AMD NPS2 and NPS4, Intel SNC) is one socket. A node without
  processors (CXL or HBM memory) adds its memory.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

from enabler import safexml
from enabler.errors import HypervisorError
from enabler.fillers import default_fillers
from enabler.identity import canonical
from enabler.platforms import entry

_UNITS = {"b": 1, "bytes": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_UNITS |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}

_SHIFTS = {"bytes": 0, "kB": 10, "KB": 10, "MB": 20, "GB": 30, "TB": 40}
_MODULE = re.compile(rf"(?P<amount>[0-9]+) (?P<unit>{'|'.join(_SHIFTS)})")


@dataclass(frozen=True, slots=True)
class Capacity:
    """What licences count. Whole numbers of at least 1; memory in bytes."""

    cpu_model: str | None
    sockets: int
    cores_per_socket: int
    threads_per_core: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class _Topology:
    sockets: int
    cores: int
    threads: int


def measure(
    capabilities: str,
    node_info: Sequence[Any] | None = None,
    sysinfo: str | None = None,
    cpuinfo: str | None = None,
) -> Capacity:
    """The machine's capacity.

    Args:
        capabilities: the XML of ``virConnectGetCapabilities``.
        node_info: what libvirt-python's ``getInfo`` returns: CPU model, memory in MiB, CPUs, MHz,
        NUMA
            nodes, sockets per node, cores per socket, threads per core.
        sysinfo: the XML of ``virConnectGetSysinfo``, where there is one.
        cpuinfo: the text of ``/proc/cpuinfo``, where libvirt is on this machine.

    Raises:
        HypervisorError: libvirt says neither how many CPUs nor how much memory there is.
    """
    try:
        host = safexml.parse(capabilities).find("host")
    except safexml.UnsafeXmlError as error:
        raise HypervisorError(
            f"libvirt's capabilities can't be read: {error}; see 'virsh capabilities'"
        ) from error
    if host is None:
        raise HypervisorError("libvirt's capabilities have no <host>; see 'virsh capabilities'")
    told = _told_topology(host, node_info)
    seen = _seen_topology(host.iterfind("topology/cells/cell/cpus/cpu"))
    topology = seen or told
    memory = _memory(host, node_info, sysinfo)
    if topology is None or memory is None:
        raise HypervisorError(
            "libvirt does not say how many processors and how much memory this host has; "
            "see 'virsh capabilities' and 'virsh nodeinfo'"
        )
    if seen and told and told.threads > seen.threads and told.cores >= seen.cores:
        topology = _Topology(seen.sockets, seen.cores, told.threads)
    return Capacity(
        cpu_model=_cpu_model(host, sysinfo, cpuinfo),
        sockets=topology.sockets,
        cores_per_socket=topology.cores,
        threads_per_core=topology.threads,
        memory_bytes=memory,
    )


def _seen_topology(cpus: Iterable[Element]) -> _Topology | None:
    """The topology of the online CPUs, or None when none says where it is.

    A core is told from another by its threads (``siblings``), which are unique; the IDs of die,
    cluster and core repeat in ways that differ between architectures, and serve where siblings are
    not given.
    """
    sockets: dict[str, dict[tuple[str | None, ...], int]] = defaultdict(lambda: defaultdict(int))
    for cpu in cpus:
        socket, core = cpu.get("socket_id"), cpu.get("core_id")
        if socket is None or core is None:
            continue
        siblings = cpu.get("siblings")
        place = (siblings,) if siblings else (cpu.get("die_id"), cpu.get("cluster_id"), core)
        sockets[socket][place] += 1
    if not sockets:
        return None
    return _Topology(
        sockets=len(sockets),
        cores=max(len(cores) for cores in sockets.values()),
        threads=max(threads for cores in sockets.values() for threads in cores.values()),
    )


def _told_topology(host: Element, node_info: Sequence[Any] | None) -> _Topology | None:
    """The topology in so many words. Both say sockets per NUMA node; virNodeInfo says how many
    nodes."""
    if node_info is not None and len(node_info) >= 8:
        nodes, sockets, cores, threads = (_count(number) for number in node_info[4:8])
        if nodes and sockets and cores and threads:
            return _Topology(nodes * sockets, cores, threads)
    element = host.find("cpu/topology")
    if element is None:
        return None
    sockets, dies, cores, threads = (
        _count(element.get(name, "1")) for name in ("sockets", "dies", "cores", "threads")
    )
    if not (sockets and dies and cores and threads):
        return None
    return _Topology(sockets, dies * cores, threads)


def _memory(host: Element, node_info: Sequence[Any] | None, sysinfo: str | None) -> int | None:
    """The machine's memory, bytes: see the head of this module."""
    visible = _visible_memory(host) or _node_memory(node_info)
    installed = _installed_memory(sysinfo)
    return installed if installed and installed >= (visible or 0) else visible


def _installed_memory(sysinfo: str | None) -> int:
    """The sum of SMBIOS' memory devices (DSP0134 7.18), bytes; dmidecode prints "16 GB".

    dmidecode's units are powers of 1024. Non-volatile modules are storage as much as memory, and
    are not counted. A size that can't be read makes the sum useless: 0.
    """
    total = 0
    for device in _sysinfo_blocks(sysinfo, "memory_device"):
        size = canonical(entry(device, "size"))
        kind = f"{entry(device, 'type')} {entry(device, 'type_detail')}".casefold()
        if size is None or "non-volatile" in kind:
            continue
        match = _MODULE.fullmatch(size)
        if match is None:
            return 0
        total += int(match["amount"]) << _SHIFTS[match["unit"]]
    return total


def _visible_memory(host: Element) -> int | None:
    """The memory of all NUMA cells, bytes."""
    total = 0
    for element in host.iterfind("topology/cells/cell/memory"):
        unit = _UNITS.get(element.get("unit", "KiB").lower())
        amount = _count(element.text or "")
        if unit and amount:
            total += amount * unit
    return total or None


def _node_memory(node_info: Sequence[Any] | None) -> int | None:
    mebibytes = _count(node_info[1]) if node_info is not None and len(node_info) > 1 else None
    return mebibytes << 20 if mebibytes else None


def _cpu_model(host: Element, sysinfo: str | None, cpuinfo: str | None) -> str | None:
    """The processor's name: SMBIOS', else the kernel's, else what libvirt takes it for."""
    return (
        _smbios_model(sysinfo)
        or _kernel_model(cpuinfo)
        or canonical(host.findtext("cpu/model"))
        or None
    )


def _smbios_model(sysinfo: str | None) -> str | None:
    """``version`` of the first populated processor, where it is SMBIOS'.

    On Power libvirt puts the silicon's revision there, and on s390x a constant; there is then no
    ``status`` beside it.
    """
    for processor in _sysinfo_blocks(sysinfo, "processor"):
        version = canonical(entry(processor, "version"))
        status = canonical(entry(processor, "status"))
        if not version or not status or status.startswith("Unpopulated"):
            continue
        if default_fillers().reason("model", version) is None:
            return version
    return None


def _sysinfo_blocks(sysinfo: str | None, tag: str) -> list[Element]:
    """The blocks of this kind in libvirt's sysinfo; none when there is no sysinfo."""
    try:
        return [] if sysinfo is None else safexml.parse(sysinfo).findall(tag)
    except safexml.UnsafeXmlError:
        return []


def _kernel_model(cpuinfo: str | None) -> str | None:
    """The processor's name in ``/proc/cpuinfo``: "model name" on x86, "cpu" on Power.

    s390x has a vendor and, per processor, a machine type: "IBM/S390 8561".
    """
    fields: dict[str, str] = {}
    for line in (cpuinfo or "").splitlines():
        name, colon, value = line.partition(":")
        if colon and (text := canonical(value)):
            fields.setdefault(name.strip(), text)
    for name in ("model name", "cpu"):
        if name in fields:
            return fields[name]
    _, machine, number = fields.get("processor 0", "").partition("machine = ")
    if machine and "vendor_id" in fields:
        return f"{fields['vendor_id']} {number}"
    return None


def _count(number: Any) -> int | None:
    """`number` as a whole number above zero, or None."""
    try:
        count = int(number)
    except (TypeError, ValueError):
        return None
    return count if count > 0 else None
