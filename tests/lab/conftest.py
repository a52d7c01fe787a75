"""One lab for the whole test session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.guest import Guest
from tests.lab.host import Host
from tests.lab.lab import Lab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a test another try if QEMU broke its guest.

    Under TCG a live migration now and then loses a write of the guest: a page that is entered into
    the processor's TLB while the migration clears its dirty bit is written to unnoticed from then
    on (seen once in some twenty migrations of a busy guest: its kernel hangs in a lock that is
    never free, or crashes). A guest that is gone says nothing of what the test is about; `settle`
    boots a new one. No other failure is tried again.
    """
    for item in items:
        if item.get_closest_marker("lab"):
            lost = ["GuestUnreachable", "GuestTimeout", "JobLost"]
            item.add_marker(pytest.mark.flaky(reruns=2, only_rerun=lost))


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Two hosts and a guest, up for all tests of the session."""
    with Lab(hosts=2, guests=1) as lab:
        yield lab


@pytest.fixture
def settled(lab: Lab) -> Lab:
    """The lab as it was at first: everything runs, the guest is on host-a."""
    lab.settle()
    return lab


@pytest.fixture
def guest(settled: Lab) -> Guest:
    """The guest, ready and on host-a."""
    return settled.guests[0]


@pytest.fixture
def a(settled: Lab) -> Host:
    """The host that the guest is on at the test's start."""
    return settled.hosts[0]


@pytest.fixture
def b(settled: Lab) -> Host:
    """The other host."""
    return settled.hosts[1]


@pytest.fixture(scope="module")
def no_lab(lab: Lab) -> Iterator[None]:
    """The session's lab is down during the module's tests, and up again after them."""
    lab.down()
    yield
    lab.up()
