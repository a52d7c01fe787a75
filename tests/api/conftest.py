from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from tests.api.running import DEFAULT_VM, Enabler, connect


@pytest.fixture
def hypervisor() -> Iterator[libvirt.virConnect]:
    """The test driver, with its one domain running as it was at first."""
    connection = connect()
    kept = connection.lookupByUUIDString(DEFAULT_VM).XMLDesc()
    yield connection
    for domain in connection.listAllDomains():
        persistent = domain.isPersistent()
        if domain.isActive():
            domain.destroy()
        if persistent:
            domain.undefine()
    connection.defineXML(kept).create()
    connection.close()


@pytest.fixture
def enabler(hypervisor: libvirt.virConnect, tmp_path: Path) -> Iterator[Enabler]:
    running = Enabler(tmp_path)
    with running.running():
        yield running
