"""The inventory: when an answer is given at once, when libvirt is asked first, when there is none.

The hypervisor here is a script at the inventory's own seam (`Source`): the test says what libvirt
answers and when, which no real one lets it do.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from enabler import domains
from enabler.documents import CapacityDocument, MachineDocument
from enabler.domains import Record
from enabler.errors import HypervisorError, VmArriving, VmLeaving, VmNotFound
from enabler.events import (
    ArrivedBy,
    Changed,
    Job,
    Kind,
    Lifecycle,
    Presence,
    Seen,
    Unseen,
    VmFacts,
)
from enabler.history import NAMESPACE, Archive
from enabler.inventory import MAX_AGE, Inventory
from enabler.runs import Run, StatusFile

UUID = "11111111-0000-4000-8000-000000000001"
MAC = "52:54:00:00:00:01"
T0 = datetime(2026, 11, 23, tzinfo=UTC)
FACTS = VmFacts(UUID, "db01", None, 2, 2**30, frozenset({MAC}))
MACHINE = MachineDocument(manufacturer="A", type=None, model=None, serial_number="S", uuid=None)
CAPACITY = CapacityDocument(
    cpu_model=None, sockets=1, cores_per_socket=1, threads_per_core=1, memory_bytes=2**30
)


def unsigned(kind: str, claims: Mapping[str, Any]) -> str:
    """A token as to its form."""
    part = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"{kind}.{part}.none"


class Libvirt:
    """What libvirt would say, at once, unless it is ``hung``."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.hung = False
        self.domains: dict[str, Seen] = {}
        self.asked: list[str] = []
        self.records: list[Record] = []
        self.run: Run | None = None
        self.status: StatusFile | None = None
        archive = Archive("sha256:" + "a" * 64, MACHINE.model_dump(), unsigned)
        self.inventory = Inventory(
            "sha256:" + "a" * 64, MACHINE, CAPACITY, self, self.clock, 0.05, archive
        )

    def clock(self) -> float:
        return self.now

    def here(self, **changes: object) -> None:
        seen = Seen(FACTS, Presence.HERE, Job.NONE, "run-1", ArrivedBy.START, T0, 0)
        self.domains[UUID] = replace(seen, **changes)  # type: ignore[arg-type]  # Seen's fields

    def ask(self, vm_uuid: str, news: int) -> None:
        self.asked.append(vm_uuid)
        if not self.hung:
            asyncio.get_running_loop().call_soon(self._answer, vm_uuid, news)

    def _answer(self, vm_uuid: str, news: int) -> None:
        found = self.domains.get(vm_uuid)
        if found is None:
            self.inventory.observation(Unseen(vm_uuid, T0, news))
        else:
            self.inventory.observation(replace(found, news=news), self.run, self.status)

    def confirm(self) -> None:
        if not self.hung:
            asyncio.get_running_loop().call_soon(self.inventory.confirmed, T0, self.now)

    def look(self) -> None:
        if not self.hung:
            self.inventory.listed(self.domains)
            self.confirm()

    def record(self, vm_uuid: str, record: Record) -> None:
        self.records.append(record)

    async def connect(self) -> None:
        self.inventory.connected(self.domains)
        await self.residency()

    async def residency(self) -> str:
        answer, _ = await self.inventory.identity(UUID)
        return answer.etag

    def event(self, kind: Kind) -> None:
        self.inventory.event(Lifecycle(UUID, kind, T0))


def run(scenario: Callable[[Libvirt], Awaitable[None]], libvirt: Libvirt | None = None) -> None:
    async def play() -> None:
        made = libvirt or Libvirt()
        if not made.domains:
            made.here()
        await made.connect()
        await scenario(made)

    asyncio.run(play())


def test_a_known_vm_costs_no_question() -> None:
    async def scenario(libvirt: Libvirt) -> None:
        await libvirt.residency()
        libvirt.asked.clear()
        libvirt.hung = True
        await libvirt.residency()
        assert libvirt.asked == []

    run(scenario)


def test_an_answer_is_never_older_than_what_it_tells() -> None:
    async def scenario(libvirt: Libvirt) -> None:
        later = T0 + timedelta(seconds=5)
        libvirt.here(run="run-2", at=later)
        libvirt.inventory.event(Changed(UUID))
        _, observed_at = await libvirt.inventory.identity(UUID)
        assert observed_at == later

    run(scenario)


