"""Takes what the watch reads, and puts what it means into the state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from guest_client.agent.observe import observe
from guest_client.agent.state import State
from guest_client.agent.watch import Watch
from guest_client.channel import Read
from guest_client.endpoint import Endpoint
from guest_client.guard import differences
from guest_client.identity import Identity
from guest_client.times import rfc3339, utc_now


class Lookout:
    """The watch's other half, in the agent's own loop.

    ``oriented`` is set once the enabler has been asked, whatever came of it; ``news`` is called
    whenever something new is in the state.
    """

    def __init__(
        self,
        state: State,
        enabler: Endpoint,
        deadline: float,
        interval: float,
        say: Callable[[str], None],
        news: Callable[[], None],
        *,
        watching: bool,
    ) -> None:
        self.oriented = asyncio.Event()
        self._state = state
        self._say = say
        self._news = news
        self._watching = watching
        self._reads: asyncio.Queue[Read] = asyncio.Queue()
        self._latest: Read | None = None
        loop = asyncio.get_running_loop()

        def heard(read: Read) -> None:
            with suppress(RuntimeError):  # the loop is closed: the agent has ended
                loop.call_soon_threadsafe(self._reads.put_nowait, read)

        self._watch = Watch(enabler, deadline, interval, heard, once=not watching)

    async def listen(self) -> None:
        """Take readings, for ever."""
        self._watch.start()
        try:
            while True:
                read = await self._reads.get()
                self._tell(read)
                self._latest = read
                if read.identity is not None and not self._take(read.identity, read.started):
                    self._watch.look()
                    self._news()  # somebody else's
                    continue
                self.oriented.set()
        finally:
            self._watch.stop()

    def look(self) -> None:
        """Look now."""
        self._watch.look()

    def status(self) -> dict[str, Any]:
        """Say how the watch stands."""
        read = self._latest
        return {
            "on": self._watching,
            "read_at": None if read is None else read.finished,
            "error": None if read is None or read.error is None else str(read.error),
        }

    def _take(self, present: Identity, since: str) -> bool:
        """Put what was read into the state; false if it is older than what is known by now.

        A scan, or a command, can note a new stay while a read of the old one is on its way to us.
        Taken for news, it would be a migration back that never was.
        """
        known = self._state.known()
        # A clock that was set back since makes no reading old.
        if known is not None and since < known.noted_at <= rfc3339(utc_now()):
            return False
        standing, news = observe(known, present, utc_now())
        if (
            known is not None
            and not news
            and not differences(known.identity, present)
            and known.migrating == standing.migrating
        ):
            return True  # nothing that is worth a write
        if self._state.observed(standing, news):
            self._news()
        return True

    def _tell(self, read: Read) -> None:
        """Say that the enabler doesn't answer, and that it does again: once each."""
        before = None if self._latest is None else self._latest.error
        if read.error is not None and (before is None or before.reason != read.error.reason):
            self._say(f"{read.error}; it will be asked again")
        elif read.error is None and before is not None:
            self._say("the enabler answers again")
