"""Addresses to listen on: what an admin writes, and the sockets made of it.

``http://ADDRESS:PORT`` (``https://`` with TLS) and ``vsock:PORT`` are guest listeners,
``unix:PATH`` an admin listener. An IPv6 link-local address needs its zone, as a URL has it
(RFC 6874): ``http://[fe80::77:1%25enabler0]:8777``.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import re
import socket
import stat
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from enabler.errors import ConfigurationError, ListenError

_HTTP = re.compile(
    r"http(?P<secure>s?)://(?:\[(?P<six>[0-9A-Fa-f:.]+)(?:%(?:25)?(?P<zone>[^\]]+))?\]|(?P<four>[0-9.]+)):(?P<port>[0-9]{1,5})/?"
)
_VSOCK = re.compile(r"vsock:(?P<port>[0-9]{1,10})")
_BACKLOG = 2048

_IPV6_FREEBIND = 78
"""``linux/in6.h``; Python has no name for it."""

_DAD_FAILED, _TENTATIVE = 0x08, 0x40
"""``linux/if_addr.h``."""

_KEEPALIVE = (
    (socket.TCP_KEEPIDLE, 15),
    (socket.TCP_KEEPINTVL, 5),
    (socket.TCP_KEEPCNT, 3),
    (socket.TCP_USER_TIMEOUT, 30_000),
)
"""``tcp(7)``; accepted connections inherit it. A peer that is gone is noticed within 30 s."""


@dataclass(frozen=True, slots=True)
class HttpAddress:
    """A guest listener over TCP."""

    host: str
    port: int
    zone: str | None = None
    secure: bool = False
    """With TLS."""

    def __str__(self) -> str:
        scheme = "https" if self.secure else "http"
        zone = f"%25{self.zone}" if self.zone else ""
        host = f"[{self.host}{zone}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class VsockAddress:
    """A guest listener over vsock (vsock(7)), for every guest of this host that has it."""

    port: int

    def __str__(self) -> str:
        return f"vsock:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """An admin listener."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = HttpAddress | VsockAddress | UnixAddress


def parse(text: str) -> Address:
    """Return the address that ``text`` names. Raises `ConfigurationError`."""
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        if not path.is_absolute():
            raise ConfigurationError(
                f"listen {text!r}: the path must be absolute, as in unix:/run/enabler/admin.sock"
            )
        return UnixAddress(path)
    if text.startswith("vsock:"):
        return _parse_vsock(text)
    match = _HTTP.fullmatch(text)
    if match is None:
        raise ConfigurationError(
            f"listen {text!r} is no address to listen on; write http://ADDRESS:PORT, "
            "https://ADDRESS:PORT (an IP address, an IPv6 one in brackets) or vsock:PORT for "
            "guests, unix:/PATH for the admin"
        )
    try:
        host = ip_address(match["six"] or match["four"])
    except ValueError as error:
        raise ConfigurationError(f"listen {text!r}: {error}") from None
    port = int(match["port"])
    if port > 65535:
        raise ConfigurationError(f"listen {text!r}: a port is at most 65535")
    if isinstance(host, IPv6Address) and host.is_link_local and not match["zone"]:
        raise ConfigurationError(
            f"listen {text!r}: an IPv6 link-local address needs its interface, such as http://[{host}%25enabler0]:{port}"
        )
    return HttpAddress(str(host), port, match["zone"], secure=bool(match["secure"]))


def _parse_vsock(text: str) -> VsockAddress:
    match = _VSOCK.fullmatch(text)
    port = int(match["port"]) if match else 0
    if not 0 < port < socket.VMADDR_PORT_ANY:
        raise ConfigurationError(
            f"listen {text!r} is no vsock port of 1 to {socket.VMADDR_PORT_ANY - 1}; "
            "write vsock:8777"
        )
    return VsockAddress(port)


def address_of(listener: socket.socket) -> Address | None:
    """Return what a listening stream socket listens on; None for any other socket."""
    if listener.type != socket.SOCK_STREAM or not listener.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    ):
        return None
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX and isinstance(name, str) and name:
        return UnixAddress(Path(name))
    if listener.family in (socket.AF_INET, socket.AF_INET6):
        host, _, zone = str(name[0]).partition("%")
        return HttpAddress(host, int(name[1]), zone or None)
    return None


