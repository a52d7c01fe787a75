"""The packages, built once; a Debian to install them into."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.progress import Progress
from tests.lab.systemd_guest import userland
from tests.packages.building import packages
from tests.packages.chroot import Chroot


@pytest.fixture(scope="session")
def built() -> Path:
    """The folder with what `make packages` builds."""
    return packages()


@pytest.fixture
def debian(tmp_path: Path) -> Chroot:
    """A minimal Debian of one test's own."""
    return Chroot(userland(Progress()) / "root", tmp_path / "debian")
