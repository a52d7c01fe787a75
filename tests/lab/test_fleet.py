"""The fleet's history against libvirt's own: guests that move at random, nodes that are killed.

Three hosts publish to a real NATS cluster of three nodes while two guests migrate back to back. In
that time the node that leads the stream is killed, and later the whole cluster is down for a
while. The truth is libvirt's event log of each host (`virsh event`), written by a program that
knows nothing of ours: at the end the fleet's history of each VM must have the same stays, in the
same order, each beginning when libvirt says so, and the stream every event of every host once.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from tests.fleet.cluster import Node
from tests.lab.events import Event, arrivals
from tests.lab.fleet import Fleet, Stay, fleet_of
from tests.lab.guest import Guest
from tests.lab.lab import Lab
from tests.lab.processes import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("no_lab")]


@dataclass(frozen=True, slots=True)
class Plan:
    """Seconds: how long the guests move; of what is done to the cluster, when it begins and ends.

    The longer one is `make fleet-storm`.
    """

    moving: float
    node_killed: float
    node_back: float
    cluster_stopped: float
    cluster_back: float


SHORT = Plan(moving=36, node_killed=4, node_back=10, cluster_stopped=15, cluster_back=25)
LONG = Plan(moving=300, node_killed=45, node_back=100, cluster_stopped=160, cluster_back=220)

_CLOCKS = timedelta(milliseconds=150)
"""How far virsh's line and the enabler's time of one event may be apart, either first."""


@pytest.fixture(scope="module")
def fleet(no_lab: None) -> Iterator[Fleet]:
    with Lab(hosts=3, guests=2) as lab, fleet_of(lab) as fleet:
        yield fleet


def test_the_history_is_libvirt_s_though_nodes_fail(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    play(fleet, SHORT, capsys)


@pytest.mark.fleetstorm
def test_five_minutes(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    play(fleet, LONG, capsys)


def test_a_host_that_was_paused_does_not_take_its_vm_back(fleet: Fleet) -> None:
    """The source's enabler stands still over the migration, and tells all of it long after."""
    guest = fleet.lab.guests[0]
    source, target = guest.host, fleet.lab.other_host(guest)
    assert wait_until(lambda: place(fleet, guest) == source.name, 30, 0.2)
    source.enabler.freeze()
    try:
        fleet.lab.migrate(guest, target)
        assert wait_until(lambda: place(fleet, guest) == target.name, 30, 0.2)
        before = len(fleet.stream())
    finally:
        source.enabler.thaw()

    def told_late() -> bool:
        return any(
            (told.host, told.vm, told.kind) == (fleet.uuid(source), guest.uuid, "departure")
            for told in fleet.stream()[before:]
        )

    assert wait_until(told_late, 30, 0.2)
    assert wait_until(lambda: nothing_waits(fleet), 30, 0.2)
    assert place(fleet, guest) == target.name
    assert compare(fleet, guest) == []


