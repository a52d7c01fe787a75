"""The spool: order, what survives kill -9, what makes room, and what is known of the VMs."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from enabler.errors import SpoolError
from enabler.fleet.event import Event, Mark, parse
from enabler.fleet.spool import Lost, Spool
from tests.unit.fleet.events import VM, A, at, of_host, told

ROOM = 1 << 20


def event(mark: Mark, kind: str = "arrival", stay: str = "s1", vm: str = VM, **data: str) -> Event:
    return told(A, kind, mark.number, mark.number, stay, 0, vm=vm, spool=mark.spool, **data)


def take_out(spool: Spool) -> list[Event]:
    taken = []
    while (waiting := spool.first()) is not None:
        taken.append(parse(waiting.content))
        spool.sent(waiting)
    return taken


def test_events_come_out_in_order_once_and_are_numbered_over_restarts(tmp_path: Path) -> None:
    spool = Spool(tmp_path, ROOM)
    spool.append([event, partial(event, kind="departure")])
    waiting = spool.first()
    assert waiting is not None
    spool.close()  # sent or not, it was not said to be
    spool = Spool(tmp_path, ROOM)
    assert spool.first() == waiting
    spool.append([event])
    events = take_out(spool)
    assert [each.kind for each in events] == ["arrival", "departure", "arrival"]
    assert [each.mark for each in events] == [Mark(spool.id, number) for number in (1, 2, 3)]
    assert (spool.count, spool.size, spool.oldest) == (0, 0, None)
    spool.close()
    spool = Spool(tmp_path, ROOM)
    spool.append([event])
    assert take_out(spool)[0].mark.number == 4, "an ID is never given twice"


def test_what_is_in_it_survives_kill_9(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert writer.stdout is not None
    said = [int(writer.stdout.readline()) for _ in range(20)]
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    numbers = [each.mark.number for each in take_out(Spool(tmp_path, ROOM))]
    assert numbers[:20] == said
    assert numbers == list(range(1, len(numbers) + 1)), "no hole"


_WRITER = """
import pathlib, sys
from enabler.fleet.spool import Spool
from tests.unit.fleet.test_spool import event
spool = Spool(pathlib.Path(sys.argv[1]), 1 << 20)
while True:
    spool.append([event])
    print(spool.last, flush=True)
"""


def test_the_oldest_make_room_and_it_is_told(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 64 * 1024)
    spool.append([event])
    being_sent = spool.first()
    for _ in range(40):
        spool.append([partial(event, padding="x" * 4000)])
        assert spool.size <= 64 * 1024
    lost = spool.lost
    assert lost is not None
    assert lost.count == 41 - spool.count
    assert lost.since == at(2).timestamp(), "what is being sent is not given up"
    told_of: list[Lost] = []

    def tell(mark: Mark, lost: Lost) -> Event:
        told_of.append(lost)
        return of_host(A, "events-lost", mark.number, mark.number)

    spool.tell_lost(tell)
    spool.tell_lost(tell)
    assert told_of == [lost]
    events = take_out(spool)
    assert being_sent is not None
    assert events[0] == parse(being_sent.content)
    assert [each.mark.number for each in events[1:]] == list(range(lost.count + 2, 43))
    assert events[-1].kind == "events-lost"


def test_of_each_vm_the_last_event_is_known_until_the_bucket_has_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path, ROOM)
    spool.append([event, partial(event, kind="departure"), partial(event, vm=A)])
    assert set(spool.here()) == {A}
    assert spool.unsettled(1) is None, "a newer event of the VM waits"
    left = spool.unsettled(2)
    assert left is not None
    assert (left.vm, left.number) == (VM, 2)
    spool.append([partial(event, stay="s2")])
    spool.settle(left)
    assert set(spool.here()) == {A, VM}, "it came back meanwhile"
    while (known := spool.unsettled(spool.last)) is not None:
        spool.settle(known)
    spool.unsettle()
    assert spool.unsettled(spool.last) is not None
    take_out(spool)
    assert parse(spool.here()[VM]).residency == "s2"


def test_a_spool_is_one_enablers(tmp_path: Path) -> None:
    spool = Spool(tmp_path, ROOM)
    with pytest.raises(SpoolError, match="another enabler"):
        Spool(tmp_path, ROOM)
    spool.close()
    Spool(tmp_path, ROOM).close()


def test_one_that_is_broken_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "spool.sqlite").write_bytes(b"no database, but long enough to be one" * 50)
    spool = Spool(tmp_path, ROOM)
    spool.append([event])
    assert len(take_out(spool)) == 1
    assert any(".broken-" in file.name for file in tmp_path.iterdir())
