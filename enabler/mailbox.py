"""From other threads to the event loop's, in order, however many come at once.

``call_soon_threadsafe`` writes a byte into a small buffer for each call, the same one that CPython
writes a signal's number into. Some hundred calls while the loop is busy fill it, and a SIGTERM that
comes then is lost. So letters wait here, and the loop is woken for the first of them alone.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

_Letter = tuple[Callable[..., object], tuple[object, ...]]


class Mailbox:
    """Runs functions in the thread of ``loop``, for whoever posts them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._letters: list[_Letter] = []

    def post(self, function: Callable[..., object], *arguments: object) -> None:
        """Have a function run in the loop's thread, after all that were posted before it.

        Raises `RuntimeError` if the loop is closed.
        """
        with self._lock:
            self._letters.append((function, arguments))
            first = len(self._letters) == 1
        if first:
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            letters, self._letters = self._letters, []
        for function, arguments in letters:
            # Each by itself: one that fails takes no other with it.
            self._loop.call_soon(function, *arguments)
