"""Waiting for a change: ``Prefer: wait=N`` (RFC 7240), or ``?wait=N`` for curl.

A request that names the state it knows (``If-None-Match``) and is ready to wait is held until that
state is no longer so. It ends early when its caller hangs up. The number of requests that wait is
bounded, per caller and in all: each costs memory, and a caller has no use for many.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

from fastapi import Header, Query, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from enabler.errors import TooManyWaits

_T = TypeVar("_T")

LONGEST = 300
"""Seconds for which a request is held at most, whatever it prefers."""

PER_CALLER = 8
IN_ALL = 20_000

Wait = Annotated[
    int | None,
    Query(
        ge=0,
        description="Seconds to wait for another state than `If-None-Match` names, like "
        f"`Prefer: wait=N`. At most {LONGEST} are waited.",
    ),
]

Prefer = Annotated[
    str | None,
    Header(description="`wait=N` (RFC 7240): wait up to N seconds for another state."),
]

_HELD = "enabler.held"

# One preference of RFC 7240's list: a name, perhaps a value, perhaps parameters that we ignore.
_WAIT = re.compile(r'(?:^|,)\s*wait\s*=\s*"?(\d{1,9})"?\s*(?=[,;]|$)', re.IGNORECASE)


def seconds(prefer: str | None, wait: int | None) -> int:
    """Return for how many seconds a request may be held; 0 if it does not want to be."""
    if wait is None:
        match = _WAIT.search(prefer or "")
        wait = int(match[1]) if match else 0
    return min(wait, LONGEST)


class Waits:
    """Counts the requests that wait. Asked and told from one thread."""

    def __init__(self, per_caller: int = PER_CALLER, in_all: int = IN_ALL) -> None:
        self._per_caller = per_caller
        self._in_all = in_all
        self._waiting: Counter[str] = Counter()
        self._count = 0

    @property
    def open(self) -> int:
        """How many wait."""
        return self._count

    @contextmanager
    def place(self, caller: str) -> Iterator[None]:
        """Take a place for one request. Raises `TooManyWaits` if there is none left."""
        if self._waiting[caller] >= self._per_caller:
            raise TooManyWaits(
                f"{self._per_caller} requests of this VM wait already; end one first"
            )
        if self._count >= self._in_all:
            raise TooManyWaits("as many requests wait here as may; ask without waiting")
        self._waiting[caller] += 1
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1
            self._waiting[caller] -= 1
            if not self._waiting[caller]:
                del self._waiting[caller]


class Held(Response):
    """What a route returns for a request that is to wait: it is answered outside, by `Holding`."""

    def __init__(self, answer: Callable[[Receive], Awaitable[Response | None]]) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Leave the answer to `Holding`."""
        scope[_HELD].append(self._answer)


class Holding:
    """An ASGI app around another, where requests wait.

    Thousands do, and each would hold all of the framework's coroutines, its parameters and exit
    stacks for minutes: so a request that is to wait has left the framework before it does.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have a request answered, and wait if that is the answer."""
        held = scope[_HELD] = []
        await self._app(scope, receive, send)
        if held:
            [answer] = held
            response = await answer(receive)
            if response is not None:
                await response(scope, receive, send)


async def unless_hung_up(receive: Receive, waited: Coroutine[Any, Any, _T]) -> _T | None:
    """Return what ``waited`` returns; None, and give it up, when the caller hangs up first.

    What is waited for runs in the request's own task: a task is memory, too.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def look_out() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    lookout = asyncio.create_task(look_out())
    try:
        return await waited
    except asyncio.CancelledError:
        if gone and not task.uncancel():
            return None
        raise
    finally:
        lookout.cancel()
