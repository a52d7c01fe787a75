"""A guest's connection: what is settled once for all of its requests, and what it may cost.

For each accepted connection uvicorn makes one `GuestProtocol`, and that one `Connection`; a request
finds it in ``scope["state"]["connection"]``. `Door` counts them all. What is bounded here, before
any request reaches the app: connections per caller and in all; the length of a request's header and
body; the time within which a request must be here whole, a response be taken, and an unused
connection be used; requests sent ahead on one connection (pipelining).

Theory of operation. Nothing is set up per request: the protocol notes when a request began and how
long its header is so far, and the door looks at all connections every few seconds
(`Door.sweep`). What a connection costs its caller at the least is one request of its allowance.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import httptools
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from enabler import errors
from enabler.api import problems
from enabler.api.problems import Problem
from enabler.callers import Channel
from enabler.config import LimitSettings
from enabler.limits import Bucket, Buckets, Rate, Seldom

if TYPE_CHECKING:
    from enabler.api.front import Asked
    from enabler.tally import Tally

log = logging.getLogger(__name__)

HOT = b"/v1/identity"
"""What is asked for most."""

Headers = list[tuple[bytes, bytes]]

Ready = Callable[["Connection", Headers, Headers], bytes | None]
"""Gives the response to ``GET /v1/identity``, if it is at hand (`enabler.api.front.Front`)."""

REFUSALS = {
    408: "request-timeout",
    413: "content-too-large",
    414: "uri-too-long",
    431: "header-fields-too-large",
}
"""What a request that goes beyond a bound may be answered: status and problem."""

_AHEAD = 16
"""Requests that may be sent before the first of them is answered."""


class Connection:
    """One connection of a caller.

    The peer of a TCP connection is the same from its first byte to its last, and so is a vsock
    peer's CID: the channel is read once. Which VM it is, is kept with the version of what that
    rests on (`enabler.callers.Callers.version`: what VMs are known by, and the kernel's neighbour
    table) and with the token that was shown. As long as these are the same, so is the answer.
    """

    __slots__ = (
        "_bearer",
        "_version",
        "_vm_uuid",
        "allowance",
        "asked",
        "channel",
        "counted",
        "names",
        "protocol",
        "rendered",
        "stranger_allowance",
    )

    def __init__(
        self,
        protocol: GuestProtocol,
        channel: Channel,
        names: frozenset[bytes] | None,
        strangers: Bucket,
    ) -> None:
        self.protocol = protocol
        self.channel = channel
        self.names = names
        """What ``Host`` may be: the local address, with and without the port. None, anything, where
        there are no names that could be made to point here (vsock).
        """
        self.stranger_allowance = strangers
        """What requests of this address may cost while it is not known whose it is."""
        self.allowance: Bucket | None = None
        """What requests of the VM may cost; None until it is known."""
        self.asked: Asked | None = None
        """The header of the last request, understood: the next one's is mostly the same."""
        self.rendered: Any = None
        """The last answer on the hot path (`enabler.api.front`)."""
        self.counted: str | None = None
        """The VM that this connection is counted for (`Door`)."""
        self._vm_uuid: str | None = None
        self._version: object = None
        self._bearer: str | None = None

    def caller(self, version: object, bearer: str | None) -> str | None:
        """Return the VM that is asking, if that is settled; None if it must be found out."""
        if self._version == version and self._bearer == bearer:
            return self._vm_uuid
        return None

    def settle(self, version: object, bearer: str | None, vm_uuid: str) -> None:
        """Keep which VM is asking. ``version`` is the one from before it was found out."""
        self._version, self._bearer, self._vm_uuid = version, bearer, vm_uuid


