"""From events to stays, hours and findings: whatever the order, the doubles and the delay."""

from __future__ import annotations

import csv
import random
from dataclasses import replace
from datetime import timedelta
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from enabler.fleet import usage
from enabler.fleet.audit import Audit
from enabler.fleet.event import Event
from enabler.fleet.keyring import Keyring, NotSigned
from enabler.fleet.timeline import Timeline
from tests.unit.fleet.events import VM, A, B, C, at, of_host, told

SMALL = {"sockets": 1, "cores_per_socket": 8, "threads_per_core": 2, "memory_bytes": 2**33}
LARGE = {"sockets": 2, "cores_per_socket": 8, "threads_per_core": 2, "memory_bytes": 2**34}
OTHER = "22222222-0000-4000-8000-000000000002"


def here(capacity: dict[str, int], serial: str) -> dict[str, object]:
    return {"machine": {"serial_number": serial}, "capacity": capacity}


JOURNEY = [
    told(A, "arrival", 1, 0, "a1", 0, arrived_by="start", **here(SMALL, "A")),
    told(A, "migration-begun", 2, 4000, "a1", 0),
    told(B, "arrival", 1, 4010, "b1", 4010, **here(LARGE, "B")),
    told(A, "migration-switched-over", 3, 4010, "a1", 0),
    told(A, "departure", 4, 4012, "a1", 0),
    told(B, "migration-begun", 2, 5000, "b1", 4010),
    told(B, "migration-aborted", 3, 5010, "b1", 4010),
    told(B, "migration-begun", 4, 6000, "b1", 4010),
    told(A, "arrival", 5, 6010, "a2", 6010, **here(SMALL, "A")),
    told(B, "migration-switched-over", 5, 6009, "b1", 4010),
    told(B, "departure", 6, 6011, "b1", 4010),
    told(A, "departure", 6, 9000, "a2", 6010),
    told(C, "present", 1, 100, "c1", 50, arrived_by="unknown", vm=OTHER, **here(SMALL, "C")),
    of_host(C, "capacity-changed", 2, 7300, capacity=LARGE),
    of_host(C, "host-started", 3, 7400),
]


@given(st.permutations(JOURNEY), st.lists(st.sampled_from(JOURNEY)), st.randoms())
def test_any_order_doubling_and_lateness_gives_the_same_stays(
    events: list[Event], again: list[Event], shuffled: random.Random
) -> None:
    events += again
    shuffled.shuffle(events)
    timeline, wanted = Timeline(events), Timeline(JOURNEY)
    assert [*timeline.vms()] == [VM, OTHER]
    for vm in (VM, OTHER):
        assert timeline.stays(vm) == wanted.stays(vm)
    until = at(10_000)
    assert [*usage.hours(timeline, at(0), until, until)] == [
        *usage.hours(wanted, at(0), until, until)
    ]


def test_the_stays_of_a_journey() -> None:
    timeline = Timeline(JOURNEY)
    assert [
        (stay.host, stay.since, stay.until, stay.until_told_by) for stay in timeline.stays(VM)
    ] == [
        (A, at(0), at(4010), "next-arrival"),
        (B, at(4010), at(6010), "next-arrival"),
        (A, at(6010), at(9000), "departure"),
    ]
    [stay] = timeline.stays(OTHER)
    assert (stay.since, stay.until) == (at(50), None)
    for seconds, host in ((-1, None), (0, A), (4009, A), (4010, B), (8999, A), (9000, None)):
        found = timeline.at(VM, at(seconds))
        assert (None if found is None else found.host) == host


def test_a_stay_whose_host_died_had_ended_when_the_vm_began_elsewhere() -> None:
    events = [JOURNEY[0], told(B, "arrival", 1, 500, "b1", 500, arrived_by="start")]
    first, second = Timeline(events).stays(VM)
    assert (first.until, first.until_told_by) == (at(500), "latest")
    assert second.until is None


def test_of_each_hour_the_largest_machine_counts() -> None:
    timeline, until = Timeline(JOURNEY), at(10_000)
    hours = [hour.as_dict() for hour in usage.hours(timeline, at(0), until, until)]
    found = {(hour["vm_uuid"], hour["hour"][11:13]): hour for hour in hours}
    assert {key: (hour["cores"], hour["machines"]) for key, hour in found.items()} == {
        (VM, "12"): (8, 1),
        (VM, "13"): (16, 2),  # from A to B and back within it
        (VM, "14"): (8, 1),
        (OTHER, "12"): (8, 1),
        (OTHER, "13"): (8, 1),
        (OTHER, "14"): (16, 1),  # the machine grew
    }
    [row, *_] = csv.DictReader(usage.as_csv(usage.hours(timeline, at(0), until, until)).split())
    assert (row["hour"], row["cores"], row["serial_number"]) == (
        "2026-11-23T12:00:00.000Z",
        "8",
        "A",
    )


def reasons(*events: Event, tolerance: float = 5) -> list[str]:
    audit = Audit(None, timedelta(seconds=tolerance))
    for event in events:
        signed = event.with_signature("e30..x")
        audit.add(signed.topic, signed)
    found = [finding.reason for finding in audit.findings()]
    return [reason for reason in found if reason != "not-in-history"]


