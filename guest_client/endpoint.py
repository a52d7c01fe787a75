"""Where an enabler is listened to, as it is written down: ``http://…`` or ``unix:…``. Pure.

    http://169.254.77.1:8777              IPv4, or a name
    http://[fe80::77:1%25eth0]:8777       IPv6; a link-local address needs its interface after %25
                                          (RFC 6874; a bare % is understood as well)
    unix:/run/enabler/guest.sock          a Unix socket; unix:///run/… is the same

A further way to reach one (vsock) is a further :class:`Kind` here and a further way to dial in
``transport.py``; nothing else knows the difference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

DEFAULT_ENABLER = "http://169.254.77.1:8777"

_FORMS = (
    "write it as http://ADDRESS:PORT, http://[fe80::77:1%25INTERFACE]:PORT or unix:/PATH"
    f" (the default is {DEFAULT_ENABLER})"
)
_HTTP = re.compile(
    r"http://(?:\[(?P<six>[^\]/]*)\]|(?P<host>[^:/\[\]@?#]*))(?::(?P<port>\d*))?(?P<rest>.*)"
)
_NAME = re.compile(r"(?!-)[A-Za-z0-9_.-]{1,253}\Z")
_UNIX_PATH_LIMIT = 107
"""The longest path that fits a Unix socket address: 108 bytes with its final zero (unix(7))."""


class Kind(StrEnum):
    """The ways to reach an enabler."""

    TCP = "http"
    UNIX = "unix"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One enabler's address. ``host`` has the IPv6 zone, ``authority`` never has."""

    kind: Kind
    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def interface(self) -> str | None:
        """The interface that an IPv6 link-local address is reached through."""
        return self.host.partition("%")[2] or None

    @property
    def base_url(self) -> str:
        """The origin for HTTP itself: without the zone, which means nothing to the other side."""
        if self.kind is Kind.UNIX:
            return "http://localhost"
        host = self.host.partition("%")[0]
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def authority(self) -> str:
        """What HTTP's ``Host`` header says: address and port."""
        return self.base_url.removeprefix("http://")

    def __str__(self) -> str:
        if self.kind is Kind.UNIX:
            return f"unix:{self.path}"
        if ":" in self.host:
            return f"http://[{self.host.replace('%', '%25')}]:{self.port}"
        return f"http://{self.host}:{self.port}"


DEFAULT_ENDPOINT = Endpoint(Kind.TCP, "169.254.77.1", 8777)
""":data:`DEFAULT_ENABLER`, read."""


def parse_endpoint(text: str) -> Endpoint:
    """Read an address; raises ``ValueError`` saying what is wrong and how to write it."""
    if text.startswith("unix:"):
        return _unix(text)
    if text.startswith("https://"):
        raise ValueError(f"{text!r}: the enabler's guest listener speaks plain HTTP; {_FORMS}")
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
    return Endpoint(Kind.TCP, host=host, port=port)


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