class Door:
    """All connections of the guest listeners. Of one thread, the event loop's.

    ``interfaces`` gives the interface index behind each local address; ``*`` is a wildcard's.
    ``secure`` are the addresses and ports on which TLS is spoken.
    """

    def __init__(
        self,
        limits: LimitSettings,
        interfaces: Mapping[str, int | None],
        secure: Iterable[tuple[str, int]] = (),
        tls: ssl.SSLContext | None = None,
        tally: Tally | None = None,
    ) -> None:
        self.limits = limits
        self._tally = tally
        rate = Rate(limits.requests_per_second, limits.burst)
        self._vms = Buckets(rate)
        self._addresses = Buckets(rate)
        self._interfaces = interfaces
        self._by_address: Counter[str] = Counter()
        self._by_vm: Counter[str] = Counter()
        self._open: set[Connection] = set()
        self._strangers: dict[Connection, None] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self.tls = tls
        """What new connections to secure listeners are secured with; may be replaced any time."""
        self._secure = frozenset(secure)
        self.warn = Seldom(log.warning)

    def is_secure(self, protocol: GuestProtocol) -> bool:
        """Return whether TLS is spoken on the listener that a connection came to."""
        if protocol.server is None:
            return False
        address, port = protocol.server
        return (address, port) in self._secure or ("*", port) in self._secure

    def channel(self, protocol: GuestProtocol) -> Channel | None:
        """Return what the kernel says of a connection's peer; None if it is gone already."""
        if protocol.client is None or protocol.server is None:
            return None
        if protocol.client[0].isdigit():  # a CID, where an IP address has dots or colons
            return Channel(cid=int(protocol.client[0]))
        index = self._interfaces.get(protocol.server[0], self._interfaces.get("*"))
        return Channel(protocol.client[0], index)

    def admit(self, protocol: GuestProtocol) -> Connection | Problem | None:
        """Return the connection; or what to say to who may have none; or None to say nothing."""
        channel = self.channel(protocol)
        if channel is None:
            return None
        address, now = str(channel), time.monotonic()
        bucket = self._addresses.of(address)
        seconds = bucket.take(now)
        if seconds:
            self.warn(now, "%s asks more often than it may; refused", address)
            return problems.of_error(errors.TooManyRequests(seconds))
        if self._by_address[address] >= self.limits.connections_per_caller:
            self.warn(now, "%s holds as many connections as it may; refused", address)
            return problems.of_error(
                errors.TooManyConnections("you hold as many connections as a caller may; close one")
            )
        if len(self._open) >= self.limits.connections and not self._make_room():
            self.warn(now, "there are as many connections as may be; %s is refused", address)
            return problems.of_error(
                errors.TooManyConnections("there are as many connections as may be; ask again")
            )
        names = None if channel.cid is not None else _names(protocol.server)
        connection = Connection(protocol, channel, names, bucket)
        self._by_address[address] += 1
        self._open.add(connection)
        self._strangers[connection] = None
        if self._sweeping is None:
            self._sweep_later()
        return connection

    def recognise(self, connection: Connection, vm_uuid: str) -> None:
        """Count a connection as a VM's. Raises `TooManyConnections`."""
        if connection.counted == vm_uuid or connection not in self._open:
            return
        if self._by_vm[vm_uuid] >= self.limits.connections_per_caller:
            raise errors.TooManyConnections(
                "this VM holds as many connections as a caller may; close one"
            )
        self._by_vm[vm_uuid] += 1
        _give_back(self._by_vm, connection.counted)
        connection.counted = vm_uuid
        self._strangers.pop(connection, None)
        connection.allowance = self._vms.of(vm_uuid)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._open)

    def turned_away(self, said: Problem) -> None:
        """Count a refusal that ends a connection, before any app is asked."""
        if self._tally is not None:
            self._tally.answers["guest", said.status_code] += 1
            self._tally.refusals["guest", said.name] += 1

    def leave(self, connection: Connection) -> None:
        """Take in that a connection is over."""
        self._open.discard(connection)
        self._strangers.pop(connection, None)
        _give_back(self._by_vm, connection.counted)
        _give_back(self._by_address, str(connection.channel))

    def sweep(self) -> None:
        """End what takes too long. Runs every few seconds while there are connections."""
        self._sweeping = None
        now = asyncio.get_running_loop().time()
        for connection in list(self._open):
            connection.protocol.look(now)
        if self._open:
            self._sweep_later()

    def _sweep_later(self) -> None:
        delay = min(self.limits.request_seconds / 4, 2.5)
        self._sweeping = asyncio.get_running_loop().call_later(delay, self.sweep)

    def _make_room(self) -> bool:
        # Who took up all places without ever being known loses the oldest; who is known stays.
        oldest = next(iter(self._strangers), None)
        if oldest is None:
            return False
        del self._strangers[oldest]
        oldest.protocol.transport.abort()
        return True


