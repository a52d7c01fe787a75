"""What has happened since the start, counted: plain integers, which nobody reads but a scrape
(`enabler.metrics`). Of one thread, the event loop's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Seconds; the last bucket has no bound."""


class Histogram:
    """How many of some values are at most each bound, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Of each bucket alone; the last one's has no bound."""
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Tally:
    """The counts of one service."""

    def __init__(self) -> None:
        self.hot: dict[int, int] = {200: 0, 304: 0}
        """Answers of the hot path (`enabler.api.front`) by status; in no other count."""
        self.answers: Counter[tuple[str, int]] = Counter()
        """All others, by listener and status."""
        self.refusals: Counter[tuple[str, str]] = Counter()
        """Answers that are problems, by listener and the problem's name."""
        self.waits_ended: Counter[str] = Counter(
            {"changed": 0, "unchanged": 0, "refused": 0, "abandoned": 0}
        )
        self.lag = Histogram(LAG_BOUNDS)
        """Seconds from libvirt's event to its being taken in."""
