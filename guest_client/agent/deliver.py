"""Carries the outbox to one destination: in order, at least once, for as long as it takes."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress

from guest_client.agent.model import Delivery, Road
from guest_client.agent.outbox import Answer, Sender
from guest_client.agent.state import State
from guest_client.agent.steps import LONGEST_RETRY_AFTER, resend_at, wait_left

Say = Callable[[str], None]


class Courier:
    """One destination's. ``wake`` is to be set when there may be something new to carry."""

    def __init__(
        self,
        state: State,
        sender: Sender,
        say: Say,
        *,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.wake = asyncio.Event()
        self._state = state
        self._sender = sender
        self._say = say
        self._clock = clock
        self._jitter = jitter

    async def carry_on(self) -> None:
        """Deliver whatever comes, for ever."""
        while True:
            self.wake.clear()
            until = await self.carry()
            left = None
            if until is not None:
                left = max(0.0, wait_left(until, self._clock(), LONGEST_RETRY_AFTER))
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.wake.wait(), left)

    async def carry(self, *, at_once: bool = False) -> float | None:
        """Deliver until nothing is left, or a try fails; gives when there is to be another.

        ``at_once`` heeds no earlier wish to wait.
        """
        url = self._sender.url
        while (delivery := self._state.post.next(url)) is not None:
            road = self._state.post.road(url)
            if road.gone:
                return None
            if not at_once and wait_left(road.not_before, self._clock(), LONGEST_RETRY_AFTER) > 0:
                return road.not_before
            answer = await self._sender.send(delivery)
            if not answer.arrived:
                return self._failed(delivery, road, answer)
            self._state.post.delivered(delivery)
            if road.failures:
                self._say(f"{url} takes events again")
        return None

    def _failed(self, delivery: Delivery, road: Road, answer: Answer) -> float | None:
        failures = road.failures + 1
        until = resend_at(failures, answer.retry_after, self._clock(), self._jitter())
        self._state.post.failed(
            delivery, Road(road.url, road.waiting, failures, until, answer.gone, answer.problem)
        )
        if answer.gone:
            self._say(
                f"{road.url} wants no more events (410); what waits for it is kept: take it from"
                " the configuration, or go on with `guest-client agent outbox --retry`"
            )
            return None
        if answer.problem != road.problem:  # once for each trouble, not for each try
            self._say(f"an event for {road.url} waits: {answer.problem}; it will be sent again")
        return until
