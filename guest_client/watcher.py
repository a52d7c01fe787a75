"""Following the identity: each change read at once, without asking all the time.

A request waits at the enabler until what it tells is no longer so (``Prefer: wait``, RFC 7240). A
VM that migrates leaves that request behind on its old host, which can't tell it anything any more.
What then makes the guest look, whichever comes first:

- its network card's announcement on arrival, and a step of its clock (``hints.py``): at once;
- the connection, which the new host doesn't know and resets at the next keepalive probe: 1 s;
- the end of the wait.

Whatever it was, only a reading that is trusted as a scan's is believed, and only one that differs
is news. A reading that brings no trusted answer is told too, and the next one tried after
``interval``; what was known stays known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from guest_client.channel import Channel, FailedTry, Held, Read
from guest_client.endpoint import Endpoint
from guest_client.hints import Announcement, ClockStep, Waker
from guest_client.identity import Identity
from guest_client.news import Change, news
from guest_client.transport import Interrupter, pause

HOLD = 240.0
"""Seconds that one request waits; the enabler's limit is 300."""
EAGER = 3.0
LONGEST_EAGER_WAIT = 0.03
"""Seconds after a hint in which a read that gets no answer is tried again after this wait at most:
a host that a VM has just come to needs a moment to know it."""
SHORTEST_HOLD = 1.0
"""Seconds; a wait that breaks sooner, without a hint, is not begun again at once."""


class _Stopped(Exception):
    """Ends a read that is under way."""


class Watcher:
    """Reads the identity again and again: in one thread, steered from any.

    ``deadline`` is for each read and ``interval`` between two looks where nothing can be waited
    for, in seconds.
    """

    def __init__(
        self,
        enabler: Endpoint | str,
        deadline: float,
        interval: float,
        on_failure: Callable[[FailedTry], None] | None = None,
    ) -> None:
        self._deadline = deadline
        self._interval = interval
        self._on_failure = on_failure
        self._waker = Waker()
        self._hints = (Announcement(), ClockStep())
        self._hinted_at = float("-inf")
        self._interrupters = [_Noted(each, self._hinted) for each in (self._waker, *self._hints)]
        self._stopped = False
        self._channel = Channel(
            enabler,
            on_failure=self._failed,
            sleep=self._sleep,
            interrupters=self._interrupters,
        )

    def reads(self, *, wait: bool = True) -> Iterator[Read]:
        """Give the identity as it is read: at first, after each change, and whenever in doubt.

        Not every reading differs from the one before; :func:`~guest_client.news.news` tells.
        ``wait=False`` reads, after one that is trusted, only when told to look. It ends with
        :meth:`stop`.
        """
        try:
            while not self._stopped:
                read = self._channel.read(self._deadline)
                yield read
                while read.identity is not None and not self._stopped:
                    if not wait:
                        pause(self._interrupters, None)
                        break
                    changed = self._next(read.etag)
                    if changed is None:
                        break
                    yield (read := changed)
                if read.identity is None:
                    self._rest(self._interval)
        except _Stopped:
            return
        finally:
            self._close()

    def look(self) -> None:
        """Read now, whatever it waits for."""
        self._waker.wake()

    def stop(self) -> None:
        """End :meth:`reads`, at the next chance."""
        self._stopped = True
        self._waker.wake()

    def _next(self, etag: str | None) -> Read | None:
        """Wait for a change; ``None`` if there may be one and it is to be read."""
        while not self._stopped:
            if etag is None:
                self._rest(self._interval)
                return None
            began = time.monotonic()
            held = self._channel.hold(etag, HOLD)
            if isinstance(held, Read):
                return held
            took = time.monotonic() - began
            if held is Held.BROKEN:
                if self._hinted_at < began:  # lost, and nobody knows why
                    self._rest(SHORTEST_HOLD - took)
                return None
            if held is Held.REFUSED or took < SHORTEST_HOLD:  # it lets us not wait
                undisturbed = self._rest(self._interval)
                if held is Held.REFUSED or not undisturbed:
                    return None
        return None

    def _rest(self, seconds: float) -> bool:
        """Sleep; false if something interrupted it."""
        return seconds <= 0 or self._stopped or pause(self._interrupters, seconds)

    def _sleep(self, seconds: float) -> None:
        """Pause between two tries of a read: briefly while a hint is fresh."""
        if time.monotonic() - self._hinted_at < EAGER:
            seconds = min(seconds, LONGEST_EAGER_WAIT)
        self._rest(seconds)
        if self._stopped:
            raise _Stopped

    def _failed(self, failure: FailedTry) -> None:
        if self._stopped:
            raise _Stopped
        if self._on_failure is not None:
            self._on_failure(failure)

    def _hinted(self) -> None:
        self._hinted_at = time.monotonic()

    def _close(self) -> None:
        self._channel.close()
        for hint in self._hints:
            hint.close()


class _Noted:
    """An interrupter whose interruptions are noted."""

    def __init__(self, interrupter: Interrupter, note: Callable[[], None]) -> None:
        self._interrupter = interrupter
        self._note = note

    def fileno(self) -> int:
        return self._interrupter.fileno()

    def take(self) -> bool:
        taken = self._interrupter.take()
        if taken:
            self._note()
        return taken


def told(reads: Iterator[Read]) -> Iterator[dict[str, Any]]:
    """Give what is news in these readings, as ``guest-client watch`` prints it.

    A reading without a trusted answer is told once, until there is one again or the reason is
    another; what was known before it is compared with the next trusted one.
    """
    known: Identity | None = None
    doubt: str | None = None
    for read in reads:
        if read.identity is None:
            assert read.error is not None
            if read.error.reason != doubt:
                doubt = read.error.reason
                yield _line(read.finished, Change.UNVERIFIED, str(read.error), known, None) | {
                    "reason": doubt
                }
            continue
        changes = news(known, read.identity)
        if doubt is not None and not changes:
            # It was not the machine that changed: say that it is known again.
            changes = [(Change.PRESENT, "the enabler answers again; the machine is the same")]
        doubt = None
        for change, sentence in changes:
            yield _line(read.finished, change, sentence, known, read.identity)
        known = read.identity


def _line(
    at: str, change: Change, sentence: str, before: Identity | None, now: Identity | None
) -> dict[str, Any]:
    return {
        "at": at,
        "change": str(change),
        "sentence": sentence,
        "previous": None
        if before is None
        else {"component_id": before.component_id, "residency_id": before.residency.id},
        "identity": None if now is None else now.as_dict(),
    }
