"""Artefacts on disk, each under a name and a digest of what it is made from.

An artefact is a directory `<name>-<digest>`. It is built beside its place and renamed into
it when complete, so a build that was interrupted leaves nothing that could be taken for an
artefact. A new version removes the old ones of the same name.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.errors import LabError
from tests.lab.progress import Progress

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / ".cache" / "lab"

_BUILDING = ".building"


def digest_of(*ingredients: str | bytes | Path) -> str:
    """Digest of texts, bytes and files (path and content), in this order."""
    total = hashlib.sha256()
    for part in ingredients:
        if isinstance(part, Path):
            total.update(f"file {part.name} {part.stat().st_mode & 0o777:o}\0".encode())
            data = part.read_bytes()
        else:
            data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()[:16]


def files_below(*roots: Path) -> list[Path]:
    """All source files below some directories, in a fixed order."""
    found: Iterable[Path] = (p for root in roots for p in root.rglob("*") if p.is_file())
    return sorted(p for p in found if "__pycache__" not in p.parts)


@contextmanager
def cache_lock() -> Iterator[None]:
    """One builder at a time on one cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def artefact(
    name: str, digest: str, build: Callable[[Path], None], progress: Progress, doing: str
) -> Path:
    """The directory of an artefact, built now if it isn't there. Call under `cache_lock`."""
    place = CACHE / f"{name}-{digest}"
    if place.is_dir():
        return place
    with progress.step(doing):
        scratch = CACHE / f"{name}-{digest}{_BUILDING}"
        remove_tree(scratch)
        scratch.mkdir(parents=True)
        build(scratch)
        scratch.rename(place)
    for old in CACHE.glob(f"{name}-????????????????*"):
        if old != place:
            remove_tree(old)
    return place


def remove_tree(path: Path) -> None:
    """Remove a directory, if it is there; never what is mounted somewhere beneath it.

    Raises:
        LabError: something is mounted there.
    """
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    beneath = [mount for mount in mounts if Path(mount).is_relative_to(path.resolve())]
    if beneath:
        raise LabError(f"unmount {', '.join(beneath)} first: {path} is to be removed")
    if path.exists():
        shutil.rmtree(path)
