"""Sets of whole numbers that mostly follow one another, such as those of a host's events. Pure."""

from __future__ import annotations

from bisect import bisect_right


class Numbers:
    """A set that takes memory by its holes, not by its numbers."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        """Of runs without a hole, in order; two that touch are one."""

    def add(self, number: int) -> bool:
        """Take a number in; return whether it was new."""
        firsts, lasts = self._firsts, self._lasts
        place = bisect_right(firsts, number)
        if place and number <= lasts[place - 1]:
            return False
        follows = place > 0 and lasts[place - 1] == number - 1
        precedes = place < len(firsts) and firsts[place] == number + 1
        if follows and precedes:
            lasts[place - 1] = lasts.pop(place)
            del firsts[place]
        elif follows:
            lasts[place - 1] = number
        elif precedes:
            firsts[place] = number
        else:
            firsts.insert(place, number)
            lasts.insert(place, number)
        return True

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self._firsts, number)
        return place > 0 and number <= self._lasts[place - 1]

    @property
    def missing(self) -> int:
        """How many there are not between the least and the greatest."""
        if not self._firsts:
            return 0
        return self._lasts[-1] - self._firsts[0] + 1 - len(self)

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in zip(self._firsts, self._lasts, strict=True))