def test_an_old_confirmation_is_renewed_before_the_answer() -> None:
    async def scenario(libvirt: Libvirt) -> None:
        libvirt.now += MAX_AGE + 1
        await libvirt.residency()
        await libvirt.inventory.ready()

    run(scenario)


def test_a_hung_libvirt_is_no_answer() -> None:
    async def scenario(libvirt: Libvirt) -> None:
        libvirt.now += MAX_AGE + 1
        libvirt.hung = True
        with pytest.raises(HypervisorError, match="hung"):
            await libvirt.residency()
        with pytest.raises(HypervisorError):
            await libvirt.inventory.ready()

    run(scenario)


def test_a_broken_connection_is_no_answer_until_every_vm_is_seen_again() -> None:
    async def scenario(libvirt: Libvirt) -> None:
        before = await libvirt.residency()
        libvirt.inventory.disconnected(HypervisorError("broken"))
        with pytest.raises(HypervisorError, match="broken"):
            await libvirt.residency()
        libvirt.inventory.connected(libvirt.domains)
        assert await libvirt.residency() == before

    run(scenario)


def test_a_vm_that_came_back_while_we_were_deaf_is_another_stay() -> None:
    async def scenario(libvirt: Libvirt) -> None:
        before = await libvirt.residency()
        libvirt.inventory.disconnected(HypervisorError("broken"))
        libvirt.here(run="run-2")
        libvirt.inventory.connected(libvirt.domains)
        assert await libvirt.residency() != before

    run(scenario)


def test_a_dead_process_is_asked_about_before_any_event_comes() -> None:
    async def scenario(libvirt: Libvirt) -> None:
        process = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE)
        libvirt.run = Run("run-1", None, os.pidfd_open(process.pid))
        libvirt.inventory.event(Changed(UUID))
        before = await libvirt.residency()
        process.terminate()
        await process.wait()
        libvirt.here(run="run-2")
        libvirt.run = None
        assert await libvirt.residency() != before

    run(scenario)


def test_a_changed_status_file_is_asked_about_before_the_answer(tmp_path: Path) -> None:
    async def scenario(libvirt: Libvirt) -> None:
        file = tmp_path / "db01.xml"
        file.write_text("1")
        libvirt.status = StatusFile(file)
        libvirt.inventory.event(Changed(UUID))
        before = await libvirt.residency()
        libvirt.here(facts=replace(FACTS, vcpus=4))
        assert await libvirt.residency() == before
        file.unlink()
        file.write_text("2")
        libvirt.status = StatusFile(file)
        assert await libvirt.residency() != before

    run(scenario)


@pytest.mark.parametrize(
    ("kind", "presence", "job", "error"),
    [
        (Kind.SUSPENDED_MIGRATED, Presence.IN_TRANSIT, Job.OUTGOING, VmLeaving),
        (Kind.STARTED_INCOMING, Presence.IN_TRANSIT, Job.INCOMING, VmArriving),
    ],
)
def test_in_transit_is_not_here(
    kind: Kind, presence: Presence, job: Job, error: type[Exception]
) -> None:
    async def scenario(libvirt: Libvirt) -> None:
        libvirt.event(Kind.STOPPED if error is VmArriving else kind)
        libvirt.here(presence=presence, job=job, run="run-2" if error is VmArriving else "run-1")
        libvirt.event(kind)
        with pytest.raises(error):
            await libvirt.residency()

    run(scenario)


def test_an_event_before_the_answer_makes_the_answer_be_asked_for_again() -> None:
    async def scenario(libvirt: Libvirt) -> None:
        libvirt.inventory.event(Changed(UUID))  # its question is on the way …
        libvirt.event(Kind.STOPPED)  # … when this comes
        del libvirt.domains[UUID]
        with pytest.raises(VmNotFound):
            await libvirt.residency()

    run(scenario)


def test_two_domains_with_one_mac_are_both_told() -> None:
    async def scenario(libvirt: Libvirt) -> None:
        other = "22222222-0000-4000-8000-000000000002"
        libvirt.domains[other] = replace(
            libvirt.domains[UUID], facts=replace(FACTS, uuid=other), run="run-9"
        )
        await libvirt.inventory.look_for_new()
        assert libvirt.inventory.vms_of_mac(MAC) == {UUID, other}

    run(scenario)


def test_strangers_make_libvirt_be_asked_once_a_second_at_most() -> None:
    async def scenario(libvirt: Libvirt) -> None:
        await libvirt.inventory.look_for_new()
        libvirt.hung = True  # a second look would hang
        await libvirt.inventory.look_for_new()

    run(scenario)


