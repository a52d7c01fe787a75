from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.api.conftest import enabler, hypervisor
from tests.api.running import eventually, free_port

__all__ = ["enabler", "hypervisor", "ui"]


@contextmanager
def serving(admin: Path, *arguments: str, before: tuple[str, ...] = ()) -> Iterator[str]:
    """The page of a service; its URL."""
    port = free_port()
    command = [*before, sys.executable, "-m", "enabler", "ui", "--listen", f"127.0.0.1:{port}"]
    process = subprocess.Popen([*command, "--admin-socket", str(admin), *arguments])
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None
        try:
            return httpx.get(url).status_code in (200, 503)
        except httpx.TransportError:
            return False

    try:
        eventually(answers)
        yield url
    finally:
        process.terminate()
        assert process.wait(20) == 0


@pytest.fixture
def ui(tmp_path: Path) -> Iterator[str]:
    with serving(tmp_path / "admin.sock") as url:
        yield url
