"""``GET /v1/events``: what happens on this host, as server-sent events; ``/recent``: what just did.

The format is https://html.spec.whatwg.org/multipage/server-sent-events.html: a reader that was cut
off names the last event it has (``Last-Event-ID``) and goes on from there. One that names none, or
one that is not known any more, begins with the state as it is, so that nobody ever works on with a
gap that it does not know of.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from enabler.api import problems, state
from enabler.changes import EventKind
from enabler.documents import EventDocument, EventListDocument
from enabler.errors import TooManyStreams
from enabler.feed import KEPT
from enabler.inventory import Inventory

HEARTBEAT = 15.0
"""Seconds after which a stream that has nothing to tell shows that it lives."""

RETRY = 2000
"""Milliseconds after which a reader that was cut off should come back."""

LastEventId = Annotated[
    str | None, Header(description="The ID of the last event that the reader has: go on from it.")
]

Limit = Annotated[int, Query(ge=0, le=KEPT, description="How many events at most.")]

_STREAM = {
    "description": "A stream without an end. Each event's `data` is an `EventDocument`, its "
    "`event` the document's `kind`. A comment comes every "
    f"{HEARTBEAT:g} s in which nothing else does.",
    "content": {
        "text/event-stream": {
            "schema": {"type": "string"},
            "example": "retry: 2000\n\nid: 5f0c11d2-7\nevent: arrival\n"
            'data: {"kind":"arrival","at":"2026-11-23T02:37:29.310Z","vm":{"uuid":"1111…"},…}\n\n',
        }
    },
}

router = APIRouter(tags=["admin"], generate_unique_id_function=problems.operation_id)


@router.get(
    "/v1/events",
    summary="What happens on this host, as it happens",
    response_class=StreamingResponse,
    responses={200: _STREAM, **problems.responses(TooManyStreams)},
)
async def get_events(request: Request, last_event_id: LastEventId = None) -> StreamingResponse:
    """Tell each arrival, departure and migration, and what else changes, as server-sent events."""
    found = state.of(request)
    place = ExitStack()
    place.enter_context(found.streams.place())
    return _Streaming(_stream(found.inventory, last_event_id), place)


@router.get(
    "/v1/events/recent",
    summary="What happened on this host of late",
    response_model=EventListDocument,
)
async def get_recent_events(request: Request, limit: Limit = 100) -> Response:
    """List the last events, without waiting for more; none from before the enabler's start."""
    feed = state.of(request).inventory.feed
    # The events are JSON already.
    told = ",".join(
        f'{{"id":"{feed.event_id(each.number)}",{each.data[1:]}' for each in feed.recent(limit)
    )
    body = f'{{"last_event_id":"{feed.event_id(feed.last)}","events":[{told}]}}'
    return Response(body, 200, {"Cache-Control": "no-store"}, "application/json")


class _Streaming(StreamingResponse):
    """A stream that gives its place back, however it ends."""

    def __init__(self, content: AsyncIterator[str], place: AbstractContextManager[object]) -> None:
        super().__init__(content, 200, {"Cache-Control": "no-store"}, "text/event-stream")
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            await super().__call__(scope, receive, send)


async def _stream(inventory: Inventory, last: str | None) -> AsyncIterator[str]:
    feed = inventory.feed
    yield f"retry: {RETRY}\n\n"
    number = None if last is None else feed.number(last)
    if number is None or feed.after(number) is None:
        if last is not None:
            yield _reset(
                f"no event {last[:60]} is known here (any more); the state as it is follows"
            )
        number, text = _state(inventory)
        yield text
    while not feed.closed:
        news = feed.after(number)
        if news is None:
            yield _reset("you read too slowly, and events were lost; the state as it is follows")
            number, text = _state(inventory)
            yield text
        elif news:
            number = news[-1].number
            yield "".join(_event(each.kind, each.data, feed.event_id(each.number)) for each in news)
        else:
            await feed.wait(HEARTBEAT)
            if feed.last == number and not feed.closed:
                yield ": still here\n\n"


def _state(inventory: Inventory) -> tuple[int, str]:
    """Return the state as an event, and the number of the event that it is the state after."""
    number = inventory.feed.last
    document = inventory.state(datetime.now(UTC))
    return number, _event(document.kind, document.line(), inventory.feed.event_id(number))


def _reset(why: str) -> str:
    document = EventDocument(kind=EventKind.RESET, at=datetime.now(UTC), detail=why)
    return _event(document.kind, document.line(), None)


def _event(kind: str, data: str, event_id: str | None) -> str:
    head = "" if event_id is None else f"id: {event_id}\n"
    return f"{head}event: {kind}\ndata: {data}\n\n"
