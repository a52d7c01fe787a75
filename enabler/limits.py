"""How much one caller may ask for: token buckets. Pure; clocks are passed in.

A *bucket* holds a number of requests (the burst) and fills at a steady rate. It is kept as one
number, the time at which it will be full again (the "generic cell rate algorithm"), so taking from
it is an addition and a comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """``per_second`` requests a second in the long run, ``burst`` of them at once. 0: no limit."""

    per_second: float
    burst: int

    @property
    def interval(self) -> float:
        """Seconds that one request costs."""
        return 1 / self.per_second if self.per_second else 0.0

    @property
    def depth(self) -> float:
        """Seconds that a full bucket holds."""
        return self.burst * self.interval


class Bucket:
    """One caller's bucket; full when it is made."""

    __slots__ = ("_depth", "_full_at", "_interval")

    def __init__(self, rate: Rate) -> None:
        self._interval = rate.interval
        self._depth = rate.depth
        self._full_at = 0.0

    def take(self, now: float, count: int = 1) -> float:
        """Take ``count`` requests and return 0; take nothing and return the seconds until there is
        enough, if there is not.
        """
        full_at = self._full_at
        full_at = (full_at if full_at > now else now) + self._interval * count
        if full_at - now > self._depth:
            return full_at - now - self._depth
        self._full_at = full_at
        return 0.0

    def drain(self, now: float, count: int) -> None:
        """Take ``count`` requests, or as many as there are."""
        full_at = max(self._full_at, now) + self._interval * count
        self._full_at = min(full_at, now + self._depth)


class Buckets:
    """The buckets of many callers, by what each is known by.

    At most ``most`` are kept, the oldest is forgotten first: who is forgotten has a full bucket
    again, so nobody can hurt another by being many.
    """

    def __init__(self, rate: Rate, most: int = 10_000) -> None:
        self._rate = rate
        self._most = most
        self._buckets: dict[str, Bucket] = {}

    def of(self, caller: str) -> Bucket:
        """Return a caller's bucket."""
        found = self._buckets.get(caller)
        if found is None:
            if len(self._buckets) >= self._most:
                del self._buckets[next(iter(self._buckets))]
            found = self._buckets[caller] = Bucket(self._rate)
        return found


class Seldom:
    """Says the same thing once in ``interval`` seconds, and then how often it was true since.

    A guest must not be able to fill the host's log.
    """

    def __init__(self, say: Callable[..., None], interval: float = 60.0) -> None:
        self._say = say
        self._interval = interval
        self._said: dict[str, float] = {}
        self._held: dict[str, int] = {}

    def __call__(self, now: float, what: str, *arguments: object) -> None:
        """Say ``what % arguments``, unless something of this kind was said a moment ago."""
        last = self._said.get(what)
        if last is not None and now - last < self._interval:
            self._held[what] = self._held.get(what, 0) + 1
            return
        self._said[what] = now
        held = self._held.pop(what, 0)
        self._say(
            what + (f" (and {held} more since this was last said)" if held else ""), *arguments
        )
