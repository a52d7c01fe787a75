"""Delivers events: one HTTP POST for each, to each destination, in order, until it has arrived.

What each answer means
----------------------
    answer                                meaning
    ------------------------------------  ---------------------------------------------------------
    2xx                                   it has arrived
    410                                   nobody wants events there any more (CloudEvents' web hooks
                                          and Standard Webhooks agree): sending stops, what waits is
                                          kept, until a person says `agent outbox --retry`
    429, 503 with ``Retry-After``         sent again, not sooner than asked for (an hour at most)
    every other, redirects among them;    sent again, after 1, 2, 4, ... 300 s with jitter, for as
    no connection, no answer in time      long as it takes

Nothing is given up: a 400 or a 404 is as often a receiver that is being changed as an event that it
will never take. What stands in the way is in `agent status`, and a person can take an event out
(`agent outbox --discard`). Behind an event that does not get through, later ones to the same
destination wait, so that they arrive in order; other destinations don't.

A redirect is not followed: an event says which machine runs what, and goes where it was told to.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from types import TracebackType

import httpx

from guest_client.agent.event import CONTENT_TYPE
from guest_client.agent.model import Delivery
from guest_client.agent.settings import Destination
from guest_client.agent.signing import parse_secret, signature_headers
from guest_client.agent.timeout import timeout
from guest_client.errors import ConfigurationError
from guest_client.text import printable
from guest_client.version import client_version

CONNECT_LIMIT = 10.0
TRY_LIMIT = 30.0
"""Seconds for one try from beginning to end; a receiver should answer first and work afterwards."""


@dataclass(frozen=True)
class Answer:
    """What became of one try. ``retry_after`` is in seconds."""

    arrived: bool
    gone: bool = False
    retry_after: float = 0.0
    problem: str | None = None


class Sender:
    """Sends to one destination. Making one reads its files; raises :class:`ConfigurationError`."""

    def __init__(
        self,
        destination: Destination,
        *,
        clock: Callable[[], float] = time.time,
        limit: float = TRY_LIMIT,
    ) -> None:
        self.url = destination.url
        self._clock = clock
        self._limit = limit
        self._key = _secret(destination)
        self._client = httpx.AsyncClient(
            verify=_trust(destination),
            # A proxy in the environment is not where the configuration sends events.
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(limit, connect=min(CONNECT_LIMIT, limit)),
            headers={"User-Agent": f"guest-client/{client_version()}"},
        )

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def send(self, delivery: Delivery) -> Answer:
        """Try once. What goes wrong is told in the answer."""
        headers = {"Content-Type": CONTENT_TYPE}
        now = self._clock()
        if self._key is not None:
            headers |= signature_headers(self._key, delivery.event_id, int(now), delivery.body)
        try:
            async with (
                timeout(self._limit),
                # The status is all that counts: a body is not waited for.
                self._client.stream(
                    "POST", self.url, content=delivery.body, headers=headers
                ) as answer,
            ):
                return understand(answer.status_code, answer.headers.get("Retry-After"), now)
        except (TimeoutError, httpx.TimeoutException):
            return Answer(False, problem=f"no answer within {self._limit:g} s")
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, ssl.SSLError) as error:
            return Answer(False, problem=printable(str(error) or type(error).__name__))


def understand(status: int, retry_after: str | None, now: float) -> Answer:
    """Say what a status means; see the table above."""
    if 200 <= status < 300:
        return Answer(True)
    if status == 410:
        return Answer(False, gone=True, problem="410: it wants no more events")
    wait = _seconds(retry_after, now) if status in (429, 503) else 0.0
    return Answer(False, retry_after=wait, problem=f"it answers with status {status}")


def _seconds(retry_after: str | None, now: float) -> float:
    """Read ``Retry-After`` (RFC 9110, section 10.2.3), seconds or a date; 0 if it is neither."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError):  # the former until Python 3.9
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0.0, (moment - datetime.fromtimestamp(now, timezone.utc)).total_seconds())


def _secret(destination: Destination) -> bytes | None:
    if destination.secret_file is None:
        return None
    try:
        return parse_secret(destination.secret_file.read_text(encoding="ascii"))
    except OSError as error:
        raise ConfigurationError(
            f"destination {destination.url}: can't read secret_file {destination.secret_file}:"
            f" {error.strerror}; check its mode and owner"
        ) from error
    except ValueError as error:
        why = "is not text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ConfigurationError(
            f"destination {destination.url}: the secret in {destination.secret_file} {why}; write"
            " whsec_ and the base64 of 24 to 64 random bytes"
        ) from error


def _trust(destination: Destination) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(
            cafile=None if destination.ca_file is None else str(destination.ca_file)
        )
    except OSError as error:  # an SSLError is one
        raise ConfigurationError(
            f"destination {destination.url}: can't read certificates from ca_file"
            f" {destination.ca_file}: {error.strerror or error}; give it certificates in PEM"
        ) from error