def test_a_new_stay_is_recorded_once() -> None:
    async def scenario(libvirt: Libvirt) -> None:
        await libvirt.residency()
        libvirt.inventory.event(Changed(UUID))
        await libvirt.residency()
        assert [record.namespace for record in libvirt.records] == [domains.NAMESPACE, NAMESPACE]

    run(scenario)


def test_an_arrival_is_written_into_the_history_once_and_never_while_it_is_moved() -> None:
    async def scenario(libvirt: Libvirt) -> None:
        def written() -> int:
            return sum(record.namespace == NAMESPACE for record in libvirt.records)

        await libvirt.residency()
        libvirt.inventory.event(Changed(UUID))
        await libvirt.residency()
        assert written() == 1
        for job in (Job.OUTGOING, Job.OUTGOING):
            libvirt.here(run="run-2", job=job)
            libvirt.inventory.event(Changed(UUID))
            await libvirt.residency()
        assert written() == 1
        carried, _ = await libvirt.inventory.history(UUID)
        assert len(carried.entries) == 0, "what can't be written is not told either"
        libvirt.here(run="run-2")
        libvirt.inventory.event(Changed(UUID))
        await libvirt.residency()
        assert written() == 2
        refused = libvirt.records[-1]
        libvirt.inventory.recorded(UUID, refused, HypervisorError("timed out"))
        libvirt.inventory.event(Changed(UUID))
        await libvirt.residency()
        assert written() == 3

    run(scenario)


def many(count: int) -> Libvirt:
    libvirt = Libvirt()
    libvirt.here()
    for number in range(2, count + 1):
        vm_uuid = f"11111111-0000-4000-8000-{number:012x}"
        mac = f"52:54:00:00:00:{number:02x}"
        facts = replace(FACTS, uuid=vm_uuid, macs=frozenset({mac}))
        libvirt.domains[vm_uuid] = replace(libvirt.domains[UUID], facts=facts)
    return libvirt


def test_many_vms_found_at_a_start_are_all_known_before_records_are_written() -> None:
    async def scenario(libvirt: Libvirt) -> None:
        while True:
            try:
                await libvirt.inventory.ready()
                break
            except HypervisorError:
                await asyncio.sleep(0)
        assert len(libvirt.records) < 10
        last = sorted(libvirt.domains)[-1]
        # Who asks now is told all of it now.
        carried, stay = await libvirt.inventory.history(last)
        assert stay.id in carried.stays
        while len(libvirt.records) < 2 * len(libvirt.domains):  # noqa: ASYNC110  no event tells
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert len(libvirt.records) == 2 * len(libvirt.domains)

    run(scenario, many(20))


def test_a_vm_that_hangs_at_a_start_keeps_no_other_from_its_records() -> None:
    libvirt = many(20)
    mute = sorted(libvirt.domains)[7]
    ask = libvirt.ask
    libvirt.ask = lambda vm_uuid, news: None if vm_uuid == mute else ask(vm_uuid, news)  # type: ignore[method-assign]

    async def scenario(libvirt: Libvirt) -> None:
        await asyncio.sleep(0.05)
        libvirt.inventory.confirmed(T0, libvirt.now)
        assert libvirt.records == [], "the others are looked at first"
        libvirt.now += 6
        libvirt.inventory.confirmed(T0, libvirt.now)
        while len(libvirt.records) < 2 * 19:  # noqa: ASYNC110  no event tells
            await asyncio.sleep(0.005)

    run(scenario, libvirt)


def test_a_vm_that_stops_before_its_records_are_written_has_its_stay_in_the_history() -> None:
    async def scenario(libvirt: Libvirt) -> None:
        await libvirt.inventory.look_for_new()
        last = sorted(libvirt.domains)[-1]
        libvirt.records.clear()
        libvirt.inventory.event(Lifecycle(last, Kind.STOPPED, T0))
        entries = libvirt.records[-1].element.count("<entry>")
        assert libvirt.records[-1].namespace == NAMESPACE
        assert entries == 2, "the arrival and the departure"

    run(scenario, many(20))


def test_a_capacity_that_changed_is_another_state() -> None:
    async def scenario(libvirt: Libvirt) -> None:
        before = await libvirt.residency()
        libvirt.inventory.set_capacity(CAPACITY.model_copy(update={"memory_bytes": 2**31}))
        assert await libvirt.residency() != before

    run(scenario)
