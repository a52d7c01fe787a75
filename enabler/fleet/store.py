"""What the servers hold, read: the stream from its beginning, or as it grows; the buckets whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from enabler.errors import FleetError, FleetSilent
from enabler.fleet.bus import Bus, Kept, not_set_up
from enabler.fleet.event import PREFIX, STREAM, Event, MalformedEvent, parse

if TYPE_CHECKING:
    from nats.aio.msg import Msg

_BATCH = 1000
_IDLE = 60.0
"""Seconds after which the servers forget a reader that does not read."""

_TRIES = 4
"""How often a reader is asked for: a stream that chooses a leader lets the question fall."""


@dataclass(frozen=True, slots=True)
class Read:
    """One message. ``event`` None: it is none of ours, and ``flaw`` says why."""

    topic: str
    stored_at: datetime
    event: Event | None
    flaw: str | None = None


def topics(host: str | None = None, vm: str | None = None) -> str:
    """Return the subject of all events of a host, of a VM, of both, or of all."""
    return f"{PREFIX}.{host or '*'}.{vm or '*'}.*"


async def told(bus: Bus, topic: str, *, follow: bool = False) -> AsyncIterator[Read]:
    """Give what the stream holds under a subject; or, to ``follow``, what comes from now on.

    Raises `FleetError`.
    """
    async for message in _messages(bus, STREAM, topic, follow=follow):
        stored_at = message.metadata.timestamp
        try:
            yield Read(message.subject, stored_at, parse(message.data))
        except MalformedEvent as error:
            yield Read(message.subject, stored_at, None, str(error))


async def events(bus: Bus, topic: str, *, follow: bool = False) -> AsyncIterator[Event]:
    """Give the same without what is no event."""
    async for read in told(bus, topic, follow=follow):
        if read.event is not None:
            yield read.event


async def bucket(bus: Bus, name: str, keys: str = ">") -> AsyncIterator[tuple[str, Kept]]:
    """Give each key of a bucket that fits ``keys`` (NATS's wildcards), and what is under it.

    Raises `FleetError`.
    """
    prefix = f"$KV.{name}."
    async for message in _messages(bus, f"KV_{name}", f"{prefix}{keys}"):
        if "KV-Operation" in (message.headers or {}):
            continue  # it was taken out
        try:
            event = parse(message.data)
        except MalformedEvent:
            event = None
        yield message.subject.removeprefix(prefix), Kept(event, message.metadata.sequence.stream)


async def _messages(
    bus: Bus, stream: str, topic: str, *, follow: bool = False
) -> AsyncIterator[Msg]:
    from nats.errors import Error
    from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
    from nats.js.errors import APIError, NotFoundError

    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.NEW if follow else DeliverPolicy.ALL,
        ack_policy=AckPolicy.NONE,
        inactive_threshold=_IDLE,
        mem_storage=True,
        num_replicas=1,
    )
    try:
        reader = await _reader(bus, topic, stream, config)
        left = (await bus.ask(reader.consumer_info())).num_pending or 0
        expected = 1
        while left or follow:
            # More than one would be waited for, also by who has the first.
            messages = await _fetch(bus, reader, 1 if follow else _BATCH)
            if not messages and not follow:  # some may have grown too old meanwhile
                left = (await bus.ask(reader.consumer_info())).num_pending or 0
            for message in messages:
                number = message.metadata.sequence.consumer
                if number != expected:
                    raise FleetError("the servers' answer has a hole; ask again")
                expected, left = number + 1, message.metadata.num_pending
                yield message
    except NotFoundError as error:
        raise not_set_up() from error
    except APIError as error:
        raise FleetError(f"the fleet's servers say: {error.description or error}") from error
    except Error as error:
        raise FleetError(f"the fleet's servers gave no answer: {error}; ask again") from error
    with suppress(Error, APIError, FleetError):
        await reader.unsubscribe()


async def _reader(bus: Bus, topic: str, stream: str, config: Any) -> Any:
    tries = _TRIES
    while True:
        try:
            return await bus.ask(bus.jetstream.pull_subscribe(topic, stream=stream, config=config))
        except FleetSilent:
            tries -= 1
            if bus.closed or not tries:
                raise


async def _fetch(bus: Bus, reader: Any, most: int) -> list[Msg]:
    from nats.errors import TimeoutError as NatsTimeoutError

    try:
        found: list[Msg] = await reader.fetch(most, timeout=2)
    except (TimeoutError, NatsTimeoutError):
        if bus.closed:
            raise FleetError("the connection to the fleet's servers broke; ask again") from None
        return []
    return found
