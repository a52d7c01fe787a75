"""In front of the guest app: what is refused whatever it asks for, and the hot path.

What is refused. A request that went through a proxy: whom it comes from can't be told, and a
service in the VM that can be talked into fetching a URL would hand its machine's identity to a
stranger (SSRF). A request whose ``Host`` is not the address it came to: a web page whose name was
made to point here must not read the answer (DNS rebinding).

The hot path (`Front.ready`). A known VM that asks ``GET /v1/identity`` again is answered with bytes
that are there already, before there is a task, an ASGI scope or a route, when nothing is to be
found out: no wait is wanted, no query given, the VM is current by the inventory's own checks.
Everything else is the app's affair; and these bytes were made by the app's own code
(`enabler.api.identity.response`), so that nobody can tell which way an answer came.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from enabler import errors, tokens
from enabler.answers import Answer
from enabler.api import identity, problems

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from enabler.api.connection import Connection
    from enabler.api.state import State

REFUSALS: tuple[type[errors.EnablerError], ...] = (
    errors.MalformedHost,
    errors.ForwardedRequest,
    errors.MisdirectedRequest,
    errors.TooManyRequests,
    errors.TooManyConnections,
)
"""What any request to a guest listener may be answered."""

_NOT_PLAIN = frozenset(
    {b"connection", b"content-length", b"expect", b"prefer", b"transfer-encoding", b"upgrade"}
)

_ZONE = re.compile(rb"%[^\]]*\]")

_FORWARDED = (b"forwarded", b"via", b"x-real-ip")

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request's header, understood. Made once for all requests of a connection that repeat it."""

    headers: Headers
    refusal: errors.Refusal | None
    bearer: str | None
    if_none_match: str | None
    plain: bool
    """Nothing in it asks for more than the identity, or a 304, on a connection that stays."""


@dataclass(frozen=True, slots=True)
class _Rendered:
    """The answer to one `Asked`, on the wire."""

    answer: Answer
    observed_at: datetime
    asked: Asked
    default_headers: Headers
    status: int
    wire: bytes


class Front:
    """An ASGI app in front of another."""

    def __init__(self, app: ASGIApp, everything: State, allowed_hosts: Iterable[str] = ()) -> None:
        self._app = app
        self._everything = everything
        self._inventory = everything.inventory
        self._counts = everything.tally.hot
        self._allowed = frozenset(name.lower().encode() for name in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or have it answered."""
        connection: Connection = scope["state"]["connection"]
        asked = self._asked(connection, scope["headers"])
        refusal = asked.refusal or _too_many(connection)
        if refusal is not None:
            await problems.of_error(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def ready(
        self, connection: Connection, headers: Headers, default_headers: Headers
    ) -> bytes | None:
        """Return the whole response to ``GET /v1/identity`` with these headers, if all is at hand.

        ``default_headers`` are those that uvicorn puts before each response's own (Date).
        """
        asked = self._asked(connection, headers)
        if not asked.plain:
            return None
        try:
            vm_uuid = self._everything.known_caller(connection, asked.bearer)
        except errors.Refusal:
            return None  # the app says it
        if vm_uuid is None or connection.allowance is None:
            return None
        current = self._inventory.current(vm_uuid)
        if current is None or connection.allowance.take(time.monotonic()):
            return None
        answer, observed_at = current
        rendered: _Rendered | None = connection.rendered
        if (
            rendered is None
            or rendered.answer is not answer
            or rendered.observed_at is not observed_at
            or rendered.asked is not asked
            or rendered.default_headers is not default_headers
        ):
            rendered = connection.rendered = _rendered(answer, observed_at, asked, default_headers)
        self._counts[rendered.status] += 1
        return rendered.wire

    def _asked(self, connection: Connection, headers: Headers) -> Asked:
        asked = connection.asked
        if asked is None or asked.headers != headers:
            asked = connection.asked = self._understand(headers, connection.names)
        return asked

    def _understand(self, headers: Headers, names: frozenset[bytes] | None) -> Asked:
        values: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            values.setdefault(name, []).append(value)
        tags = values.get(b"if-none-match", [])
        refusal = self._refusal(values, names)
        # Whatever else changes what is answered, or how: the app and uvicorn know what to do.
        plain = refusal is None and len(tags) <= 1 and not _NOT_PLAIN & values.keys()
        authorizations = [value.decode("latin-1") for value in values.get(b"authorization", [])]
        return Asked(
            headers,
            refusal,
            tokens.of_headers(authorizations),
            tags[0].decode("latin-1") if tags else None,
            plain,
        )

    def _refusal(
        self, values: dict[bytes, list[bytes]], names: frozenset[bytes] | None
    ) -> errors.Refusal | None:
        if any(name in _FORWARDED or name.startswith(b"x-forwarded") for name in values):
            return errors.ForwardedRequest(
                "the request went through a proxy; ask directly, without one"
            )
        hosts = values.get(b"host", [])
        if len(hosts) != 1:
            return errors.MalformedHost("a request must name its host, once")
        if names is None:
            return None
        # A zone means something to the sender alone (RFC 6874, 4).
        host = _ZONE.sub(b"]", hosts[0].strip().lower())
        if host in names or host in self._allowed or _without_port(host) in self._allowed:
            return None
        return errors.MisdirectedRequest(
            "the request is for another host than this listener; ask by its address"
        )


def _without_port(host: bytes) -> bytes:
    name, colon, port = host.rpartition(b":")
    return name if colon and port.isdigit() else host


def _too_many(connection: Connection) -> errors.Refusal | None:
    seconds = connection.stranger_allowance.take(time.monotonic())
    return errors.TooManyRequests(seconds) if seconds else None


def _rendered(
    answer: Answer, observed_at: datetime, asked: Asked, default_headers: Headers
) -> _Rendered:
    made = identity.response(answer, observed_at, asked.if_none_match)
    head = [STATUS_LINE[made.status_code]]
    for name, value in (*default_headers, *made.raw_headers):
        head += [name, b": ", value, b"\r\n"]
    wire = b"".join([*head, b"\r\n", bytes(made.body)])
    return _Rendered(answer, observed_at, asked, default_headers, made.status_code, wire)