def bind(address: Address, mode: int, group: str | None) -> socket.socket:
    """Return a listening socket.

    ``mode`` and ``group`` are for a Unix socket. Raises `ListenError`.
    """
    if isinstance(address, UnixAddress):
        return _bind_unix(address, mode, group)
    if isinstance(address, VsockAddress):
        return _bind_vsock(address)
    return _bind_tcp(address)


def _bind_vsock(address: VsockAddress) -> socket.socket:
    try:
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError as error:
        raise ListenError(
            f"can't listen on {address}: this kernel has no vsock ({error.strerror}); load it: "
            "modprobe vhost_vsock"
        ) from error
    try:
        listener.bind((socket.VMADDR_CID_ANY, address.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        why = str(error.strerror or error)
        if error.errno == errno.EADDRINUSE:
            why = (
                f"another program has vsock port {address.port}; find it with 'ss -lp --vsock', or "
                "choose another --listen"
            )
        elif error.errno in (errno.EACCES, errno.EPERM):
            why = "this user may not use that port; take one above 1023, or start as root"
        raise ListenError(f"can't listen on {address}: {why}") from error
    listener.setblocking(False)
    return listener


def _bind_tcp(address: HttpAddress) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # With its protocol named: asyncio sets TCP_NODELAY on no other, and an answer in two writes
    # then waits for the caller's delayed acknowledgement, 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # A guest that was moved away says nothing when it goes. What it held here is given back.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)
        target: tuple[str, int] | tuple[str, int, int, int] = (address.host, address.port)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            scope = socket.if_nametoindex(address.zone) if address.zone else 0
            target = (address.host, address.port, 0, scope)
            if is_tentative(address):
                listener.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        listener.bind(target)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenError(f"can't listen on {address}: {_why_tcp(address, error)}") from error
    listener.setblocking(False)
    return listener


def is_tentative(address: HttpAddress) -> bool:
    """Whether the kernel still looks for duplicates of an address (RFC 4862, section 5.4): it can't
    be bound to then, and on a bridge without a VM that lasts until the first one comes.
    """
    if ":" not in address.host:
        return False
    wanted = IPv6Address(address.host).packed.hex()
    try:
        lines = Path("/proc/self/net/if_inet6").read_text().splitlines()
    except OSError:
        return False
    # Address, index, prefix length, scope, flags, interface: net/ipv6/addrconf.c.
    found = (line.split() for line in lines)
    return any(
        fields[0] == wanted
        and address.zone in (None, fields[5])
        and int(fields[4], 16) & _TENTATIVE
        and not int(fields[4], 16) & _DAD_FAILED
        for fields in found
    )


def _why_tcp(address: HttpAddress, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"another program has port {address.port}; find it with "
            f"'ss -ltnp sport = :{address.port}', or choose another --listen"
        )
    if error.errno == errno.EADDRNOTAVAIL or (
        address.zone and error.errno in (errno.ENODEV, errno.ENXIO, None)
    ):
        if address.zone is None:
            where = "no interface of this host has that address"
        elif error.errno == errno.EADDRNOTAVAIL:
            where = f"the interface {address.zone} does not have that address"
        else:
            where = f"there is no interface {address.zone}"
        return (
            f"{where}; set up the host-only bridge ('enabler network', or deploy/README.md), or "
            "choose another --listen"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return "this user may not use that port; take one above 1023, or start as root"
    return str(error.strerror or error)


def _bind_unix(address: UnixAddress, mode: int, group: str | None) -> socket.socket:
    path = address.path
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_stale(path)
        # Nobody gets in between bind and chmod.
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        if group is not None:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
        path.chmod(mode)
        listener.listen(_BACKLOG)
    except KeyError:
        listener.close()
        raise ListenError(
            f"can't listen on {address}: there is no group {group!r}; see admin_group"
        ) from None
    except OSError as error:
        listener.close()
        raise ListenError(f"can't listen on {address}: {_why_unix(error)}") from error
    listener.setblocking(False)
    return listener


def _clear_stale(path: Path) -> None:
    """Take away the socket that a killed enabler left; leave a live one's, and whatever is no
    socket.
    """
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise FileExistsError(errno.EEXIST, "there is a file of that name which is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        else:
            raise OSError(errno.EADDRINUSE, "another enabler listens there")


def _why_unix(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "this user may not write there; start as root, or choose another --listen unix:PATH"
    if "too long" in str(error):
        return "the path is too long for a Unix socket (107 bytes)"
    return str(error.strerror or error)
