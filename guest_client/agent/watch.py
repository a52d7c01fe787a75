"""The agent's own watch on the enabler, for migrations that no scan sees.

A thread asks ``GET /v1/identity`` every few seconds with ``If-None-Match``: nearly always the
answer is 304, some hundred bytes. Anything else makes it read the identity through the same
channel, with the same distrust, as a scan does; only that reading is believed.

The ETag is taken before the reading it goes with. Should the state change between the two, the next
question brings a 200 and one reading too many; never one too few.

A read that brings no trusted answer is no news: what was known stays known.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import httpx

from guest_client.channel import Channel, Read
from guest_client.endpoint import Endpoint
from guest_client.transport import DeadlineTransport

ASK_LIMIT = 10.0
"""Seconds for the question whether anything has changed."""


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
        self._channel = Channel(enabler)
        self._asker = Asker(enabler)
        self._deadline = deadline
        self._interval = interval
        self._heard = heard
        self._once = once
        self._afresh = False
        self._stopped = False
        self._due = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin: the first read is at once."""
        self._thread.start()

    def look(self) -> None:
        """Look now, and not at the end of the interval."""
        self._due.set()

    def look_again(self) -> None:
        """Look now, and read whether or not anything has changed."""
        self._afresh = True
        self._due.set()

    def stop(self) -> None:
        """Look no more. A read that is under way is not waited for: it holds nothing."""
        self._stopped = True
        self._due.set()

    def _run(self) -> None:
        trusted = False
        while not self._stopped:
            self._due.clear()
            if self._afresh:
                self._afresh = False
                self._asker.forget()
            if self._asker.changed():
                read = self._channel.read(self._deadline)
                trusted = read.identity is not None
                if not trusted:
                    self._asker.forget()
                if not self._stopped:
                    self._heard(read)
            self._due.wait(None if self._once and trusted else self._interval)


class Asker:
    """Asks an enabler whether its answer is still the one it gave before."""

    def __init__(self, enabler: Endpoint, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._transport = DeadlineTransport(enabler, clock)
        self._client = httpx.Client(
            transport=self._transport,
            base_url=enabler.base_url,
            trust_env=False,
            follow_redirects=False,
            timeout=ASK_LIMIT / 2,
            headers={"Accept": "application/json", "User-Agent": "guest-client"},
        )
        self._etag: str | None = None

    def changed(self) -> bool:
        """Whether an identity should be read: not after a 304, and after everything else."""
        headers = {} if self._etag is None else {"If-None-Match": self._etag}
        self._transport.deadline = self._clock() + ASK_LIMIT
        try:
            # The status and the ETag are all that counts: the body is not read.
            with self._client.stream("GET", "/v1/identity", headers=headers) as answer:
                if answer.status_code == 304 and self._etag is not None:
                    return False
                self._etag = answer.headers.get("ETag") if answer.status_code == 200 else None
        except httpx.TransportError:
            self._transport.forget_connection()
            self._etag = None
        return True

    def forget(self) -> None:
        """Take the next answer for a change, whatever it is."""
        self._etag = None