def play(fleet: Fleet, plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    guests, stop = fleet.lab.guests, threading.Event()
    began = time.monotonic()
    with ThreadPoolExecutor(len(guests)) as pool:
        moving = [pool.submit(move_about, fleet.lab, guest, stop) for guest in guests]
        try:
            wait_for(began + plan.node_killed)
            node = leader(fleet)
            node.kill()
            wait_for(began + plan.node_back)
            node.start()
            wait_for(began + plan.cluster_stopped)
            fleet.cluster.kill()
            wait_for(began + plan.cluster_back)
            fleet.cluster.start()
            wait_for(began + plan.moving)
        finally:
            stop.set()
        moves = sum(each.result() for each in moving)
    assert wait_until(lambda: nothing_waits(fleet), 90, 0.5), [
        host.enabler.tail() for host in fleet.lab.hosts
    ]
    wait_until(lambda: not any(compare(fleet, guest) for guest in guests), 20, 0.5)
    late = [seconds for guest in guests for seconds in delays(fleet, guest)]
    with capsys.disabled():
        print(
            f"\nfleet: {moves} migrations, {len(fleet.stream())} events; by libvirt's clock a stay "
            f"began {min(late):+.3f} to {max(late):+.3f} s from its event"
        )
    assert moves > len(guests)
    for guest in guests:
        assert compare(fleet, guest) == []
    check_stream(fleet)


def wait_for(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def move_about(lab: Lab, guest: Guest, stop: threading.Event) -> int:
    """Migrate a guest to one host after another; how often."""
    count = 0
    while not stop.is_set():
        here = guest.host
        target = random.choice([host for host in lab.hosts if host is not here])
        lab.migrate(guest, target, postcopy=random.random() < 0.2)
        count += 1
        stop.wait(random.random())
    return count


def leader(fleet: Fleet) -> Node:
    """The node that leads the stream: the one whose end is felt most."""
    for node in fleet.cluster.nodes:
        streams = node.asked("/jsz?accounts=true&streams=true&config=false")
        for account in (streams or {}).get("account_details", ()):
            for stream in account.get("stream_detail", ()):
                if stream["name"] == "ENABLER" and stream.get("cluster", {}).get("leader"):
                    name = stream["cluster"]["leader"]
                    return next(node for node in fleet.cluster.nodes if node.name == name)
    raise AssertionError("the stream has no leader")


def place(fleet: Fleet, guest: Guest) -> str | None:
    """`enabler fleet where`: the host's name, if the VM is there."""
    found = fleet.ask("where", guest.uuid)
    return None if found["state"] == "gone" else fleet.host(found["host"]["uuid"]).name


def nothing_waits(fleet: Fleet) -> bool:
    """Whether every host has been heard of just now, and has nothing left to send."""
    hosts = fleet.ask("hosts")["hosts"]
    return len(hosts) == len(fleet.lab.hosts) and all(
        host["state"] == "up" and host["waiting_events"] == 0 for host in hosts
    )


def moves_of(fleet: Fleet, guest: Guest) -> list[Event]:
    return arrivals(fleet.lab.events(guest), guest.name)


def compare(fleet: Fleet, guest: Guest) -> list[str]:
    """What the fleet says of a guest otherwise than libvirt does."""
    moves, stays = moves_of(fleet, guest), fleet.stays(guest.uuid)
    wanted = [fleet.lab.hosts[0].name, *(move.host for move in moves)]
    if [stay.host for stay in stays] != wanted:
        return [f"{guest.name}: stays {[stay.host for stay in stays]}, by libvirt {wanted}"]
    found = []
    ends = [move.time for move in moves[1:]] + [datetime.now(UTC)]
    for stay, move, end in zip(stays[1:], moves, ends, strict=True):
        if not move.time - _CLOCKS <= stay.since <= end:
            found.append(f"{guest.name}: {stay}, by libvirt {move}")
        if stay.arrived_by != "migration":
            found.append(f"{guest.name}: {stay} was a migration")
    for stay, following in zip(stays, [*stays[1:], None], strict=True):
        if stay.until != (following and following.since):
            found.append(f"{guest.name}: {stay} does not end where {following} begins")
    if place(fleet, guest) != wanted[-1] or guest.host.name != wanted[-1]:
        found.append(f"{guest.name}: is on {guest.host}, the fleet says {place(fleet, guest)}")
    return found


def delays(fleet: Fleet, guest: Guest) -> list[float]:
    """Seconds from libvirt's event to the stay's beginning as the fleet has it."""
    stays: list[Stay] = fleet.stays(guest.uuid)[1:]
    pairs = zip(stays, moves_of(fleet, guest), strict=False)
    return [(stay.since - move.time).total_seconds() for stay, move in pairs]


def check_stream(fleet: Fleet) -> None:
    """Nothing lost, nothing twice, in order: by the count that each host gives its events."""
    stream = fleet.stream()
    assert [told for told in stream if told.flaw] == []
    assert [told for told in stream if told.topic.split(".")[1] != told.host] == []
    twice = {event_id: n for event_id, n in Counter(told.id for told in stream).items() if n > 1}
    assert twice == {}
    numbers: dict[str, list[int]] = defaultdict(list)
    for told in stream:
        numbers[told.host].append(told.number)
    assert set(numbers) == {fleet.uuid(host) for host in fleet.lab.hosts}
    for found in numbers.values():
        assert found == list(range(found[0], found[0] + len(found)))
    # And what a host tells of a VM makes sense: it comes, and goes, and comes again.
    for host in fleet.lab.hosts:
        for guest in fleet.lab.guests:
            kinds = [
                told.kind
                for told in stream
                if (told.host, told.vm) == (fleet.uuid(host), guest.uuid)
                and told.kind in ("present", "arrival", "departure")
            ]
            assert all(kind == "departure" for kind in kinds[1::2]), kinds
            assert "departure" not in kinds[::2], kinds
