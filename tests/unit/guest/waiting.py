"""Waiting for what must come true, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 60.0
"""Seconds after which a condition that should have come true has not."""


def until(condition: Callable[[], bool]) -> None:
    """Wait until it is true; fail when it never is."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.01)
