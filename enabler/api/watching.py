"""What goes out of a listener, counted; and why it was a refusal, logged.

A refusal has a request ID (``X-Request-Id``: the caller's own if it sent one that can be repeated)
in its header and in its line of the log. The log is bounded: for each caller and in all so many
lines, then a count of what was left out. Of a request nothing is written but its method, its route
and its ID: what it shows to be known by is nobody's affair.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from enabler.limits import Bucket, Buckets, Rate

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from enabler.tally import Tally

log = logging.getLogger(__name__)

REQUEST_ID = b"x-request-id"

_KEY = "enabler.listener"
_PLAUSIBLE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_LONGEST = 400
"""Characters of a reason."""

_LINES_OF_ONE = Rate(0.1, 5)
_LINES_IN_ALL = Rate(2, 100)
"""Lines a second, and at once: some 40 MB a day if every VM did its worst."""

_PROBE = "/readyz"

_SUSPICIOUS = (401, 403, 421)


class Listener:
    """An ASGI app around another, on the listener ``name``."""

    def __init__(self, name: str, app: ASGIApp, tally: Tally) -> None:
        self._name = name
        self._app = app
        self._tally = tally
        self._lines = Bucket(_LINES_IN_ALL)
        self._lines_of = Buckets(_LINES_OF_ONE)
        self._left_out = 0

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Have a request answered. No coroutine of its own: thousands wait."""
        scope[_KEY] = self
        return self._app(scope, receive, _Counted(send, self))

    def answered(self, status: int) -> None:
        """Count an answer."""
        self._tally.answers[self._name, status] += 1

    def refused(self, scope: Scope, status: int, problem: str, reason: str) -> bytes:
        """Count a refusal, log why if there is room, and return the request's ID."""
        self._tally.refusals[self._name, problem] += 1
        request_id = _request_id(scope)
        connection = scope.get("state", {}).get("connection")
        who = self._name if connection is None else str(connection.channel)
        route = getattr(scope.get("route"), "path", "-")
        if route == _PROBE:  # that libvirt is away was logged when it went
            return request_id
        now = time.monotonic()
        if self._lines_of.of(who).take(now) or self._lines.take(now):
            self._left_out += 1
            return request_id
        fields: dict[str, object] = {
            "request_id": request_id.decode(),
            "listener": self._name,
            "caller": who,
            "method": scope["method"],
            "route": route,
            "status": status,
            "problem": problem,
            "reason": reason[:_LONGEST],
        }
        if connection is not None and connection.counted is not None:
            fields["vm"] = connection.counted
        more = ""
        if self._left_out:
            fields["left_out"] = self._left_out
            more = f" ({self._left_out} more were refused and not logged)"
            self._left_out = 0
        log.log(
            logging.WARNING if status in _SUSPICIOUS else logging.INFO,
            "refused %s: %d %s: %s [%s %s, request %s]%s",
            who,
            status,
            problem,
            reason[:_LONGEST],
            scope["method"],
            route,
            request_id.decode(),
            more,
            extra={"fields": fields},
        )
        return request_id


class _Counted:
    """A request's ``send``."""

    __slots__ = ("_listener", "_send")

    def __init__(self, send: Send, listener: Listener) -> None:
        self._send = send
        self._listener = listener

    def __call__(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            self._listener.answered(message["status"])
        return self._send(message)


def of(scope: Scope) -> Listener | None:
    """Return the listener that a request came to."""
    found: Listener | None = scope.get(_KEY)
    return found


def _request_id(scope: Scope) -> bytes:
    given = [value for name, value in scope["headers"] if name == REQUEST_ID]
    if len(given) == 1 and _PLAUSIBLE_ID.fullmatch(given[0]):
        return bytes(given[0])
    return secrets.token_hex(8).encode()
