"""Libvirt's word on the host itself, and its errors as ours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import libvirt

from enabler import safexml
from enabler.errors import ConfigurationError, HypervisorDenied, HypervisorError, NoSuchVm
from enabler.identity import canonical_uuid

log = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What libvirt says of the host itself.

    ``sysinfo`` is None where it has none, ``sysinfo_error`` says why.
    """

    driver: str
    sysinfo: str | None
    sysinfo_error: str | None
    capabilities: str
    nodeinfo: tuple[Any, ...]
    cpuinfo: str | None
    """The kernel's ``/proc/cpuinfo``."""

    @property
    def uuid(self) -> str | None:
        """Libvirt's UUID of the host, by which its peers know it too; None where it has none."""
        try:
            return canonical_uuid(safexml.parse(self.capabilities).findtext("host/uuid"))
        except ValueError:
            return None


def check_uri(uri: str) -> None:
    """Raise `ConfigurationError` for a URI of another host: the enabler speaks for the machine it
    runs on.
    """
    parts = urlsplit(uri)
    if not parts.scheme:
        raise ConfigurationError(
            f"libvirt_uri {uri!r} is not a libvirt URI; for QEMU/KVM on this host it is qemu:///system"
        )
    if parts.netloc:
        raise ConfigurationError(
            f"libvirt_uri {uri!r} names another host ({parts.netloc}); "
            "the enabler must run on the host it speaks for, for example with qemu:///system"
        )


def translate(error: libvirt.libvirtError, uri: str) -> HypervisorError:
    """Return libvirt's error as ours, with what to do about it."""
    message = " ".join(str(error).split())
    code = error.get_error_code()
    denied = (
        libvirt.VIR_ERR_AUTH_FAILED,
        libvirt.VIR_ERR_AUTH_CANCELLED,
        libvirt.VIR_ERR_AUTH_UNAVAILABLE,
        libvirt.VIR_ERR_ACCESS_DENIED,
    )
    if code in denied or "Permission denied" in message or "authentication" in message.lower():
        return HypervisorDenied(
            f"libvirt at {uri} refuses this user: {message}; "
            "run the enabler as root or as a member of the group 'libvirt'"
        )
    if code in (libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_ARG) or (
        "no connection driver" in message
    ):
        return HypervisorError(
            f"{uri} is no hypervisor that libvirt knows here: {message}; for QEMU/KVM use qemu:///system"
        )
    return HypervisorError(
        f"libvirt at {uri} can't be asked: {message}; see that libvirtd (or virtqemud) runs "
        "('systemctl status libvirtd') and that the URI is right (for QEMU/KVM, qemu:///system)"
    )


@contextmanager
def connected(uri: str) -> Iterator[libvirt.virConnect]:
    """Connect to libvirt for as long as the block lasts, for a command that is no service.

    Raises `HypervisorError`, also for an error of libvirt's inside the block; `ConfigurationError`.
    """
    check_uri(uri)
    silence()
    try:
        connection = libvirt.open(uri)
        try:
            yield connection
        finally:
            connection.close()
    except libvirt.libvirtError as error:
        raise translate(error, uri) from error


def existing(look_up: Callable[[], _T], *absent: int) -> _T | None:
    """Return what a look-up of libvirt's finds; None if its error is one of ``absent``.

    Raises `libvirt.libvirtError`.
    """
    try:
        return look_up()
    except libvirt.libvirtError as error:
        if error.get_error_code() in absent:
            return None
        raise


def find_vm(connection: libvirt.virConnect, vm: str) -> libvirt.virDomain:
    """Return the VM with this UUID or name. Raises `NoSuchVm`, `libvirt.libvirtError`."""
    absent = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG)  # the latter: no UUID
    for look_up in (connection.lookupByUUIDString, connection.lookupByName):
        domain = existing(partial(look_up, vm), *absent)
        if domain is not None:
            return domain
    raise NoSuchVm(f"there is no VM {vm!r} on this host; 'virsh list --all' names them")


def descriptions(domain: libvirt.virDomain) -> list[str]:
    """Return a VM's XML, as it runs and as it is defined, as far as there are both; nothing of one
    that has gone since it was listed, as VMs do that are migrated.
    """
    try:
        flags = [0] * domain.isActive()
        flags += [libvirt.VIR_DOMAIN_XML_INACTIVE] * domain.isPersistent()
        return [str(domain.XMLDesc(each)) for each in flags]
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return []
        raise


def ask_host(uri: str) -> HostFacts:
    """Return what libvirt says of the host, without a service. Raises `HypervisorError`."""
    with connected(uri) as connection:
        return host_facts(connection)


def host_facts(connection: libvirt.virConnect) -> HostFacts:
    """Return what an open connection says of the host. Raises `libvirt.libvirtError`."""
    sysinfo, why = None, None
    try:
        sysinfo = connection.getSysinfo()
    except libvirt.libvirtError as error:
        why = str(error)
    nodeinfo = tuple(connection.getInfo())
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        cpuinfo = None
    capabilities = connection.getCapabilities()
    return HostFacts(connection.getType(), sysinfo, why, capabilities, nodeinfo, cpuinfo)


def silence() -> None:
    """Keep libvirt from printing to stderr what its exceptions say again."""
    libvirt.registerErrorHandler(_on_libvirt_error, None)


def _on_libvirt_error(_: object, error: tuple[Any, ...]) -> None:
    log.debug("libvirt: %s", error[2])
