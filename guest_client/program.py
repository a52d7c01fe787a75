"""The command as a process of its own: where ``guest-client`` starts.

What is done here is done to the whole process, so it is not for programs that import this package.
"""

from __future__ import annotations

import gc
import sys

_FIRST_COLLECTION = 50_000
"""Objects. What a start loads stays: to look it through time and again is 5 % of a scan's time."""


def main() -> int:
    """Run the command that the process's arguments name; return its exit code."""
    gc.set_threshold(_FIRST_COLLECTION, *gc.get_threshold()[1:])
    if "agent" not in sys.argv:
        # httpcore loads them, where they are, for its asynchronous half: a fifth of a scan's time.
        # The agent alone has use for it.
        sys.modules.update({"anyio": None, "trio": None})  # type: ignore[dict-item]
    from guest_client.cli import main as command

    return command()