def _give_back(counts: Counter[str], key: str | None) -> None:
    if key is not None:
        counts[key] -= 1
        if counts[key] <= 0:
            del counts[key]


def _names(server: tuple[str, int | None] | None) -> frozenset[bytes]:
    if server is None:
        return frozenset()
    host = f"[{server[0]}]" if ":" in server[0] else server[0]
    return frozenset({host.encode(), f"{host}:{server[1]}".encode()})


class _Refused(Exception):
    """Ends the parser's work on a connection; what is said is in `GuestProtocol.refuse`."""


class GuestProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, with bounds."""

    def __init__(
        self,
        door: Door,
        ready: Ready,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.door = door
        self._ready = ready
        self._answered = False
        """The request that is being received was answered on the hot path."""
        self.connection: Connection | None = None
        self._header_limit = door.limits.header_bytes
        self._body_limit = door.limits.body_bytes
        self._began: float | None = None
        """When the request that is being received began; None between two requests."""
        self._in_head = False
        self._head = 0
        """Bytes received so far of a header that came in pieces."""
        self._large = False
        """The bytes that are being parsed may hold a header that is too long."""
        self._body = 0
        self._refused = False
        self._unsent = 0
        self._unsent_since = 0.0
        self._handshake: asyncio.Task[None] | None = None
        self._early = bytearray()

    # The transport's calls -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let the connection in, or say why not."""
        super().connection_made(transport)
        admitted = self.door.admit(self)
        secure = self.door.is_secure(self)
        if isinstance(admitted, Connection):
            self.connection = admitted
            self.app_state = {"connection": admitted}
            # The first request has as long as any other, from here on.
            self._began = self.loop.time()
            if secure:
                transport.pause_reading()
                self._handshake = self.loop.create_task(self._shake_hands(transport))
        elif admitted is not None and not secure:
            self.refuse(admitted)
        else:
            transport.abort()

    async def _shake_hands(self, transport: asyncio.Transport) -> None:
        # Here and not in create_server, which would count a connection only after its handshake,
        # and keep the context it was given for good.
        assert self.door.tls is not None
        try:
            secured = await self.loop.start_tls(
                transport,
                self,
                self.door.tls,
                server_side=True,
                ssl_handshake_timeout=self.door.limits.request_seconds,
            )
        except OSError as error:
            peer = self.connection.channel if self.connection else "somebody"
            self.door.warn(time.monotonic(), "%s: no TLS handshake: %s", peer, error)
            transport.abort()
            self.connection_lost(error)
            return
        finally:
            self._handshake = None
        if secured is None or self.connection is None:
            transport.abort()
            self.connection_lost(None)
            return
        self.transport, self.flow, self.scheme = secured, FlowControl(secured), "https"
        self._began = self.loop.time()
        early, self._early = bytes(self._early), bytearray()
        if early:
            self.data_received(early)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the connection's place back."""
        if self.connection is not None:
            self.door.leave(self.connection)
            self.connection = None
        self.app_state = {}
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take in some bytes."""
        if self._refused:
            return
        if self._handshake is not None:
            self._early += data  # it follows the handshake at once; the transport is the old one
            return
        self._unset_keepalive_if_required()
        self._large = len(data) > self._header_limit
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # No other protocol is spoken here; the request is answered as it is (RFC 9110, 7.8).
            # What follows it may be of that other protocol.
            if self.cycle is not None:
                self.cycle.keep_alive = False
        except httptools.HttpParserError:
            if not self._refused:
                self._refuse_as(400, "bad-request", "Bad request", "this is not HTTP/1.1")
            return
        if self._in_head:
            self._head += len(data)
            if self._head > self._header_limit:
                self._refuse_head()

    def look(self, now: float) -> None:
        """End the connection if it takes too long. Called every few seconds."""
        if self._handshake is not None:
            return  # has a time limit of its own
        patience = self.door.limits.request_seconds
        if self._began is not None and now - self._began > patience:
            self._refuse_as(
                408,
                REFUSALS[408],
                "Request timeout",
                f"a request must be here whole within {patience:g} s",
            )
            return
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
        elif now - self._unsent_since > patience:
            self.transport.abort()

    # The parser's calls --------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._in_head = True
        self._body = 0
        self._began = self.loop.time()

    def on_headers_complete(self) -> None:
        """Hand the request to the app."""
        if self._head or self._large:
            self._head = 0
            if len(self.url) > self._header_limit // 2:
                self._refuse_as(
                    414, REFUSALS[414], "URI too long", "the request's target is too long"
                )
                raise _Refused
            length = sum(len(name) + len(value) + 4 for name, value in self.headers)
            if len(self.url) + length > self._header_limit:
                self._refuse_head()
                raise _Refused
        if len(self.pipeline) >= _AHEAD:
            self._refuse_as(400, "bad-request", "Bad request", "too many requests sent ahead")
            raise _Refused
        self._in_head = False
        self._answered = self._answer_at_once()
        if self._answered:
            return
        if not self.url.startswith(b"/"):
            self._take_host_from_target()
        super().on_headers_complete()

    def _answer_at_once(self) -> bool:
        if self.url != HOT or self.connection is None or self.parser.get_method() != b"GET":
            return False
        if self.cycle is not None and not self.cycle.response_complete:
            return False  # the answers to earlier requests come first
        if self.flow.write_paused or self.parser.get_http_version() != "1.1":
            return False
        wire = self._ready(self.connection, self.headers, self.server_state.default_headers)
        if wire is None:
            return False
        self.transport.write(wire)
        self.on_response_complete()
        return True

    def _take_host_from_target(self) -> None:
        """In ``GET http://host/path`` the host of the target is the one that counts (RFC 9112,
        3.2.2).
        """
        target = httptools.parse_url(self.url)
        host = target.host or b""
        if b":" in host:
            host = b"[%s]" % host
        if target.port is not None:
            host = b"%s:%d" % (host, target.port)
        others = [(name, value) for name, value in self.headers if name != b"host"]
        self.headers[:] = [*others, (b"host", host)]

    def on_body(self, body: bytes) -> None:
        """Take in some of the body."""
        self._body += len(body)
        if self._body > self._body_limit:
            self._refuse_as(
                413,
                REFUSALS[413],
                "Content too large",
                f"a request's body has {self._body_limit} bytes at most",
            )
            raise _Refused
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take in that the request is whole."""
        self._began = None
        if not self._answered:
            super().on_message_complete()

    # Refusing ------------------------------------------------------------------------------------

    def _refuse_head(self) -> None:
        self._refuse_as(
            431,
            REFUSALS[431],
            "Request header fields too large",
            f"a request's header has {self._header_limit} bytes at most",
        )

    def _refuse_as(self, status: int, name: str, title: str, detail: str) -> None:
        peer = str(self.connection.channel) if self.connection else "somebody"
        now = time.monotonic()
        self.door.warn(now, f"%s: {status} {name}; disconnected", peer)
        self.refuse(problems.problem(status, name, title, detail))

    def refuse(self, said: Problem) -> None:
        """Say this, and end the connection; only end it where it would be taken for the answer to
        another request.
        """
        self._refused = True
        self._unset_keepalive_if_required()
        in_body = self._began is not None and not self._in_head
        if self.cycle is not None and in_body == self.cycle.response_complete:
            self.transport.abort()
            return
        if self.cycle is not None and in_body:
            if self.cycle.response_started or self.pipeline:
                self.transport.abort()
                return
            self.cycle.disconnected = True  # the app need not answer any more
            self.cycle.message_event.set()
        self.door.turned_away(said)
        head = [STATUS_LINE[said.status_code]]
        for name, value in [*self.server_state.default_headers, *said.raw_headers]:
            head += [name, b": ", value, b"\r\n"]
        self.transport.write(b"".join([*head, b"connection: close\r\n\r\n", bytes(said.body)]))
        self.transport.close()


def protocol(door: Door, ready: Ready) -> type[asyncio.Protocol]:
    """Return what uvicorn makes for each connection that comes through a door."""
    # uvicorn calls it with its own arguments; that it is a class is not relied on.
    return cast("type[asyncio.Protocol]", partial(GuestProtocol, door, ready))
