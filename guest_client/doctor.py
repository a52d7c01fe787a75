"""The doctor: each thing that must be right in a guest, what was found, and how to mend it.

It changes nothing. Checks go from near to far, and one that has failed makes those that hang on it
pointless: they are left out, so that the first failure is the one to mend.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
import struct
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from guest_client.channel import Channel
from guest_client.compat import StrEnum
from guest_client.config import CONFIG_FILE, KEYS, Settings
from guest_client.discovery import candidates, own_cid
from guest_client.endpoint import VSOCK, Endpoint, Kind
from guest_client.errors import ConfigurationError, ScannerError, TokenUnusable
from guest_client.guard import describe_machine
from guest_client.identity import Identity
from guest_client.process import find_program
from guest_client.text import printable
from guest_client.times import parse_time, utc_now
from guest_client.transport import dial
from guest_client.version import client_version

LONGEST_ANSWER = 5.0
"""Seconds that the doctor waits for an identity; a scan waits for its whole deadline."""
CLOCK_TOLERANCE = 2.0
"""Seconds that the guest's clock may be behind the host's before it is worth a word."""


class Status(StrEnum):
    """How a thing was found."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``mend`` is empty when nothing needs mending."""

    check: str
    status: Status
    found: str
    mend: str = ""
    exit_code: int = 69

    def as_dict(self) -> dict[str, Any]:
        """Give the finding as ``--json`` prints it."""
        return {
            "check": self.check,
            "status": str(self.status),
            "found": self.found,
            "mend": self.mend or None,
        }


def examine(settings: Callable[[], Settings]) -> list[Finding]:
    """Look at everything, in order. ``settings`` loads them, and may fail as ``config.load``."""
    findings = [_client()]
    try:
        loaded = settings()
    except ConfigurationError as error:
        mend = "mend it; the keys are " + ", ".join(key.name for key in KEYS)
        code = ConfigurationError.exit_code
        return [*findings, Finding("configuration", Status.FAILED, str(error), mend, code)]
    findings += [_configuration(loaded), _spool_folder(), _state_dir(loaded.state_dir)]
    if loaded.notify_program is not None:
        findings.append(_notify_program(loaded.notify_program))
    token = _token(loaded.enabler)
    findings.append(token)
    if token.status is Status.FAILED:
        return findings
    *by_vsock, endpoint = candidates(loaded.enabler)
    for first in by_vsock:
        if _connection(first).status is Status.OK:
            endpoint = first
    if loaded.enabler.kind is Kind.AUTO:
        findings.append(_discovery(endpoint))
    for check in (_way_to, _connection):
        finding = check(endpoint)
        findings.append(finding)
        if finding.status is Status.FAILED:
            return findings
    return [*findings, *_identity(loaded)]


def exit_code(findings: list[Finding]) -> int:
    """Give the code of the first failure, or 0."""
    return next((f.exit_code for f in findings if f.status is Status.FAILED), 0)


def as_document(findings: list[Finding]) -> dict[str, Any]:
    """Give the findings as ``--json`` prints them."""
    return {"ok": exit_code(findings) == 0, "findings": [f.as_dict() for f in findings]}


