"""The packages as `make packages` builds them, once for a test session."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.lab.cache import REPOSITORY, artefact, cache_lock, digest_of, files_below
from tests.lab.progress import Progress

_SOURCES = ("deploy", "enabler", "guest_client", "requirements")


def packages() -> Path:
    """A directory with the .deb files and guest-client.pyz of the sources as they are now."""

    def build(place: Path) -> None:
        subprocess.run(
            [sys.executable, REPOSITORY / "deploy" / "packages" / "build.py", "--into", place],
            check=True,
            env=os.environ | {"SOURCE_DATE_EPOCH": "1764000000"},
        )

    sources = files_below(*(REPOSITORY / name for name in _SOURCES))
    names = "\n".join(str(path.relative_to(REPOSITORY)) for path in sources)
    digest = digest_of(names, REPOSITORY / "pyproject.toml", *sources)
    with cache_lock():
        return artefact("debs", digest, build, Progress(), "packages")


def deb(folder: Path, name: str) -> Path:
    """The package of that name."""
    (found,) = folder.glob(f"{name}_*.deb")
    return found
