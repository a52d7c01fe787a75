"""Checks of the machine itself: what the enabler runs on, which machine it is, capacity, clock."""

from __future__ import annotations

import ctypes
import os
import platform
import pwd
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from enabler import capacity
from enabler.checks import Check, Status
from enabler.errors import HypervisorError, IdentityError, SigningUnavailable
from enabler.identity import Claim, Identified, MachineIdentity, identify
from enabler.keys import Keys
from enabler.platforms import LIBVIRT

SERVICE_USER = "enabler"
"""Whom deploy/systemd/enabler.service runs as."""

_PYTHON = (3, 11)

_TIME_ERROR = 5
"""What adjtimex(2) returns for a clock that nothing keeps in step."""

# What hypervisors call the machines they make, in SMBIOS or the device tree.
_VIRTUAL = {
    "qemu": "QEMU",
    "bochs": "QEMU",
    "vmware": "VMware",
    "virtualbox": "VirtualBox",
    "innotek": "VirtualBox",
    "xen": "Xen",
    "amazon ec2": "Amazon EC2",
    "google compute engine": "Google Compute Engine",
    "virtual machine": "Hyper-V",
    "kvm": "KVM",
    "openstack": "OpenStack",
    "rhev": "RHEV",
    "linux,dummy-virt": "QEMU",
    "parallels": "Parallels",
}


def check_python() -> Check:
    """The Python that runs this, and what of it the enabler imports."""
    version = platform.python_version()
    if sys.version_info < _PYTHON:
        return Check.fail(
            "Python",
            version,
            f"install the enabler under Python {_PYTHON[0]}.{_PYTHON[1]} or newer",
        )
    return Check.ok("Python", f"{version}, {sys.executable}")


def check_key(keys: Keys) -> Check:
    """The signing key: without one this host tells its identity, and can't prove it."""
    try:
        return Check.ok("signing key", keys.look())
    except SigningUnavailable as error:
        failed = Check.failed("signing key", error)
        return replace(failed, status=Status.WARN)


def check_user() -> Check:
    """Who runs this: the answers below are those that this user gets."""
    if os.geteuid() == 0:
        return Check.ok("user", "root")
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        name = str(os.geteuid())
    if name == SERVICE_USER:
        return Check.ok("user", f"{name}, the service's own")
    return Check.warn(
        "user",
        f"{name}, not root: what is checked below is what this user may do",
        f"run 'enabler doctor' as root or as the service's user ({SERVICE_USER} with our unit)",
    )


def check_package(name: str, *, purpose: str) -> Check:
    """That a package of the extra ``host`` is installed."""
    try:
        return Check.ok(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check.fail(
            name,
            f"not installed, so there is {purpose}",
            "install the host's part: pip install 'vm-enabler[host]' (libvirt-python is built from "
            "source and needs libvirt-dev, pkg-config, a C compiler and python3-dev)",
        )


def check_smbios(
    claims: Sequence[Claim], identified: Identified | None, *, dmidecode: bool
) -> Check:
    """What libvirt says of the machine, or why it says nothing, and whether that matters."""
    name = "SMBIOS by libvirt"
    claim = next(claim for claim in claims if claim.source == LIBVIRT)
    if claim.note is None:
        return Check.ok(name, "answers")
    if identified:
        return Check.ok(name, f"{claim.note}; another source serves")
    if dmidecode:
        return Check.warn(name, claim.note, "see what to do under 'machine identity'")
    return Check.warn(
        name,
        f"{claim.note}; there is no dmidecode, which libvirt reads it with",
        "install it where libvirt's daemon runs: apt install dmidecode, or dnf install dmidecode",
    )


def check_identity(
    claims: Sequence[Claim], configured: Mapping[str, str | None]
) -> tuple[list[Check], Identified | None]:
    """Which machine this is, and by whose word."""
    name = "machine identity"
    try:
        found = identify(claims, configured)
    except IdentityError as error:
        return [Check.failed(name, error)], None
    by = [] if found.source == "configuration" else [found.source]
    if found.configured:
        by.append(f"configuration ({', '.join(found.configured)})")
    return [
        Check.ok(name, f"{describe(found.machine)}, by {' and '.join(by)}"),
        Check.ok("component ID", found.machine.component_id),
    ], found


def describe(machine: MachineIdentity) -> str:
    """A machine in a few words."""
    kind = "-".join(part for part in (machine.type, machine.model) if part)
    words = [word for word in (machine.manufacturer, kind) if word]
    words.append(f"serial number {machine.serial_number}")
    return " ".join(words) + (f", UUID {machine.uuid}" if machine.uuid else ", no UUID")


def check_real(machine: MachineIdentity) -> Check:
    """That this is a machine, and not a virtual machine in turn."""
    name = "real machine"
    text = f"{machine.manufacturer or ''} {machine.model or ''}".casefold()
    for mark, hypervisor in _VIRTUAL.items():
        if mark in text:
            return Check.warn(
                name,
                f"this host is itself a virtual machine ({hypervisor}): it can move, and what is "
                "published is not the real machine",
                "run the enabler on the real host beneath it; for a test this is good enough",
            )
    return Check.ok(name, "no hypervisor's mark in its identity")


def check_capacity(
    capabilities: str, node_info: Sequence[object], sysinfo: str | None, cpuinfo: str | None
) -> Check:
    """What licences will count."""
    name = "capacity"
    try:
        found = capacity.measure(capabilities, node_info, sysinfo, cpuinfo)
    except HypervisorError as error:
        return Check.failed(name, error)
    return Check.ok(
        name,
        f"{found.cpu_model or 'processor of unknown model'}, {found.sockets} x "
        f"{found.cores_per_socket} x {found.threads_per_core} (sockets x cores x threads), "
        f"{found.memory_bytes / 2**30:.1f} GiB",
    )


def check_clock(synchronised: bool | None) -> Check:
    """That the times which are published mean something to others."""
    name = "clock"
    if synchronised is None:
        return Check.ok(name, "the kernel does not say here if it is kept in step")
    if synchronised:
        return Check.ok(name, "kept in step")
    return Check.warn(
        name,
        "not kept in step with a time server, so times of two hosts can't be compared",
        "run a time service: apt install chrony, or: timedatectl set-ntp true",
    )


def clock_is_synchronised() -> bool | None:
    """What the kernel knows of its clock (adjtimex(2), reading), None if it may not be asked."""
    everything_zero = ctypes.create_string_buffer(512)  # struct timex, with room; modes = 0 reads
    state = ctypes.CDLL(None, use_errno=True).adjtimex(everything_zero)
    return None if state < 0 else state != _TIME_ERROR


def has_dmidecode() -> bool:
    """Whether libvirtd would find dmidecode in the usual places."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return shutil.which("dmidecode", path=path) is not None


def libvirt_unit(root: Path) -> str | None:
    """The systemd unit that starts libvirt's QEMU daemon here; None when none is installed."""
    for unit in ("virtqemud.socket", "libvirtd.socket", "libvirtd.service"):
        for folder in ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"):
            if (root / folder / unit).exists():
                return unit
    return None
