"""The migration storm: real migrations without a pause, while real scans run back to back.

The truth comes from libvirt's own event log (`virsh event`), not from our code, and needs no clock
of the guest's: each scanner says on the serial console when it begins and ends, and this process
notes when it reads that. A scan during which libvirt says the guest arrived somewhere was
crossed, and must not be called consistent. One that no arrival came near was not, and must be.
Between the two lie those whose identity reads, but not the scanner itself, were crossed: for these
either verdict is right, as far as the witness can tell, and they are counted apart.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.lab.errors import GuestTimeout, GuestUnreachable
from tests.lab.events import arrivals
from tests.lab.guest import Guest
from tests.lab.lab import Lab
from tests.lab.processes import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.storm]

MIGRATIONS = 50
PER_ROUND = 5
"""Migrations of one guest, then a new one is booted: under TCG it may not live long (conftest)."""

MOST_ROUNDS = 30

_SLACK = timedelta(milliseconds=150)
"""How far the witness's two clocks (virsh's lines, ours of the console) may be from the event."""

_SCANS = """\
#!/bin/sh
n=0
while [ ! -e /run/storm/stop ]; do
    n=$((n + 1))
    guest-client scan --report "/run/storm/$n.json" --output "/run/storm/$n.out" -- \\
        sh -c "echo scan $n begins >/dev/ttyS0; lshw -quiet -json; /bin/busybox usleep 2000000;
               echo scan $n ends >/dev/ttyS0"
done
echo "$n" >/run/storm/count
"""
_MARK = re.compile(rb"scan (\d+) (begins|ends)\r?\n")


class Console:
    """Notes when the guest's serial console says that a scan begins or ends."""

    def __init__(self, log: Path) -> None:
        self.marks: dict[tuple[int, str], datetime] = {}
        self._log = log
        self._offset = log.stat().st_size
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        text = b""
        with self._log.open("rb") as log:
            log.seek(self._offset)
            while not self._stop.wait(0.005):
                text += log.read()
                now = datetime.now(UTC)
                for number, what in _MARK.findall(text):
                    self.marks.setdefault((int(number), what.decode()), now)


@dataclass(frozen=True, slots=True)
class Scan:
    number: int
    outcome: str
    began: datetime
    ended: datetime
    clear_since: datetime
    """The end of the scanner before: no later than that, this scan's before-read was not made."""
    clear_until: datetime

    def crossed(self, moves: Sequence[datetime]) -> bool:
        return any(self.began + _SLACK < move < self.ended - _SLACK for move in moves)

    def untouched(self, moves: Sequence[datetime]) -> bool:
        return not any(
            self.clear_since - _SLACK <= move <= self.clear_until + _SLACK for move in moves
        )


@dataclass
class Tally:
    """What came of the rounds."""

    migrations: int = 0
    scans: int = 0
    crossed: int = 0
    untouched: int = 0
    detected: int = 0
    lost_guests: int = 0
    missed: list[Scan] = field(default_factory=list)
    false_alarms: list[Scan] = field(default_factory=list)
    unverified: list[Scan] = field(default_factory=list)

    def add(self, moves: Sequence[datetime], scans: Sequence[Scan]) -> None:
        crossed = [scan for scan in scans if scan.crossed(moves)]
        untouched = [scan for scan in scans if scan.untouched(moves)]
        self.migrations += len(moves)
        self.scans += len(scans)
        self.crossed += len(crossed)
        self.untouched += len(untouched)
        self.detected += sum(scan.outcome == "inconsistent" for scan in scans)
        self.missed += [scan for scan in crossed if scan.outcome != "inconsistent"]
        self.false_alarms += [scan for scan in untouched if scan.outcome != "consistent"]
        self.unverified += [scan for scan in scans if scan.outcome == "unverified"]

    def __str__(self) -> str:
        between = self.scans - self.crossed - self.untouched
        return (
            f"migration storm: {self.migrations} migrations, {self.scans} scans; by libvirt's log "
            f"{self.crossed} crossed, {self.untouched} untouched, {between} crossed between "
            f"scanner and read; detected {self.detected}, missed {len(self.missed)}, false alarms "
            f"{len(self.false_alarms)}, unverified {len(self.unverified)} "
            f"(guests lost to QEMU, their rounds not counted: {self.lost_guests})"
        )


def test_migration_storm(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    for _ in range(MOST_ROUNDS):
        lab.guests[0].destroy()  # settle boots a new one
        lab.settle()
        try:
            tally.add(*play_round(lab))
        except (GuestUnreachable, GuestTimeout):
            tally.lost_guests += 1
        if tally.migrations >= MIGRATIONS:
            break
    with capsys.disabled():
        print(f"\n{tally}")
    assert tally.migrations >= MIGRATIONS
    assert tally.crossed
    assert tally.missed == []
    assert tally.false_alarms == []
    assert tally.unverified == []


def play_round(lab: Lab) -> tuple[list[datetime], list[Scan]]:
    """Migrate a fresh guest some times while it scans; when it arrived, and its scans.

    Raises `GuestUnreachable` or `GuestTimeout` if the guest did not live to the end.
    """
    guest = lab.guests[0]
    guest.write_file("/run/storm/scans", _SCANS, mode=0o755)
    before = len(arrivals(lab.events(guest), guest.name))
    console = Console(guest.console_log)
    try:
        job = guest.spawn(["/run/storm/scans"])
        assert wait_until(lambda: (1, "begins") in console.marks, 60)
        for _ in range(PER_ROUND):
            lab.migrate(guest)
        guest.write_file("/run/storm/stop", "")
        assert job.wait(60).returncode == 0
        count = int(guest.read_file("/run/storm/count"))
        assert wait_until(lambda: (count, "ends") in console.marks, 10)
    finally:
        console.close()
    wait_until(lambda: len(arrivals(lab.events(guest), guest.name)) - before >= PER_ROUND, 10)
    moves = [event.time for event in arrivals(lab.events(guest), guest.name)[before:]]
    assert len(moves) == PER_ROUND
    return moves, [read_scan(guest, number, console.marks) for number in range(1, count + 1)]


def read_scan(guest: Guest, number: int, marks: dict[tuple[int, str], datetime]) -> Scan:
    report = json.loads(guest.read_file(f"/run/storm/{number}.json"))
    return Scan(
        number,
        report["verdict"]["outcome"],
        marks[number, "begins"],
        marks[number, "ends"],
        marks.get((number - 1, "ends"), marks[1, "begins"] - timedelta(seconds=60)),
        marks.get((number + 1, "begins"), datetime.now(UTC)),
    )
