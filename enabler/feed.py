"""The events of this host in their order, the last of them kept for whoever comes back.

One ring for all readers, each with a place of its own in it: a reader that is slow costs no memory,
and one that fell out of the ring is told so. An event's ID is the enabler's run and a number;
another run's IDs mean nothing here.

Everything here runs in one thread (the asyncio loop's).
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, deque
from collections.abc import Callable

from enabler.changes import EventKind
from enabler.documents import EventDocument

KEPT = 4096
"""Events; at some 400 bytes each that is less than 2 MB."""


class Told:
    """One event. Made into a document when the first reader wants it: a start tells thousands."""

    __slots__ = ("_data", "_make", "kind", "number")

    def __init__(self, number: int, kind: EventKind, make: Callable[[], EventDocument]) -> None:
        self.number = number
        self.kind = kind
        self._make: Callable[[], EventDocument] | None = make
        self._data = ""

    @property
    def data(self) -> str:
        """JSON, on one line."""
        if self._make is not None:
            self._data, self._make = self._make().line(), None
        return self._data


class Feed:
    """Takes events in and hands them out."""

    def __init__(self, kept: int = KEPT, run: str | None = None) -> None:
        self._run = run or secrets.token_hex(4)
        self._ring: deque[Told] = deque(maxlen=kept)
        self._count = 0
        self._closed = False
        self._news: asyncio.Event | None = None
        self.counts: Counter[EventKind] = Counter()
        """How many events of each kind there were."""

    @property
    def last(self) -> int:
        """The number of the last event; 0 if there was none."""
        return self._count

    @property
    def closed(self) -> bool:
        """Whether it has ended: nothing will follow."""
        return self._closed

    def tell(self, event: EventDocument) -> None:
        """Take in an event."""
        self.tell_of(event.kind, lambda: event)

    def tell_of(self, kind: EventKind, make: Callable[[], EventDocument]) -> None:
        """Take in an event that ``make`` gives, then as now."""
        self._count += 1
        self.counts[kind] += 1
        self._ring.append(Told(self._count, kind, make))
        self._wake()

    def close(self) -> None:
        """End it, and with it every reader's stream."""
        self._closed = True
        self._wake()

    def event_id(self, number: int) -> str:
        """Return an event's ID."""
        return f"{self._run}-{number}"

    def number(self, event_id: str) -> int | None:
        """Return the number of the event with this ID; None if this run gave no event that ID."""
        run, _, number = event_id.rpartition("-")
        if run != self._run or not (number.isascii() and number.isdigit() and len(number) < 19):
            return None
        return int(number) if int(number) <= self._count else None

    def after(self, number: int) -> list[Told] | None:
        """Return the events after one, in order; None if some of them are no longer kept."""
        missing = self._count - number
        if missing > len(self._ring):
            return None
        return [self._ring[index] for index in range(len(self._ring) - missing, len(self._ring))]

    def recent(self, at_most: int) -> list[Told]:
        """Return the last events that are kept, in order."""
        return list(self._ring)[-at_most:] if at_most else []

    async def wait(self, seconds: float) -> None:
        """Wait for the next event, the end, or so many seconds."""
        if self._closed:
            return
        if self._news is None:
            self._news = asyncio.Event()
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return

    def _wake(self) -> None:
        if self._news is not None:
            # All who wait now are woken; who comes later waits for the next.
            self._news.set()
            self._news = None
