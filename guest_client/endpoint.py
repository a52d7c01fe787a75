"""Where an enabler is listened to, as it is written down: ``http://…`` or ``vsock://…``, say. Pure.

    auto                                  vsock where this VM has it, else the link-local address
    vsock://2:8777                        vsock; the host is CID 2 (vsock(7))
    http://169.254.77.1:8777              IPv4, or a name
    http://[fe80::77:1%25eth0]:8777       IPv6; a link-local address needs its interface after %25
                                          (RFC 6874; a bare % is understood as well)
    https://enabler.example.org:8777      the same over TLS
    unix:/run/enabler/guest.sock          a Unix socket; unix:///run/… is the same

A further way to reach one is a further :class:`Kind` here and a further way to dial in
``transport.py``; nothing else knows the difference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from guest_client.compat import StrEnum
from guest_client.token import TokenFile

DEFAULT_ENABLER = "auto"
LINK_LOCAL = "http://169.254.77.1:8777"
"""The same on every host (the enabler's default)."""
VSOCK = "vsock://2:8777"

_FORMS = (
    "write it as http://ADDRESS:PORT (https:// for TLS), http://[fe80::77:1%25INTERFACE]:PORT,"
    f" vsock://CID:PORT or unix:/PATH (the default is {DEFAULT_ENABLER}: {VSOCK} where this VM has"
    f" vsock, else {LINK_LOCAL})"
)
_VSOCK = re.compile(r"vsock://(?P<cid>\d{1,10}):(?P<port>\d{1,10})/?", re.ASCII)
_VSOCK_ANY = 0xFFFFFFFF
_HTTP = re.compile(
    r"http(?P<tls>s?)://(?:\[(?P<six>[^\]/]*)\]|(?P<host>[^:/\[\]@?#]*))(?::(?P<port>\d*))?(?P<rest>.*)"
)
_NAME = re.compile(r"(?!-)[A-Za-z0-9_.-]{1,253}\Z")
_UNIX_PATH_LIMIT = 107
"""The longest path that fits a Unix socket address: 108 bytes with its final zero (unix(7))."""


class Kind(StrEnum):
    """The ways to reach an enabler."""

    AUTO = "auto"
    VSOCK = "vsock"
    TCP = "http"
    UNIX = "unix"


@dataclass(frozen=True)
class Endpoint:
    """One enabler's address. ``host`` has the IPv6 zone, HTTP's own never has.

    What it is trusted by, and what it is shown, is at hand but no part of where it is.
    """

    kind: Kind
    host: str = ""
    """An address or a name; of a vsock, the CID."""
    port: int = 0
    path: str = ""
    tls: bool = False
    ca_file: Path | None = field(default=None, compare=False)
    """Whose certificates TLS trusts; None: what the system trusts."""
    token_file: TokenFile | None = field(default=None, compare=False)

    @property
    def interface(self) -> str | None:
        """The interface that an IPv6 link-local address is reached through."""
        return self.host.partition("%")[2] or None

    @property
    def base_url(self) -> str:
        """The origin for HTTP itself: without the zone, which means nothing to the other side."""
        if self.kind is Kind.AUTO:  # what vsock has is its own affair
            return LINK_LOCAL
        if self.kind is Kind.TCP:
            return self._url(self.host.partition("%")[0])
        return "http://localhost"

    @property
    def authority(self) -> str:
        """What HTTP's ``Host`` header says: address and port."""
        return self.base_url.partition("://")[2]

    def __str__(self) -> str:
        if self.kind is Kind.AUTO:
            return "auto"
        if self.kind is Kind.UNIX:
            return f"unix:{self.path}"
        if self.kind is Kind.VSOCK:
            return f"vsock://{self.host}:{self.port}"
        return self._url(self.host.replace("%", "%25"))

    def _url(self, host: str) -> str:
        scheme = "https" if self.tls else "http"
        return (
            f"{scheme}://[{host}]:{self.port}" if ":" in host else f"{scheme}://{host}:{self.port}"
        )


def parse_endpoint(text: str) -> Endpoint:
    """Read an address; raises ``ValueError`` saying what is wrong and how to write it."""
    if text.startswith("unix:"):
        return _unix(text)
    if text == DEFAULT_ENABLER:
        return Endpoint(Kind.AUTO)
    if text.startswith("vsock:"):
        return _vsock(text)
    match = _HTTP.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no address of an enabler; {_FORMS}")
    if match["rest"] not in ("", "/"):
        raise ValueError(f"{text!r}: nothing may follow the port; {_FORMS}")
    host = _host(text, match["host"]) if match["six"] is None else _ipv6(text, match["six"])
    if not match["port"]:
        raise ValueError(f"{text!r} has no port (the enabler's is 8777); {_FORMS}")
    port = int(match["port"]) if len(match["port"]) <= 5 else 0
    if not 0 < port < 65536:
        raise ValueError(f"{text!r}: a port is 1 to 65535; {_FORMS}")
    return Endpoint(Kind.TCP, host=host, port=port, tls=bool(match["tls"]))


def _vsock(text: str) -> Endpoint:
    match = _VSOCK.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no vsock address, such as {VSOCK}; {_FORMS}")
    cid, port = int(match["cid"]), int(match["port"])
    if not (0 < cid < _VSOCK_ANY and 0 < port < _VSOCK_ANY):
        raise ValueError(f"{text!r}: a CID and a vsock port are 1 to {_VSOCK_ANY - 1}; {_FORMS}")
    return Endpoint(Kind.VSOCK, host=str(cid), port=port)


def _unix(text: str) -> Endpoint:
    path = text.removeprefix("unix:")
    if path.startswith("//"):
        path = "/" + path.lstrip("/")
    if not path.startswith("/") or path == "/":
        raise ValueError(f"{text!r}: a Unix socket needs its full path; {_FORMS}")
    if len(path.encode()) > _UNIX_PATH_LIMIT:
        raise ValueError(f"{text!r}: a Unix socket's path has {_UNIX_PATH_LIMIT} bytes at most")
    return Endpoint(Kind.UNIX, path=path)


def _host(text: str, host: str) -> str:
    if not _NAME.match(host):
        raise ValueError(f"{text!r} has no host that can be one; {_FORMS}")
    # An address with a typing error in it (169.254.77.256) must not be looked up as a name.
    if re.fullmatch(r"[0-9.]+", host):
        import ipaddress

        try:
            ipaddress.IPv4Address(host)
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}; {_FORMS}") from error
    return host


def _ipv6(text: str, inside: str) -> str:
    import ipaddress

    address, percent, zone = inside.partition("%")
    zone = zone.removeprefix("25") if percent else ""
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}; {_FORMS}") from error
    if percent and not re.fullmatch(r"[A-Za-z0-9_.:@-]{1,15}", zone):
        raise ValueError(f"{text!r}: {zone!r} is no interface's name; {_FORMS}")
    if parsed.is_link_local and not zone:
        raise ValueError(
            f"{text!r}: a link-local address needs its interface, as in"
            f" http://[{parsed}%25eth0]:8777; `ip -6 route` names yours"
        )
    return f"{parsed}%{zone}" if zone else str(parsed)
