"""How soon a guest knows that it runs on another host: `guest-client watch` against polling.

In one and the same guest, over the same 30 real migrations of the lab, run a `guest-client watch`
and a program that reads the identity once a second, as one would without it. Each writes to the
serial console what it learns, and this process notes when it reads that; the truth is libvirt's own
event (`virsh event`), so all times are on one clock. The console's way is part of what is measured.
"""

from __future__ import annotations

import random
import re
import statistics
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.figures import Figure, at_most, say
from tests.lab.errors import GuestTimeout, GuestUnreachable, LabError
from tests.lab.events import arrivals
from tests.lab.guest import Guest
from tests.lab.lab import Lab
from tests.lab.processes import wait_until

MIGRATIONS = 30
PER_ROUND = 5
"""Migrations of one guest, then a new one is booted: under TCG it may not live long."""
MOST_ROUNDS = 20
LONGEST = 20.0
"""Seconds to wait for both to know."""

_PROGRAMS = {
    "watch": """\
guest-client watch |
sed -u -n 's/.*"change": "\\([a-z]*\\)".*_number": "\\([^"]*\\)".*/[watch \\1 \\2]/p' >/dev/ttyS0
""",
    "poll": """\
exec python3 - >/dev/ttyS0 <<end
import time
from guest_client.channel import Channel
known, channel, due = None, Channel(), time.monotonic()
while True:
    now = channel.read().trusted()
    if known is None or now.residency.id != known.residency.id:
        change = "present" if known is None else "migrated"
        print(f"[poll {change} {now.machine.serial_number}]", flush=True)
    known, due = now, due + 1
    time.sleep(max(0, due - time.monotonic()))
end
""",
}
_MARK = re.compile(r"\[(watch|poll) ([a-z]+) (\S+)\]")
_MOVES = ("migrated", "returned")
_OTHERS = ("migrating", "aborted", "settled", "present")


class _Console:
    """Notes when the guest says something on its serial console."""

    def __init__(self, log: Path) -> None:
        self.marks: list[tuple[datetime, str, str, str]] = []
        self._log = log
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def moves(self, who: str) -> list[tuple[datetime, str]]:
        return [
            (at, serial) for at, w, change, serial in self.marks if w == who and change in _MOVES
        ]

    def _watch(self) -> None:
        text = ""
        with self._log.open("rb") as log:
            log.seek(0, 2)
            while not self._stop.wait(0.005):
                text += log.read().decode(errors="replace")
                now = datetime.now(UTC)
                for match in _MARK.finditer(text):
                    self.marks.append((now, match[1], match[2], match[3]))
                if found := text.rfind("]") + 1:
                    text = text[found:]


def run() -> list[Figure]:
    """Measure; needs the lab (root, QEMU)."""
    late: dict[str, list[float]] = {"watch": [], "poll": []}
    wrong: list[str] = []
    lost = 0
    with Lab(hosts=2, guests=1) as lab:
        for number in range(MOST_ROUNDS):
            if number:
                lab.guests[0].destroy()
                lab.settle()
            try:
                _round(lab, lab.guests[0], late, wrong)
            except (GuestUnreachable, GuestTimeout, LabError) as error:
                lost += 1
                say(f"a guest was lost to QEMU, its round is not counted: {error}")
            if len(late["watch"]) >= MIGRATIONS:
                break
    watch, poll = late["watch"], late["poll"]
    if wrong:
        raise AssertionError(f"told wrongly: {wrong}")
    say(f"{len(watch)} migrations, none missed, none invented; {lost} guests lost to QEMU (TCG)")
    for who, found in late.items():
        say(f"{who}: " + " ".join(f"{each:.3f}" for each in sorted(found)))
    what = "from libvirt's Resumed event to a line in the guest"
    return [
        Figure("watch", f"{what}, median", statistics.median(watch), "s", aim=at_most(0.3)),
        Figure("watch", f"{what}, worst of {len(watch)}", max(watch), "s"),
        Figure("watch", "the same by polling once a second, median", statistics.median(poll), "s"),
        Figure("watch", f"the same, worst of {len(poll)}", max(poll), "s"),
    ]


def _round(lab: Lab, guest: Guest, late: dict[str, list[float]], wrong: list[str]) -> None:
    console = _Console(guest.console_log)
    before = len(arrivals(lab.events(guest), guest.name))
    try:
        for program in _PROGRAMS.values():
            guest.spawn(["sh", "-c", program])
        if not wait_until(lambda: {mark[1] for mark in console.marks} == set(late), 60):
            raise GuestTimeout("the programs do not begin")
        hosts = []
        for count in range(1, PER_ROUND + 1):
            hosts.append(lab.migrate(guest))
            if not wait_until(
                lambda count=count: all(len(console.moves(who)) >= count for who in late), LONGEST
            ):
                guest.wait_ready(5)  # a guest that QEMU broke tells nothing of what is measured
                wrong.append(f"a migration that nobody told of in {LONGEST:g} s: {console.marks}")
            time.sleep(1 + random.random())  # the poll's phase is another each time
    finally:
        console.close()
    moves = arrivals(lab.events(guest), guest.name)[before:]
    serials = [host.machine.serial for host in hosts if host.machine]
    for who, found in late.items():
        told = console.moves(who)
        if [serial for _, serial in told] != serials or len(moves) != PER_ROUND:
            wrong.append(f"{who} told {told}, libvirt {moves}")
            continue
        found += [
            (at - move.time).total_seconds() for (at, _), move in zip(told, moves, strict=True)
        ]
    wrong += [str(mark) for mark in console.marks if mark[2] not in _MOVES + _OTHERS]


if __name__ == "__main__":
    from tests.bench.figures import table

    print(table(run()))
