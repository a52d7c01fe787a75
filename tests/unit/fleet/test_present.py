"""Which host's word on a VM counts: in every order in which the words come, the same one."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterable
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from enabler.events import ArrivedBy, Carried, Stay
from enabler.fleet.event import Event, MalformedEvent, Mark, make, parse
from enabler.fleet.present import HostState, VmState, host_state, supersedes, vm_state
from enabler.history import Archive, order
from tests.unit.fleet.events import VM, A, B, C, at, of_host, told


def bucket(events: Iterable[Event]) -> Event:
    kept: Event | None = None
    for event in events:
        kept = event if supersedes(event, kept) else kept
    assert kept is not None
    return kept


MOVE = [
    told(A, "arrival", 1, 0, "a1", 0, arrived_by="start"),
    told(A, "migration-begun", 2, 60, "a1", 0),
    told(B, "arrival", 1, 70, "b1", 70),
    told(A, "migration-switched-over", 3, 70, "a1", 0),
    told(A, "departure", 4, 71, "a1", 0),
]


@given(st.permutations(MOVE), st.lists(st.sampled_from(MOVE)))
def test_a_late_event_of_the_old_host_never_overwrites_the_new_one(
    events: list[Event], again: list[Event]
) -> None:
    kept = bucket([*events, *again])
    assert (kept.host, kept.kind) == (B, "arrival")
    assert vm_state(kept, HostState.UP) is VmState.HERE


@given(st.permutations([*MOVE, told(B, "departure", 2, 90, "b1", 70)]))
def test_a_vm_that_left_is_gone_in_every_order(events: list[Event]) -> None:
    assert vm_state(bucket(events), HostState.UP) is VmState.GONE


def sign(kind: str, claims: object) -> str:
    """No signature: the chain's links alone count here."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'typ': kind})}.{part(claims)}.c2ln"


def carry(skews: list[float]) -> list[Event]:
    """A VM goes from host to host, each with a clock of its own, and its history with it; each host
    tells of the arrival and of the departure.
    """
    chain, events, hosts = Carried(), [], [A, B, C]
    for number, skew in enumerate(skews):
        host, seconds = hosts[number % 3], number * 10.0 + skew
        stay = Stay(f"s{number}", at(seconds), ArrivedBy.MIGRATION)
        archive = Archive(f"sha256:{host}", {}, sign)
        place = order(chain, stay)
        chain = archive.arrival(chain, VM, stay, at(seconds))
        assert order(chain, stay) == place, "told before it was written, and after: the same"
        marks = (2 * number, 2 * number + 1)
        events.append(told(host, "arrival", marks[0], seconds, stay.id, seconds, order=place))
        events.append(told(host, "departure", marks[1], seconds + 9, stay.id, seconds, order=place))
    return events


@given(st.lists(st.floats(-7200, 7200), min_size=1, max_size=80), st.randoms())
def test_clocks_that_are_hours_apart_decide_nothing_where_the_history_tells(
    skews: list[float], shuffled: random.Random
) -> None:
    events = carry(skews)[:-1]  # it is still on the last
    last = events[-1]
    shuffled.shuffle(events)
    assert bucket(events) is last


def test_a_chain_that_is_behind_does_not_keep_the_vm_where_it_was() -> None:
    # Reverted to a snapshot, or started from a definition that an older host kept: the chain is
    # shorter than it was, and the clock tells.
    sign_in = Archive("sha256:a", {}, sign)
    first = Stay("s0", at(0), ArrivedBy.START)
    short = sign_in.arrival(Carried(), VM, first, at(0))
    longer = short
    for number in range(1, 5):
        longer = sign_in.arrival(
            longer, VM, Stay(f"s{number}", at(number), ArrivedBy.MIGRATION), at(number)
        )
    late = Stay("again", at(100), ArrivedBy.SNAPSHOT)
    last = Stay("s4", at(4), ArrivedBy.MIGRATION)
    assert order(short, late) > order(longer, last)


def test_an_event_survives_the_wire_and_what_is_signed_is_all_of_it() -> None:
    event = MOVE[0].with_signature("e30..x")
    again = parse(event.encode())
    assert again == event
    assert again.content() == event.content()
    for other in (
        told(B, "arrival", 1, 0, "a1", 0, arrived_by="start"),
        told(A, "arrival", 2, 0, "a1", 0, arrived_by="start"),
        told(A, "arrival", 1, 1, "a1", 0, arrived_by="start"),
        told(A, "present", 1, 0, "a1", 0, arrived_by="start"),
    ):
        assert other.content() != event.content()


@given(st.binary() | st.recursive(st.none(), lambda e: st.lists(e)).map(lambda v: repr(v).encode()))
def test_what_is_no_event_is_refused(raw: bytes) -> None:
    try:
        parse(raw)
    except MalformedEvent:
        return
    raise AssertionError(raw)


def test_a_host_that_died_is_told_from_one_that_was_stopped() -> None:
    seen = of_host(A, "host-seen", 0, 0, interval=10)
    assert host_state(seen, at(29)) is HostState.UP
    assert host_state(seen, at(31)) is HostState.SILENT
    assert host_state(of_host(A, "host-stopped", 0, 0, interval=10), at(900)) is HostState.STOPPED
    assert host_state(None, datetime.now(UTC)) is HostState.UNKNOWN
    here, gone = MOVE[0], MOVE[-1]
    assert vm_state(here, HostState.SILENT) is VmState.HOST_SILENT
    assert vm_state(here, HostState.STOPPED) is VmState.HERE
    assert vm_state(gone, HostState.SILENT) is VmState.GONE
    assert vm_state(MOVE[3], HostState.UP) is VmState.MIGRATING


def test_an_order_of_times_is_one_of_marks_too() -> None:
    assert Mark("1a2152975bd", 9) < Mark("1a2152975bd", 10) < Mark("1a2152975be", 1)
    assert make(A, None, "host-started", at(0), Mark("1", 2), {}).id == f"{A}-1-2"
