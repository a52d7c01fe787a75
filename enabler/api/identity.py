"""An identity document as a response: its ETag, and the conditional request (RFC 9110, 13.1.2)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends, Header, Path, Request, Response
from starlette.types import Receive

from enabler.answers import Answer
from enabler.api import problems, state, waiting
from enabler.api.problems import responses
from enabler.documents import IdentityDocument
from enabler.errors import EnablerError, MalformedUuid

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

VmUuid = Annotated[
    str,
    Path(
        description="The VM's UUID, as libvirt has it.",
        json_schema_extra={"format": "uuid"},
        examples=["11111111-0000-4000-8000-000000000001"],
    ),
]

IfNoneMatch = Annotated[
    str | None, Header(description="The ETag of an earlier answer: 304 while its state holds.")
]

_ETAG = {
    "ETag": {
        "description": "The residency's state: all of the document but `observed_at`. Weak.",
        "schema": {"type": "string"},
    }
}


def documented(*refusals: type[EnablerError]) -> dict[int | str, dict[str, Any]]:
    """Return the responses of an identity resource for the OpenAPI document."""
    return {
        200: {"model": IdentityDocument, "headers": _ETAG},
        304: {
            "description": "Unchanged since the state that `If-None-Match` names.",
            "headers": _ETAG,
        },
        **responses(*refusals),
    }


def canonical_uuid(text: str) -> str:
    """Return a UUID in lower case. Raises `MalformedUuid`."""
    if not _UUID.fullmatch(text):
        raise MalformedUuid(
            f"{text[:80]!r} is not a UUID; its form is 11111111-2222-3333-4444-555555555555"
        )
    return text.lower()


@dataclass(frozen=True, slots=True)
class Condition:
    """What a request knows already, and for how long it is ready to wait for something else."""

    if_none_match: str | None
    prefer: str | None
    wait: int | None


async def _condition(
    if_none_match: IfNoneMatch = None, prefer: waiting.Prefer = None, wait: waiting.Wait = None
) -> Condition:
    # A coroutine function, as FastAPI has anything else called by a thread of a pool.
    return Condition(if_none_match, prefer, wait)


Conditional = Annotated[Condition, Depends(_condition)]


async def respond(
    request: Request,
    vm_uuid: str,
    condition: Condition,
    gone: Callable[[EnablerError], EnablerError] | None = None,
    still: Callable[[], Awaitable[None]] | None = None,
) -> Response:
    """Return 200 with a VM's identity, or 304 if the caller has this state already.

    A caller that has it, and is ready to wait, is told when that ends; ``gone`` puts what goes
    wrong meanwhile into the listener's words, and ``still`` raises if by then it may not be told.
    """
    known = condition.if_none_match
    seconds = waiting.seconds(condition.prefer, condition.wait)
    found = state.of(request)
    answer, observed_at = await found.inventory.identity(vm_uuid)
    if not seconds or not _matches(known, answer.etag):
        return response(answer, observed_at, known)
    ended = found.tally.waits_ended
    place = ExitStack()
    place.enter_context(found.waits.place(vm_uuid))

    async def changed(receive: Receive) -> Response | None:
        with place:
            change = found.inventory.change(
                vm_uuid, lambda etag: not _matches(known, etag), seconds
            )
            try:
                told = await waiting.unless_hung_up(receive, change)
                if told is not None and still is not None:
                    await still()
            except EnablerError as error:
                ended["refused"] += 1
                return problems.of_error(error if gone is None else gone(error))
        if told is None:
            ended["abandoned"] += 1
            return None  # nobody is there any more
        ended["unchanged" if _matches(known, told[0].etag) else "changed"] += 1
        return response(*told, known, {"Preference-Applied": f"wait={seconds}"})

    return waiting.Held(changed)


def response(
    answer: Answer,
    observed_at: datetime,
    if_none_match: str | None,
    more: dict[str, str] | None = None,
) -> Response:
    """Return an answer as a response, with ``more`` headers: 304 to who has it already."""
    headers = {"ETag": answer.etag, "Cache-Control": "no-cache", "Vary": "Prefer"} | (more or {})
    if _matches(if_none_match, answer.etag):
        return Response(status_code=304, headers=headers)
    return Response(answer.body(observed_at), 200, headers, "application/json")


def _matches(if_none_match: str | None, etag: str) -> bool:
    if if_none_match is None:
        return False
    if if_none_match.strip() == "*":
        return True
    # Weak comparison (RFC 9110, 8.8.3.2): If-None-Match takes no other.
    opaque = etag.removeprefix("W/")
    return opaque in (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))
