"""How many streams of events may be open: each holds a connection and a place in the feed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from enabler.errors import TooManyStreams

STREAMS = 32
"""Streams at a time: each is a program of the host's admin."""


class Streams:
    """Counts the open streams. Asked and told from one thread."""

    def __init__(self, at_most: int = STREAMS) -> None:
        self._at_most = at_most
        self._open = 0

    @property
    def open(self) -> int:
        """How many are open."""
        return self._open

    @contextmanager
    def place(self) -> Iterator[None]:
        """Take a place for one stream. Raises `TooManyStreams` if there is none left."""
        if self._open >= self._at_most:
            raise TooManyStreams(f"{self._at_most} streams of events are open; end one first")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
