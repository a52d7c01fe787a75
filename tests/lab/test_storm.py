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
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.lab.events import arrivals
from tests.lab.lab import Lab
from tests.lab.processes import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.storm]

MIGRATIONS = 50
_SLACK = timedelta(milliseconds=150)
"""How far the witness's two clocks (virsh's lines, ours of the console) may be from the event."""

_SCANS = """\
#!/bin/sh
n=0
while [ ! -e /run/storm/stop ]; do
    n=$((n + 1))
    guest-client scan --report "/run/storm/$n.json" --output "/run/storm/$n.out" -- \\
        sh -c "echo scan $n begins >/dev/ttyS0; lshw -quiet -json; echo scan $n ends >/dev/ttyS0"
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


def test_migration_storm(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.settle()
    guest = lab.guests[0]
    guest.run(["rm", "-rf", "/run/storm"])
    guest.write_file("/run/storm/scans", _SCANS, mode=0o755)
    before = len(arrivals(lab.events(guest), guest.name))
    console = Console(guest.console_log)
    try:
        job = guest.spawn(["/run/storm/scans"])
        assert wait_until(lambda: (1, "begins") in console.marks, 60)
        for _ in range(MIGRATIONS):
            lab.migrate(guest)
        guest.write_file("/run/storm/stop", "")
        assert job.wait(120).returncode == 0
        count = int(guest.read_file("/run/storm/count"))
        assert wait_until(lambda: (count, "ends") in console.marks, 10)
    finally:
        console.close()
    wait_until(lambda: len(arrivals(lab.events(guest), guest.name)) - before >= MIGRATIONS, 10)
    moves = [event.time for event in arrivals(lab.events(guest), guest.name)[before:]]
    scans = []
    for number in range(1, count + 1):
        report = json.loads(guest.read_file(f"/run/storm/{number}.json"))
        scans.append(
            Scan(
                number,
                report["verdict"]["outcome"],
                console.marks[number, "begins"],
                console.marks[number, "ends"],
                console.marks.get((number - 1, "ends"), console.marks[1, "begins"]),
                console.marks.get((number + 1, "begins"), datetime.now(UTC)),
            )
        )

    crossed = [scan for scan in scans if scan.crossed(moves)]
    untouched = [scan for scan in scans if scan.untouched(moves)]
    detected = [scan for scan in scans if scan.outcome == "inconsistent"]
    missed = [scan for scan in crossed if scan.outcome != "inconsistent"]
    false_alarms = [scan for scan in untouched if scan.outcome != "consistent"]
    unverified = [scan for scan in scans if scan.outcome == "unverified"]
    with capsys.disabled():
        print(
            f"\nmigration storm: {len(moves)} migrations, {len(scans)} scans; by libvirt's log "
            f"{len(crossed)} crossed, {len(untouched)} untouched, "
            f"{len(scans) - len(crossed) - len(untouched)} crossed between scanner and read; "
            f"detected {len(detected)}, missed {len(missed)}, false alarms {len(false_alarms)}, "
            f"unverified {len(unverified)}"
        )
    assert len(moves) == MIGRATIONS
    assert crossed
    assert missed == []
    assert false_alarms == []
    assert unverified == []
