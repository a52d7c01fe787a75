"""Publishes a set while something else is done to its folder in the middle: see ``test_folder.py``.

Usage: ``meddled_publisher.py DIR replaced|looked-at``. Prints what the test is to see.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guest_client.folder import MANIFEST, FolderDestination

from .sets import fill


def _replaced(folder: Path) -> None:
    """While a scan looks at the set there, another replaces it and has begun to remove it."""
    fresh = folder.with_name("fresh")
    output = FolderDestination(str(fresh))
    part = output.part()
    output.publish(part, fill(part, "of another", ("other.out",)))

    def meddle() -> None:
        folder.rename(folder.with_name("removed"))
        (folder.with_name("removed") / MANIFEST).unlink()
        fresh.rename(folder)

    _at("open", lambda arguments: arguments[0] == MANIFEST, meddle)
    FolderDestination(str(folder))
    print("replaceable")


def _looked_at(folder: Path) -> None:
    """Between the two renames another scan comes to the folder, and looks for what to mend."""

    def meddle() -> None:
        FolderDestination(str(folder))
        old = [path for path in folder.parent.iterdir() if path.suffix == ".old"]
        print(len(old), folder.exists())

    output = FolderDestination(str(folder), swap=lambda one, other: False)
    part = output.part()
    manifest = fill(part, "new")
    renames = iter([False, False, True])  # over it, which fails; aside; in its place
    _at("os.rename", lambda _: next(renames, False), meddle)
    output.publish(part, manifest)


def _at(event: str, which: Callable[[Any], bool], meddle: Callable[[], None]) -> None:
    """Meddle once, when Python is about to do this."""
    done = False

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if not done and name == event and which(arguments):
            done = True
            meddle()

    sys.addaudithook(hook)


if __name__ == "__main__":
    {"replaced": _replaced, "looked-at": _looked_at}[sys.argv[2]](Path(sys.argv[1]))
