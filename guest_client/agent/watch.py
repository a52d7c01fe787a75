"""The agent's own watch on the enabler, for migrations that no scan sees: a thread around the
watcher that ``guest-client watch`` has, too.

A read that brings no trusted answer is no news: what was known stays known.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from guest_client.channel import Read
from guest_client.endpoint import Endpoint
from guest_client.watcher import Watcher


class Watch:
    """Reads until told to stop; ``heard`` is called in the watch's own thread with each read."""

    def __init__(
        self,
        enabler: Endpoint,
        deadline: float,
        interval: float,
        heard: Callable[[Read], None],
        *,
        once: bool = False,
    ) -> None:
        """``once``: until a read has brought a trusted identity, and then only when told to."""
        self._watcher = Watcher(enabler, deadline, interval)
        self._heard = heard
        self._once = once
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin: the first read is at once."""
        self._thread.start()

    def look(self) -> None:
        """Read now, whether or not anything has changed."""
        self._watcher.look()

    def stop(self) -> None:
        """Look no more. A read that is under way is not waited for: it holds nothing."""
        self._watcher.stop()

    def _run(self) -> None:
        for read in self._watcher.reads(wait=not self._once):
            self._heard(read)
