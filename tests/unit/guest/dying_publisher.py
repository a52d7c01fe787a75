"""Publishes a set and dies (SIGKILL) at the step it is told: see ``test_folder.py``.

Usage: ``dying_publisher.py DIR STEP exchange|renames``. The steps are Python's own audit events of
what the publisher does to the file system, so that no step can be forgotten. When there is no step
of that number it prints ``done``.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from guest_client.folder import FolderDestination, exchange

from .sets import fill

# What an exchange asks for: the look-up of renameat2 comes just before it.
STEPS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "open", "ctypes.dlsym"}


def _no_exchange(one: Path, other: Path) -> bool:
    return False


def main() -> None:
    name, step, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    swap = exchange if how == "exchange" else _no_exchange
    left = step

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event not in STEPS:
            return
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    sys.addaudithook(count)
    output = FolderDestination(name, swap=swap)
    part = output.part()
    output.publish(part, fill(part, "new"))
    left = -1
    print("done", flush=True)


if __name__ == "__main__":
    main()
