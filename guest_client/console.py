"""Speaking to a person: one line on the standard error for one thing."""

from __future__ import annotations

import sys
from contextlib import suppress


def say(line: str) -> None:
    """Tell a person one thing; a lost terminal is no reason to fail."""
    with suppress(OSError):
        print(f"guest-client: {line}", file=sys.stderr, flush=True)
