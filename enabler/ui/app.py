"""The page's routes, and what guards them.

Whoever reaches the page may read it: it is on loopback. What a browser could be made to do there is
refused: a request for another ``Host`` (DNS rebinding), a read on behalf of another site's page.
The page itself may run its own script and nothing else (Content-Security-Policy): a VM's name is
whatever its owner likes.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enabler.documents import timestamp
from enabler.errors import ServiceUnavailable
from enabler.ui.source import Source
from enabler.ui.view import page, size

EVENTS_SHOWN = 50

STREAMS = 16
"""Browsers that are told at a time: each takes one of the service's streams, of which others want
some, too. More see the page, and reload it.
"""

RETRY = 1.0
"""Seconds after which a service that is away is asked again."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::[0-9]{1,5})?")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Guard:
    """An ASGI app in front of another: who may read, and with which headers."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str]) -> None:
        self._app = app
        self._hosts = _LOOPBACK | {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or have it answered."""

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), *_HEADERS]
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-cache"))
                message = {**message, "headers": headers}
            await send(message)

        refusal = self._refusal(Request(scope))
        await (refusal or self._app)(scope, receive, guarded)

    def _refusal(self, request: Request) -> Response | None:
        # Any port: behind `ssh -L 9000:127.0.0.1:8780` it is another than ours.
        named = request.headers.getlist("host")
        match = _HOST.fullmatch(named[0]) if len(named) == 1 else None
        if match is None or match[1].lower() not in self._hosts:
            return PlainTextResponse(
                "This page is not served by that name. Ask for it as 127.0.0.1 or localhost, "
                "or name it in --allowed-host.\n",
                421,
            )
        site = request.headers.get("sec-fetch-site", "none")
        mode = request.headers.get("sec-fetch-mode", "navigate")
        if site not in ("none", "same-origin") and mode != "navigate":
            return PlainTextResponse("Only this page's own requests are answered.\n", 403)
        return None


class Ui:
    """The page, and the stream of events behind it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._streams = 0
        self._ended = asyncio.Event()
        environment = Environment(
            loader=PackageLoader("enabler.ui"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["clock"] = _clock
        environment.filters["size"] = size
        self._template = environment.get_template("page.html")

    def end(self) -> None:
        """End every stream."""
        self._ended.set()

    async def page(self, _request: Request) -> Response:
        """Show everything as it is now; without the service, that it is away and why."""
        shown, away = None, None
        try:
            shown = page(await self._source.ask(EVENTS_SHOWN))
        except ServiceUnavailable as error:
            away = str(error)
        html = self._template.render(
            page=shown, away=away, hostname=socket.gethostname(), now=timestamp(datetime.now(UTC))
        )
        return HTMLResponse(html, 503 if away else 200, {"Cache-Control": "no-store"})

    async def events(self, request: Request) -> Response:
        """Pass on the service's events; tell when it is ``away``, and ``back``."""
        if self._streams >= STREAMS:
            return PlainTextResponse("As many browsers are told as may be.\n", 503)
        since = request.headers.get("last-event-id") or request.query_params.get("since")
        return _Streaming(self, since)

    async def lines(self, since: str | None) -> AsyncIterator[str]:
        """Give the stream, in pieces, until the end."""
        yield "retry: 2000\n\n"
        ended = asyncio.create_task(self._ended.wait())
        told = asyncio.Queue[str](maxsize=64)
        reader = asyncio.create_task(self._read(since, told))
        try:
            while True:
                piece = asyncio.create_task(told.get())
                await asyncio.wait({piece, ended}, return_when=asyncio.FIRST_COMPLETED)
                if not piece.done():
                    piece.cancel()
                    return
                yield piece.result()
        finally:
            reader.cancel()
            ended.cancel()

    async def _read(self, last: str | None, told: asyncio.Queue[str]) -> None:
        away = False
        while True:
            try:
                async for line in self._source.events(last):
                    if away:
                        away = False
                        await told.put("event: back\ndata: {}\n\n")
                    if line.startswith("id: "):
                        last = line.removeprefix("id: ")
                    await told.put(f"{line}\n")
            except ServiceUnavailable as error:
                # Also where it has been away for long: it shows that we are not.
                why = json.dumps({"detail": str(error)})
                await told.put(": still here\n\n" if away else f"\nevent: away\ndata: {why}\n\n")
                away = True
            await asyncio.sleep(RETRY)

    def app(self, hosts: Iterable[str] = ()) -> Guard:
        """Return the ASGI app. ``hosts`` are names it is asked by, beside those of loopback."""
        routes = [
            Route("/", self.page),
            Route("/events", self.events),
            Mount("/static", StaticFiles(packages=[("enabler.ui", "static")])),
        ]
        return Guard(Starlette(routes=routes), hosts)

    def taken(self, count: int) -> None:
        """Count the streams that are open."""
        self._streams += count


class _Streaming(StreamingResponse):
    """A stream that gives its place back, however it ends."""

    def __init__(self, ui: Ui, since: str | None) -> None:
        super().__init__(ui.lines(since), 200, {"Cache-Control": "no-store"}, "text/event-stream")
        self._ui = ui

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._ui.taken(1)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ui.taken(-1)


def _clock(at: str) -> str:
    """Return a timestamp of the contract, shorter: ``2026-11-23 02:37:29``."""
    return at[:19].replace("T", " ")
