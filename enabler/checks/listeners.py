"""Checks of the addresses to listen on: each is free, or an enabler's already."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import socket
import ssl
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from enabler.checks import Check
from enabler.errors import ListenError
from enabler.listen import HttpAddress, UnixAddress, VsockAddress, bind, is_tentative

_SUN_PATH = 107
_ANSWER_WITHIN = 2.0
_CONFIGURED = "change listen in /etc/enabler/enabler.toml"

_Target = tuple[str, int] | tuple[str, int, int, int]
_Probe = Callable[[socket.socket, str, int], bool]


def check_http(address: HttpAddress) -> Check:
    """That a guest listener's address is free, or an enabler's already."""
    return _check_tcp("guest listener", address, _is_enabler)


def check_metrics(address: HttpAddress) -> Check:
    """The same of the listener for Prometheus."""
    return _check_tcp("metrics listener", address, _has_figures)


def _check_tcp(name: str, address: HttpAddress, answers: _Probe) -> Check:
    try:
        bind(address, 0, None).close()
    except ListenError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE:
            return _check_taken(name, address, answers)
        return Check.failed(name, error)
    return Check.ok(name, f"{address}: free")


def check_vsock(address: VsockAddress) -> Check:
    """That a guest listener's vsock port is free, or taken by what may be an enabler."""
    name = "guest listener"
    try:
        bind(address, 0, None).close()
    except ListenError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE:
            return Check.ok(name, f"{address}: taken, by an enabler or see 'ss -lp --vsock'")
        return Check.failed(name, error)
    return Check.ok(name, f"{address}: free")


def check_unix(address: UnixAddress) -> Check:
    """That an admin listener's socket can be made, or is an enabler's already."""
    name = "admin listener"
    path = address.path
    if len(os.fsencode(path)) > _SUN_PATH:
        return Check.fail(
            name, f"{address}: longer than {_SUN_PATH} bytes", f"{_CONFIGURED} to a shorter path"
        )
    try:
        if path.is_socket():
            return _check_live(name, address)
        if path.exists():
            return Check.fail(name, f"{address}: a file that is no socket", f"rm {path}")
        folder = next(parent for parent in path.parents if parent.exists())
    except PermissionError as error:
        return _no_access(name, address, Path(error.filename))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return _no_access(name, address, folder)
    made = "" if folder == path.parent else f" ({path.parent} will be made)"
    return Check.ok(name, f"{address}: free{made}")


def _target(address: HttpAddress) -> _Target:
    """The address as a socket has it. Raises OSError if it is of an interface that is not there."""
    if ":" not in address.host:
        return address.host, address.port
    return address.host, address.port, 0, socket.if_nametoindex(address.zone) if address.zone else 0


def _no_access(name: str, address: UnixAddress, folder: Path) -> Check:
    return Check.fail(
        name,
        f"{address}: this user can't make a socket in {folder}",
        f"run the enabler as root, or {_CONFIGURED}",
    )


def _check_taken(name: str, address: HttpAddress, answers: _Probe) -> Check:
    if is_tentative(address):
        return Check.ok(
            name,
            f"{address}: taken; who by can be asked once the bridge has a VM, as its address is "
            f"tentative until then (see 'ss -ltnp sport = :{address.port}')",
        )
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    target = _target(address)
    host = ip_address(address.host)
    if host.is_unspecified:
        loopback = "::1" if isinstance(host, IPv6Address) else "127.0.0.1"
        target = (loopback, address.port)
    healthy = False
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as channel:
        channel.settimeout(_ANSWER_WITHIN)
        channel.connect(target)
        channel = _secured(channel) if address.secure else channel
        healthy = answers(channel, target[0], address.port)
    if healthy:
        return Check.ok(name, f"{address}: an enabler listens there")
    return Check.fail(
        name,
        f"{address}: taken, and what listens there does not answer as an enabler",
        f"find it with: ss -ltnp 'sport = :{address.port}', and end it or {_CONFIGURED}",
    )


def _is_enabler(channel: socket.socket, host: str = "localhost", port: int = 80) -> bool:
    status, body = _get(channel, host, port, "/healthz")
    with contextlib.suppress(ValueError):
        return status == 200 and bool(json.loads(body) == {"status": "ok"})
    return False


def _has_figures(channel: socket.socket, host: str, port: int) -> bool:
    _, body = _get(channel, host, port, "/metrics")
    return b"enabler_build_info" in body


def _get(channel: socket.socket, host: str, port: int, path: str) -> tuple[int, bytes]:
    # An enabler's guest listener refuses a request that is for another host.
    connection = http.client.HTTPConnection(host, port)
    connection.sock = channel
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(4096)
    except (OSError, http.client.HTTPException):
        return 0, b""


def _secured(channel: socket.socket) -> socket.socket:
    # Whether an enabler listens is the question here, not whether its certificate is good.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(channel)


def _check_live(name: str, address: UnixAddress) -> Check:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_ANSWER_WITHIN)
        try:
            probe.connect(str(address.path))
        except PermissionError:
            return Check.warn(
                name,
                f"{address}: there is a socket, and this user may not connect to it",
                "run 'enabler doctor' as root or as a member of the socket's group",
            )
        except OSError:
            return Check.ok(name, f"{address}: free (an enabler that was killed left it behind)")
        if _is_enabler(probe):
            return Check.ok(name, f"{address}: an enabler listens there")
    # That it takes connections proves nothing: systemd has the socket before there is an enabler.
    return Check.warn(
        name,
        f"{address}: there is a socket, and no enabler answers at it within {_ANSWER_WITHIN:g} s",
        f"see why with: systemctl status enabler; what has it, with: ss -lxp src {address.path}",
    )
