"""NATS: a connection, and what goes over it. The one place that loads nats-py.

A connection that breaks is not mended but replaced, by whoever needs one: so it is never a question
what was lost on the way, and thousands of hosts don't come back in the same second.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from enabler.config import FleetSettings
from enabler.errors import ConfigurationError, FleetError, FleetRefused, FleetSilent
from enabler.fleet.event import HOSTS, STREAM, VMS, Event, MalformedEvent, parse

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that the servers have for an answer."""

_CONNECT_TIMEOUT = 3
_WRONG_REVISION = (10071, 10164)
_NO_STREAM = 10059
_EXPECTED = "Nats-Expected-Last-Subject-Sequence"

_T = TypeVar("_T")


class Conflict(Exception):
    """Somebody else wrote this key meanwhile."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a bucket holds under a key. ``event`` None: nothing that is an event."""

    event: Event | None
    revision: int


class Bus:
    """One connection, for as long as it lasts."""

    def __init__(self, client: Client, closed: asyncio.Event, refusals: _Refusals) -> None:
        self.client = client
        self.jetstream: JetStreamContext = client.jetstream(timeout=PATIENCE)
        self._closed = closed
        self._refusals = refusals

    @property
    def closed(self) -> bool:
        """Whether it has broken."""
        return self._closed.is_set()

    async def publish(self, event: Event | tuple[str, str], content: bytes) -> bool:
        """Put an event (or an ID and a subject) into the stream; return whether it was new there.

        Raises `FleetError`, `FleetRefused`.
        """
        event_id, topic = event if isinstance(event, tuple) else (event.id, event.topic)
        headers = {"Nats-Msg-Id": event_id, "Content-Type": "application/cloudevents+json"}
        from nats.js.errors import APIError

        try:
            answer = await self.ask(
                self.jetstream.publish(topic, content, stream=STREAM, headers=headers)
            )
        except APIError as error:
            raise _refusal_of(error) from error
        return not answer.duplicate

    async def kept(self, bucket: str, key: str) -> Kept | None:
        """Return what a bucket holds under a key; None if there is nothing. Raises `FleetError`."""
        from nats.js.errors import APIError, NotFoundError

        try:
            found = await self.ask(
                self.jetstream.get_msg(f"KV_{bucket}", subject=f"$KV.{bucket}.{key}")
            )
        except NotFoundError as error:
            if error.err_code == _NO_STREAM:
                raise not_set_up() from error
            return None
        except APIError as error:
            raise _refusal_of(error) from error
        revision = found.seq or 0
        try:
            return Kept(parse(found.data or b""), revision)
        except MalformedEvent:
            return Kept(None, revision)

    async def keep(self, bucket: str, key: str, content: bytes, revision: int | None) -> int:
        """Write a key of a bucket, if it has this revision still (0: if there is none; None:
        in any case), and return its new one. Raises `Conflict`, `FleetError`, `FleetRefused`.
        """
        from nats.js.errors import APIError

        headers = None if revision is None else {_EXPECTED: str(revision)}
        try:
            answer = await self.ask(
                self.jetstream.publish(f"$KV.{bucket}.{key}", content, headers=headers)
            )
        except APIError as error:
            if error.err_code in _WRONG_REVISION:
                raise Conflict from error
            raise _refusal_of(error) from error
        return int(answer.seq)

    async def forget(self, bucket: str, key: str) -> None:
        """Take a key out of a bucket. Raises `FleetError`, `FleetRefused`."""
        from nats.js.errors import APIError

        subject = f"$KV.{bucket}.{key}"
        try:
            await self.ask(self.jetstream.purge_stream(f"KV_{bucket}", subject=subject))
        except APIError as error:
            raise _refusal_of(error) from error

    async def ask(self, question: Awaitable[_T]) -> _T:
        """Wait for an answer, for the connection's end, or for a refusal; whichever comes first.

        Raises `FleetError`, `FleetRefused`, `FleetSilent`; `nats.js.errors.APIError` as it is.
        """
        from nats.errors import Error
        from nats.js.errors import APIError, NoStreamResponseError

        async def answered() -> _T:
            return await question

        asking = asyncio.ensure_future(answered())
        refused = asyncio.ensure_future(self._refusals.next())
        closed = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait(
                (asking, refused, closed),
                timeout=PATIENCE + 1,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if asking.done():
                return asking.result()
            if refused.done():
                raise FleetRefused(refused.result())
            if closed.done():
                raise FleetError("the connection to the fleet's servers broke")
            raise FleetSilent(f"the fleet's servers did not answer within {PATIENCE:g} s")
        except APIError:
            raise
        except NoStreamResponseError as error:
            raise not_set_up() from error
        except (TimeoutError, Error, OSError) as error:
            raise FleetSilent(
                f"the fleet's servers gave no answer ({_words(error)}); is JetStream on, and has "
                "the cluster a leader? See 'nats-server' logs there"
            ) from error
        finally:
            for each in (asking, refused, closed):
                each.cancel()
            with suppress(Exception, asyncio.CancelledError):
                await asking

    async def close(self) -> None:
        """Close it."""
        with suppress(Exception):
            await self.client.close()


class _Refusals:
    """What the servers refuse comes beside the answers (``-ERR``), and names no question."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[str]] = []
        self.last: Exception | None = None

    async def tell(self, error: Exception) -> None:
        self.last = error
        said = " ".join(str(error).split())
        if "permissions violation" not in said.lower():
            log.debug("%s", said)
            return
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(
                    f"the fleet's servers refuse these credentials: {said.removeprefix('nats: ')}; "
                    "see that they are this host's, and what its user may publish there"
                )

    async def next(self) -> str:
        waiting: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            return await waiting
        finally:
            self._waiting.remove(waiting)


async def connect(settings: FleetSettings, name: str, host: str | None = None) -> Bus:
    """Connect to one of the servers; raises `FleetError` if none of them will have us.

    A ``host`` has its answers sent to an inbox of its own, ``_INBOX_HOST``: so the servers can keep
    hosts from reading each other's. Raises `FleetRefused` if one refuses the credentials;
    `ConfigurationError`.
    """
    try:
        import nats
        from nats.errors import Error
    except ImportError as error:
        raise ConfigurationError(
            "the fleet needs nats-py; pip install 'vm-enabler[host,fleet]'"
        ) from error
    if not settings.servers:
        raise ConfigurationError(
            "no server of the fleet is named; name them with --fleet, or as servers in [fleet]"
        )
    # nats-py says by itself what we say better.
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    options = _options(settings)
    why: list[str] = []
    refused = False
    for server in random.sample(settings.servers, len(settings.servers)):
        closed, refusals = asyncio.Event(), _Refusals()

        async def on_close(closed: asyncio.Event = closed) -> None:
            closed.set()

        try:
            client = await nats.connect(
                server,
                name=name,
                allow_reconnect=False,
                # What nats-py tries by itself before it says that it can't.
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=_CONNECT_TIMEOUT,
                ping_interval=5,
                max_outstanding_pings=2,
                error_cb=refusals.tell,
                closed_cb=on_close,
                inbox_prefix="_INBOX" if host is None else f"_INBOX_{host}",
                disconnected_cb=on_close,
                **options,
            )
        except (TimeoutError, Error, OSError, ssl.SSLError, ValueError) as error:
            said = _words(refusals.last or error)
            refused = refused or "authorization" in said.lower()
            why.append(f"{server}: {said}")
        else:
            return Bus(client, closed, refusals)
    kind = FleetRefused if refused else FleetError
    raise kind(
        f"no server of the fleet will have us ({'; '.join(why)}); see that they run, and that "
        "fleet.servers, fleet.credentials and fleet.ca are right"
    )


@asynccontextmanager
async def connected(
    settings: FleetSettings, name: str, host: str | None = None
) -> AsyncIterator[Bus]:
    """Connect for as long as the block lasts. Raises as `connect` does."""
    bus = await connect(settings, name, host)
    try:
        yield bus
    finally:
        await bus.close()


def not_set_up() -> FleetError:
    """Return the error that there is no stream, or no bucket."""
    return FleetError(
        f"the fleet's servers have no stream {STREAM}, or not its buckets {VMS} and {HOSTS}; "
        "run 'enabler fleet setup' once, with the credentials of its administrator"
    )


def _refusal_of(error: Any) -> FleetError:
    return FleetError(f"the fleet's servers say: {error.description or error} ({error.err_code})")


def _options(settings: FleetSettings) -> dict[str, Any]:
    options: dict[str, Any] = {}
    secure = any(server.startswith("tls://") for server in settings.servers)
    if settings.ca or settings.certificate or secure:
        options["tls"] = _tls(settings)
    if settings.credentials is not None:
        options |= _credentials(settings.credentials)
    return options


def _tls(settings: FleetSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca)
        if settings.certificate is not None:
            context.load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"fleet.ca, fleet.certificate or fleet.key can't be used: {error}"
        ) from error
    return context


def _credentials(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"the fleet's credentials {file} can't be read: {error}"
        ) from error
    if "BEGIN NATS USER JWT" in text:
        return {"user_credentials": str(file)}
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) == 1 and lines[0].startswith("SU"):
        return {"nkeys_seed_str": lines[0]}
    raise ConfigurationError(
        f"{file} is neither a NATS credentials file (.creds) nor the seed of a user's nkey (SU…)"
    )


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()).removeprefix("nats: ") or type(error).__name__