def as_text(findings: list[Finding]) -> str:
    """Give the findings as people read them."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<8} {finding.check:<14} {finding.found}")
        if finding.mend:
            lines.append(f"{'':<24}-> {finding.mend}")
    return "\n".join(lines)


def _client() -> Finding:
    python = ".".join(map(str, sys.version_info[:3]))
    return Finding("client", Status.OK, f"guest-client {client_version()}, Python {python}")


def _configuration(settings: Settings) -> Finding:
    read = f"{settings.file}" if settings.file else f"no {CONFIG_FILE}, which is fine"
    set_by = [f"{key} by {printable(source)}" for key, source in settings.sources.items()]
    others = "; ".join(set_by) if set_by else "every key at its default"
    return Finding("configuration", Status.OK, f"{read}; {others}")


def _spool_folder() -> Finding:
    folder = tempfile.gettempdir()
    free = os.statvfs(folder)
    room = free.f_bavail * free.f_frsize
    found = f"{folder}, {room // (1 << 20)} MiB free, for outputs that go to a stream"
    if room < 1 << 20:
        return Finding("spool folder", Status.WARNING, found, "make room, or set TMPDIR")
    return Finding("spool folder", Status.OK, found)


def _state_dir(path: Path) -> Finding:
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding(
            "state folder",
            Status.WARNING,
            f"{path} can't be written by this user",
            "only --notify-if-migrated and the agent need it: run them as a user who may, or set"
            " state_dir",
        )
    note = "" if there == path else ", not there yet, and can be made"
    return Finding("state folder", Status.OK, f"{path}{note}")


def _notify_program(command: tuple[str, ...]) -> Finding:
    try:
        return Finding("notify program", Status.OK, find_program(command[0], "notify program"))
    except ScannerError as error:
        mend = "mend notify_program in the configuration"
        code = ConfigurationError.exit_code
        return Finding("notify program", Status.FAILED, str(error), mend, code)


def _token(endpoint: Endpoint) -> Finding:
    check = "token"
    try:
        token = endpoint.token_file and endpoint.token_file.read()
    except TokenUnusable as error:
        found, _, mend = str(error).partition("; ")
        return Finding(check, Status.FAILED, found, mend, error.exit_code)
    if not token or endpoint.token_file is None:
        return Finding(check, Status.OK, "none, which is fine where vsock or the address is enough")
    found = f"{endpoint.token_file.path}, for its owner alone"
    if endpoint.kind is Kind.TCP and not endpoint.tls and not _is_local(endpoint.host):
        note = f"{found}; on its way to {endpoint} it can be read"
        return Finding(check, Status.WARNING, note, "use an https:// address, or a link-local one")
    return Finding(check, Status.OK, found)


def _is_local(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_link_local or address.is_loopback


def _discovery(chosen: Endpoint) -> Finding:
    cid = own_cid()
    if cid is None:
        found = f"this VM has none, so {chosen} is asked"
    elif chosen.kind is Kind.VSOCK:
        found = f"this VM's CID is {cid}, and the host answers at {chosen}"
    else:
        found = f"this VM's CID is {cid}; nobody answers at {VSOCK}, so {chosen} is asked"
    return Finding("vsock", Status.OK, found)


def _way_to(endpoint: Endpoint) -> Finding:
    check = "way to enabler"
    if endpoint.kind is Kind.VSOCK:
        cid = own_cid()
        if cid is None:
            mend = (
                "on the host, give this VM one (virsh attach-device VM vsock.xml, with <vsock"
                " model='virtio'><cid auto='yes'/></vsock>); here, load vmw_vsock_virtio_transport"
            )
            return Finding(check, Status.WARNING, f"{endpoint}: this VM has no vsock", mend)
        return Finding(check, Status.OK, f"{endpoint} is reached by vsock from our CID {cid}")
    if endpoint.kind is Kind.UNIX:
        try:
            mode = Path(endpoint.path).stat().st_mode
        except OSError as error:
            mend = "start the enabler with --listen unix:PATH, or mend the address"
            return Finding(check, Status.FAILED, f"{endpoint}: {error.strerror}", mend)
        if not stat.S_ISSOCK(mode):
            return Finding(check, Status.FAILED, f"{endpoint} is no socket", "mend the address")
        return Finding(check, Status.OK, f"{endpoint} is a socket")
    try:
        family, *_, address = socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing: it only asks the kernel for the way
            ours = probe.getsockname()[0]
    except OSError as error:
        return Finding(
            check, Status.FAILED, f"no way to {endpoint}: {error.strerror}", _mend_route(endpoint)
        )
    device = endpoint.interface
    if family == socket.AF_INET and ours != address[0]:  # to our own address there is no route
        device = _ipv4_device(str(address[0]))
    through = f" through {device}" if device else ""
    found = f"{endpoint} is reached{through} from our address {ours}"
    if endpoint.host.startswith("169.254.") and not ours.startswith("169.254."):
        return Finding(
            check,
            Status.WARNING,
            f"{found}, which is not link-local: the enabler's bridge may be elsewhere",
            _mend_route(endpoint),
        )
    return Finding(check, Status.OK, found)


def _mend_route(endpoint: Endpoint) -> str:
    if endpoint.interface is not None:
        return f"see that there is an interface {endpoint.interface} and that it is up (`ip link`)"
    return (
        "on the host, give this VM an interface on the bridge enabler0; here, bring it up with an"
        " address from 169.254.0.0/16 (`ip addr add 169.254.77.2/16 dev INTERFACE`), or use IPv6:"
        " http://[fe80::77:1%25INTERFACE]:8777"
    )


def _ipv4_device(address: str) -> str | None:
    """Find the interface of the longest route that fits, as /proc/net/route has them."""
    target = struct.unpack("=I", socket.inet_aton(address))[0]
    best: tuple[int, str] | None = None
    try:
        rows = Path("/proc/net/route").read_text().splitlines()[1:]
    except OSError:
        return None
    for row in rows:
        device, destination, *others = row.split()
        mask = int(others[5], 16)
        length = f"{mask:b}".count("1")
        fits = target & mask == int(destination, 16)
        if fits and (best is None or length > best[0]):
            best = (length, device)
    return None if best is None else best[1]


def _connection(endpoint: Endpoint) -> Finding:
    check = "connection"
    try:
        dial(endpoint, 3.0).close()
    except OSError as error:
        cause = error.strerror or str(error) or "no answer"
        mend = (
            "see on the host that the enabler runs (`systemctl status enabler`) and listens there"
            " (`enabler doctor`), and that no packet filter is between"
        )
        return Finding(check, Status.FAILED, f"{endpoint}: {cause}", mend)
    return Finding(check, Status.OK, f"{endpoint} accepts connections")


def _identity(settings: Settings) -> list[Finding]:
    with Channel(settings.enabler) as channel:
        read = channel.read(min(settings.deadline, LONGEST_ANSWER))
    if read.error is not None:
        mend = "ask on the host: `enabler doctor` and `enabler vms` say what it knows of this VM"
        return [Finding("identity", Status.FAILED, str(read.error), mend, read.error.exit_code)]
    found = read.trusted()
    findings = [Finding("identity", Status.OK, f"{describe_machine(found)}, {found.component_id}")]
    if found.migrating:
        note = f"a migration is in progress ({found.migration.state})"
        mend = "a scan now may be crossed; --wait-if-migrating waits for its end"
        findings.append(Finding("migration", Status.WARNING, note, mend))
    if found.vm.generation_id is None:
        note = "this VM has no generation ID: a clone or a revert may go unseen"
        findings.append(Finding("generation", Status.WARNING, note, "add <genid/> to its domain"))
    return [*findings, _clock(found, utc_now())]


def _clock(found: Identity, now: datetime) -> Finding:
    ahead = (parse_time(found.observed_at) - now).total_seconds()
    if ahead > CLOCK_TOLERANCE:
        return Finding(
            "clock",
            Status.WARNING,
            f"this VM's clock is at least {ahead:.0f} s behind the host's",
            "verdicts don't hang on it, the times in reports do: run chrony or systemd-timesyncd",
        )
    return Finding("clock", Status.OK, "not behind the host's")