def test_an_audit_of_what_fits_finds_nothing() -> None:
    assert reasons(*JOURNEY) == []
    assert reasons(*reversed(JOURNEY), *JOURNEY) == []


def test_what_does_not_fit_is_found() -> None:
    first, begun, arrived, switched, departed = JOURNEY[:5]
    assert reasons(first, begun, switched, arrived) == []
    assert reasons(first, switched, arrived) == ["events-missing"]
    assert reasons(first, begun, switched, departed, JOURNEY[-1]) == ["gap"]
    assert reasons(arrived) == ["unknown-before"]
    late = told(A, "departure", 2, 4100, "a1", 0)
    twice = told(B, "arrival", 1, 4010, "b1", 4010, arrived_by="start")
    assert reasons(first, late, twice) == ["overlap"]
    assert reasons(first, late, twice, tolerance=100) == []
    assert reasons(of_host(A, "events-lost", 1, 0, lost={"count": 3})) == ["events-lost"]
    audit = Audit(None, timedelta(0))
    audit.add(arrived.topic, first)
    assert [finding.reason for finding in audit.findings()][:2] == ["wrong-subject", "unsigned"]


def of_bucket(*claims: tuple[str, Event | None]) -> list[str]:
    """What an audit finds in the bucket, after the journey."""
    audit = Audit(None, timedelta(seconds=5))
    for event in (*JOURNEY, of_host(C, "host-started", 100, 100_000)):
        signed = event.with_signature("e30..x")
        audit.add(signed.topic, signed)
    before = len(audit.findings())
    for vm, claim in claims:
        audit.add_claim(vm, claim and claim.with_signature("e30..x"))
    return [finding.reason for finding in audit.findings()[: len(audit.findings()) - before]]


def test_the_bucket_is_held_against_the_stream() -> None:
    counts = max((event for event in JOURNEY if event.vm == VM), key=lambda event: event.claim)
    assert of_bucket((VM, counts)) == []
    forged = told(C, "arrival", 9, 9000, "c9", 9000, order=2**60, **here(LARGE, "C"))
    assert "bucket-not-told" in of_bucket((VM, forged))
    for real in (counts, JOURNEY[0]):
        again = replace(real, data={**real.data, "order": 2**60})
        assert of_bucket((VM, again)) == ["bucket-not-told"], "it has a real event's ID"
    assert of_bucket((VM, None)) == ["bucket-malformed"]
    assert of_bucket((OTHER, counts)) == ["bucket-malformed"]
    ancient = told(A, "arrival", 1, -(10**6), "a0", -(10**6), spool="0", arrived_by="start")
    assert "bucket-not-told" not in of_bucket((VM, ancient)), "the stream may have been cut"
    assert "bucket-outdated" in of_bucket((VM, ancient))


def test_a_host_s_sign_of_life_is_its_own() -> None:
    audit = Audit(None, timedelta(seconds=5))
    sign = of_host(A, "host-seen", 0, 0).with_signature("e30..x")
    audit.add_sign(A, sign)
    assert audit.findings() == []
    for host, told_of in ((B, sign), (A, None), (A, JOURNEY[0])):
        audit.add_sign(host, told_of)
    assert [finding.reason for finding in audit.findings()] == ["bucket-malformed"] * 3


class OneKey:
    """Stands for a keyring: what has A's signature is signed."""

    def check(self, event: Event) -> str:
        if event.signature != "e30..a":
            raise NotSigned("unknown-key", "it has a stranger's signature")
        return "a"


@given(st.permutations([True, False]))
def test_a_forged_event_with_a_real_one_s_id_is_found_and_hides_nothing(order: list[bool]) -> None:
    audit = Audit(cast(Keyring, OneKey()), timedelta(seconds=5))
    real = told(A, "arrival", 1, 0, "a1", 0, arrived_by="start", **here(SMALL, "A"))
    forged = replace(real, data={**real.data, "order": 2**60})
    for is_real in order:
        event = real.with_signature("e30..a") if is_real else forged.with_signature("e30..x")
        audit.add(event.topic, event)
    assert audit.counts["stays"] == 1
    assert [finding.reason for finding in audit.findings()] == ["unknown-key"]
    audit.add_claim(VM, forged.with_signature("e30..x"))
    assert [finding.reason for finding in audit.findings()] == ["unknown-key"] * 2


def ends_of(left: float) -> tuple[str | None, float]:
    """Who told the end of a stay on A, and when, if A saw it leave so long before it came to B."""
    first = told(A, "arrival", 1, 0, "a1", 0, arrived_by="start")
    departed = told(A, "departure", 2, 4010 - left, "a1", 0)
    stays = Timeline([first, departed, JOURNEY[2]]).stays(VM)
    assert [stay.host for stay in stays] == [A, B]
    assert stays[0].until is not None
    return stays[0].until_told_by, (stays[0].until - at(0)).total_seconds()


def test_a_vm_in_transit_is_never_nowhere() -> None:
    # By the source's word it left a moment before it arrived: paused, or by another clock.
    assert ends_of(0.03) == ("next-arrival", 4010)
    assert ends_of(-0.2) == ("next-arrival", 4010)
    # Hours before, it was somewhere that told nothing.
    assert ends_of(3000) == ("departure", 1010)
