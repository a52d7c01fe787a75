"""`guest-client watch` in a guest that is really migrated: each move once, none invented."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.events import arrivals
from tests.lab.guest import Guest
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.migration import migrate, start_slow
from tests.lab.processes import wait_until

pytestmark = pytest.mark.lab

PATIENCE = 60
MOVES = ("migrated", "returned")
LINES = "/run/lab/watch.jsonl"


class Watching:
    """A watch in the guest that writes to a file."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self._job = guest.spawn(["sh", "-c", f"exec guest-client watch >{LINES}"])
        self.until(lambda lines: bool(lines))

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.guest.read_file(LINES).splitlines()]

    def until(self, condition: Any) -> list[dict[str, Any]]:
        assert wait_until(lambda: condition(self.lines()), PATIENCE, 0.2), self.lines()
        return self.lines()

    def changes(self) -> list[str]:
        return [line["change"] for line in self.lines()]

    def moves(self) -> list[str]:
        return [
            line["identity"]["machine"]["serial_number"]
            for line in self.lines()
            if line["change"] in MOVES
        ]

    def kill(self) -> None:
        self._job.kill()
        self._job.wait()


@pytest.fixture
def watching(guest: Guest) -> Iterator[Watching]:
    made = Watching(guest)
    yield made
    made.kill()


def serial(host: Host) -> str:
    assert host.machine is not None
    return host.machine.serial


def counted(host: Host, kind: str) -> int:
    """The migrations that a host's metrics have counted."""
    head = f'enabler_migrations_total{{kind="{kind}"}} '
    lines = host.admin_get("/metrics").text.splitlines()
    [count] = [line.removeprefix(head) for line in lines if line.startswith(head)]
    return int(float(count))


def test_each_migration_is_told_once(
    lab: Lab, guest: Guest, a: Host, b: Host, watching: Watching
) -> None:
    kinds = [(a, "outgoing"), (a, "incoming"), (b, "outgoing"), (b, "incoming")]
    counts = [counted(*each) for each in kinds]
    before = len(arrivals(lab.events(guest), guest.name))
    for number, host in enumerate((b, a, b), 1):
        migrate(guest, host)
        watching.until(lambda _, number=number: len(watching.moves()) == number)
    assert watching.moves() == [serial(b), serial(a), serial(b)]
    assert len(arrivals(lab.events(guest), guest.name)) - before == 3
    assert "unverified" not in watching.changes()
    # The hosts have counted and logged them: A let it go twice, B once.
    grown = [2, 1, 1, 2]
    assert wait_until(
        lambda: [counted(*each) - was for each, was in zip(kinds, counts, strict=True)] == grown,
        PATIENCE,
    ), [counted(*each) for each in kinds]
    for host, said in ((a, "migrated away: residency "), (b, "migrated here: residency ")):
        assert f"VM {guest.uuid} ({guest.name}) {said}" in host.enabler.log.read_text()


def test_a_migration_that_is_aborted(guest: Guest, b: Host, watching: Watching) -> None:
    with start_slow(guest, b) as move:
        watching.until(lambda lines: lines[-1]["change"] == "migrating")
        move.abort()
    watching.until(lambda lines: lines[-1]["change"] == "aborted")
    assert watching.changes() == ["present", "migrating", "aborted"]


def test_there_and_back_while_nobody_answers(
    lab: Lab, guest: Guest, a: Host, b: Host, watching: Watching
) -> None:
    for host in (a, b):
        host.enabler.freeze()
    migrate(guest, b)
    migrate(guest, a)
    for host in (a, b):
        host.enabler.thaw()
    watching.until(lambda lines: lines[-1]["change"] == "returned")
    assert [change for change in watching.changes() if change in MOVES] == ["returned"]


def test_by_postcopy(guest: Guest, b: Host, watching: Watching) -> None:
    with start_slow(guest, b, postcopy=True) as move:
        watching.until(lambda lines: lines[-1]["change"] == "migrating")
        move.switch_to_postcopy(hold=False).finish()
    watching.until(lambda _: watching.moves() == [serial(b)])
    assert watching.changes()[:3] == ["present", "migrating", "migrated"]
