"""The fleet: the real service publishes to a real nats-server, and the commands read from there."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import libvirt
import pytest

from enabler.config import FleetSettings
from enabler.fleet import bus as buses
from enabler.fleet import store
from enabler.fleet.event import VMS, Event
from enabler.fleet.keyring import Keyring
from enabler.fleet.publisher import Host, Publisher
from enabler.keys import Keys
from tests.api.nats_server import NatsServer
from tests.api.running import DEFAULT_VM, Enabler, eventually
from tests.api.test_metrics import expressions, promtool, samples, scrape, value
from tests.unit.fleet.events import VM, A, B, component, document

Json = dict[str, Any]


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    folder = tmp_path / "nats"
    folder.mkdir()
    server = NatsServer(folder)
    with server.running():
        fleet(server, "setup")
        yield server


def fleet(server: NatsServer, *arguments: str, code: int = 0) -> Any:
    """What a command of ``enabler fleet`` prints, as JSON."""
    command = [
        sys.executable,
        "-m",
        "enabler",
        "fleet",
        *arguments,
        "--fleet",
        server.url,
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if done.stdout else done.stderr


def read(server: NatsServer, topic: str = store.topics()) -> list[Event]:
    """All that the stream has."""

    async def ask() -> list[Event]:
        async with buses.connected(FleetSettings(servers=(server.url,)), "test") as bus:
            return [event async for event in store.events(bus, topic)]

    return asyncio.run(ask())


def kept(server: NatsServer, vm: str = VM) -> Event | None:
    async def ask() -> Event | None:
        async with buses.connected(FleetSettings(servers=(server.url,)), "test") as bus:
            found = await bus.kept(VMS, vm)
            return None if found is None else found.event

    return asyncio.run(ask())


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


def restart(hypervisor: libvirt.virConnect) -> None:
    domain = hypervisor.lookupByUUIDString(DEFAULT_VM)
    domain.destroy()
    domain.create()


def serving(folder: Path, server: NatsServer) -> Enabler:
    settings = FleetSettings(servers=(server.url,), spool=folder / "spool", heartbeat_seconds=1)
    return Enabler(folder, fleet=settings)


def test_what_a_host_sees_is_told_signed_and_in_order(
    nats: NatsServer, hypervisor: libvirt.virConnect, tmp_path: Path
) -> None:
    enabler = serving(tmp_path, nats)
    with enabler.running():
        first = enabler.identity()["residency"]["id"]
        restart(hypervisor)
        # The first stay's beginning and end, and the second's beginning.
        eventually(lambda: kinds(read(nats)).count("recorded") == 3)
        second = enabler.identity()["residency"]["id"]
        here = fleet(nats, "where", "test")
        hosts = fleet(nats, "hosts")["hosts"]
    events = read(nats)
    assert [kind for kind in kinds(events) if kind != "recorded"] == [
        "host-started",
        "present",
        "departure",
        "arrival",
        "host-stopped",
    ]
    assert [event.mark.number for event in events] == list(range(1, len(events) + 1))
    assert here["state"] == "here"
    assert here["residency"]["id"] == second
    assert here["host"]["machine"]["serial_number"] == "SN-0001"
    assert [host["state"] for host in hosts] == ["up"]
    assert fleet(nats, "hosts")["hosts"][0]["state"] == "stopped"

    stays = fleet(nats, "history", DEFAULT_VM)["stays"]
    assert [stay["residency_id"] for stay in stays] == [first, second]
    assert stays[0]["until_told_by"] == "departure"
    between = stays[0]["from"]
    assert fleet(nats, "where", "test", "--at", between)["stay"]["residency_id"] == first
    long_ago = "2020-01-01"
    assert fleet(nats, "where", "test", "--at", long_ago, code=1)["stay"] is None

    keyring = Keyring(Keys(tmp_path / "keys").public())
    for event in events:
        keyring.check(event)


def test_what_happens_while_the_servers_are_away_waits_and_comes_in_order(
    nats: NatsServer, hypervisor: libvirt.virConnect, tmp_path: Path
) -> None:
    enabler = serving(tmp_path, nats)
    with enabler.running():
        eventually(lambda: "recorded" in kinds(read(nats)))
        nats.stop()
        for _ in range(3):
            before = enabler.identity()["residency"]["id"]
            restart(hypervisor)
            eventually(lambda before=before: enabler.identity()["residency"]["id"] != before)
        nats.start()
        last = enabler.identity()["residency"]["id"]
        eventually(lambda: (event := kept(nats, DEFAULT_VM)) and event.residency == last)
        events = read(nats)
    assert kinds(events).count("arrival") == 3
    assert [event.mark.number for event in events] == list(range(1, len(events) + 1))


def test_a_vm_that_left_while_the_enabler_was_down_is_told_to_have_left(
    nats: NatsServer, hypervisor: libvirt.virConnect, tmp_path: Path
) -> None:
    enabler = serving(tmp_path, nats)
    with enabler.running():
        eventually(lambda: kept(nats, DEFAULT_VM))
    hypervisor.lookupByUUIDString(DEFAULT_VM).destroy()
    with enabler.running():
        eventually(lambda: (event := kept(nats, DEFAULT_VM)) and event.kind == "departure")
    assert fleet(nats, "where", DEFAULT_VM, code=1)["state"] == "gone"
    [stay] = fleet(nats, "history", DEFAULT_VM)["stays"]
    assert stay["until_told_by"] == "latest", "nobody saw when"
    assert fleet(nats, "vms")["vms"] == []
    assert len(fleet(nats, "vms", "--gone")["vms"]) == 1


@contextmanager
def publishing(folder: Path, server: NatsServer, host: str, **more: Any) -> Iterator[Publisher]:
    """A host without a hypervisor."""
    settings = FleetSettings(servers=(server.url,), spool=folder / host, **more)
    machine = {"manufacturer": "Acme", "serial_number": host[-1], "type": None, "model": "M"}
    capacity = {"sockets": 2, "cores_per_socket": 8, "threads_per_core": 2, "memory_bytes": 2**30}
    word = Host(host, f"host-{host[-1]}", component(host), machine, capacity, "0")
    publisher = Publisher(settings, word, Keys(folder / f"keys-{host}"))
    publisher.start()
    try:
        yield publisher
    finally:
        publisher.stop()


def test_the_old_hosts_late_words_change_nothing(nats: NatsServer, tmp_path: Path) -> None:
    with publishing(tmp_path, nats, A) as a, publishing(tmp_path, nats, B) as b:
        a.tell(*document("arrival", 0, "a1", 0))
        eventually(lambda: kept(nats))
        b.tell(*document("arrival", 20, "b1", 20))
        eventually(lambda: (event := kept(nats)) and event.host == B)
        # All that A has to say, it says late.
        a.tell(*document("migration-begun", 10, "a1", 0))
        a.tell(*document("migration-switched-over", 19, "a1", 0))
        a.tell(*document("departure", 21, "a1", 0))
        eventually(lambda: a.counters.outdated >= 1 and a.counters.waiting == 0)
        eventually(lambda: "departure" in kinds(read(nats)))
        where = fleet(nats, "where", VM)
        assert (where["host"]["name"], where["state"]) == ("host-b", "here")
        b.tell(*document("departure", 40, "b1", 20))
        eventually(lambda: (event := kept(nats)) and not event.here)
    stays = fleet(nats, "history", VM)["stays"]
    assert [(stay["host"], stay["until_told_by"]) for stay in stays] == [
        (A, "next-arrival"),
        (B, "departure"),
    ]
    assert stays[0]["until"] == stays[1]["from"]


def test_a_host_that_died_is_told_from_a_vm_that_left(nats: NatsServer, tmp_path: Path) -> None:
    died = """
import os, sys, time, pathlib
from tests.api import test_fleet as t
from tests.unit.fleet.events import A, document
class server: url = sys.argv[2]
with t.publishing(pathlib.Path(sys.argv[1]), server, A, heartbeat_seconds=1) as host:
    host.tell(*document("arrival", 0, "a1", 0))
    while host.counters.claims < 1: time.sleep(.01)
    time.sleep(.3)
    os.kill(os.getpid(), 9)
"""
    subprocess.run(
        [sys.executable, "-c", died, tmp_path, nats.url],
        check=False,
        cwd=Path(__file__).parents[2],
    )
    eventually(lambda: fleet(nats, "where", VM)["state"] == "host-silent")
    with publishing(tmp_path, nats, A):
        eventually(lambda: fleet(nats, "where", VM)["state"] == "here")


def test_who_watches_is_told_at_once(nats: NatsServer, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "enabler", "fleet", "watch", "--fleet", nats.url, "--json"]
    watch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert watch.stdout is not None
    lines: list[Json] = []
    stdout = watch.stdout
    reader = threading.Thread(target=lambda: lines.extend(json.loads(line) for line in stdout))
    reader.start()
    with publishing(tmp_path, nats, A) as a:
        seconds = 0

        def told() -> bool:
            nonlocal seconds  # until the watch stands, nothing that is told is its business
            seconds += 1
            a.tell(*document("vm-changed", seconds, "a1", 0))
            return bool(lines)

        eventually(told)
    watch.terminate()
    watch.wait()
    reader.join()
    assert lines[0]["vm"] == VM
    assert lines[0]["host"] == A


def allow_rollups(server: NatsServer) -> None:
    """As whoever makes a bucket with NATS' own command line has it."""

    async def change() -> None:
        async with buses.connected(FleetSettings(servers=(server.url,)), "test") as bus:
            found = await bus.jetstream.stream_info(f"KV_{VMS}")
            await bus.jetstream.update_stream(found.config.evolve(allow_rollup_hdrs=True))

    asyncio.run(change())


def test_what_is_missing_or_wrong_is_told_with_a_remedy(tmp_path: Path) -> None:
    folder = tmp_path / "nats"
    folder.mkdir()
    server = NatsServer(folder)
    said = fleet(server, "vms", code=69)
    assert "no server of the fleet will have us" in said
    with server.running():
        said = fleet(server, "vms", code=69)
        assert "run 'enabler fleet setup'" in said
        steps = fleet(server, "setup", "--dry-run")["steps"]
        assert {step["action"] for step in steps} == {"create"}
        fleet(server, "setup")
        steps = fleet(server, "setup", "--days", "30")["steps"]
        assert [step["action"] for step in steps] == ["update", "keep", "keep"]
        allow_rollups(server)
        [step] = [
            each for each in fleet(server, "setup", "--days", "30")["steps"] if each["changes"]
        ]
        assert step["changes"] == ["allow_rollup_hdrs: True -> False"]
        steps = fleet(server, "setup", "--days", "30")["steps"]
        assert [step["action"] for step in steps] == ["keep"] * 3
        assert "no host has told of a VM 'db99'" in fleet(server, "where", "db99", code=1)


def test_the_servers_refuse_what_is_another_hosts(tmp_path: Path) -> None:
    folder = tmp_path / "nats"
    folder.mkdir()
    allowed = f'"enabler.{B}.>", "$KV.enabler-vms.>", "$KV.enabler-hosts.{B}", "$JS.API.>"'
    server = NatsServer(
        folder,
        f"""authorization {{ users = [
            {{ user: admin, password: a }}
            {{ user: b, password: b, permissions: {{ publish: {{ allow: [{allowed}] }} }} }}
        ] }}""",
    )
    with server.running():
        url, server.url = server.url, server.url.replace("//", "//admin:a@")
        admin = server.url
        fleet(server, "setup")
        server.url = url.replace("//", "//b:b@")
        with publishing(tmp_path, server, A) as wrong, publishing(tmp_path, server, B) as right:
            wrong.tell(*document("arrival", 0, "a1", 0))
            right.tell(*document("arrival", 0, "b1", 0, vm=B))
            eventually(lambda: right.counters.published >= 2)
            eventually(lambda: wrong.counters.refused >= 1)
            assert wrong.counters.published == 0
            assert wrong.counters.waiting >= 2, "nothing is given up"
        server.url = admin
        assert {event.host for event in read(server)} == {B}
        with publishing(tmp_path, server, A) as mended:
            eventually(lambda: mended.counters.published >= 3)
            eventually(lambda: "arrival" in kinds(read(server, store.topics(A))))


def test_nothing_of_the_fleet_is_loaded_without_it() -> None:
    code = "import sys, enabler.cli, enabler.service; print([*sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'enabler.service'" in done.stdout
    assert "'enabler.fleet'" not in done.stdout
    assert "'nats'" not in done.stdout


def test_what_the_hosts_told_is_billed_and_audited(
    nats: NatsServer, hypervisor: libvirt.virConnect, tmp_path: Path
) -> None:
    enabler = serving(tmp_path, nats)
    with enabler.running():
        restart(hypervisor)
        eventually(lambda: kinds(read(nats)).count("recorded") == 3)
        exported = enabler.get(f"/v1/vms/{DEFAULT_VM}/history").json()
        [hour, *_] = fleet(nats, "capacity", "--from", "2026-01-01")["hours"]
        assert hour["vm_uuid"] == DEFAULT_VM
        assert (
            hour["cores"]
            == enabler.identity()["capacity"]["sockets"]
            * (enabler.identity()["capacity"]["cores_per_socket"])
        )
    keys = tmp_path / "host.jwks"
    keys.write_text(json.dumps({"keys": Keys(tmp_path / "keys").public()}))
    found = fleet(nats, "audit", "--jwks", str(keys))
    assert found["findings"] == []
    assert (found["stays"], found["history_entries"]) == (2, 3)

    # What the VM gave out: as it is, without its end, and what is none.
    given_out = tmp_path / "history.json"
    given_out.write_text(json.dumps(exported))
    against = ("audit", "--jwks", str(keys), "--history", str(given_out))
    found = fleet(nats, *against)
    assert (found["findings"], found["exported_histories"]) == ([], 1)
    given_out.write_text(json.dumps(exported | {"entries": exported["entries"][:-1]}))
    [cut] = fleet(nats, *against, code=1)["findings"]
    assert (cut["reason"], cut["vm"]) == ("end-cut-off", DEFAULT_VM)
    assert "leave --vm out" in fleet(nats, *against, "--vm", VM, code=78)
    given_out.write_text("{}")
    assert "guest-client history --json" in fleet(nats, *against, code=78)
    given_out.unlink()
    assert "can't be read" in fleet(nats, *against, code=78)

    # Somebody with the right to publish tells a stay that nobody can have signed.
    with publishing(tmp_path, nats, A) as a:
        a.tell(*document("arrival", 0, "a1", 0))
        eventually(lambda: a.counters.published >= 2)
    found = fleet(nats, "audit", "--jwks", str(keys), code=1)
    assert {finding["reason"] for finding in found["findings"]} == {"unknown-key"}
    assert found["stays"] == 2, "what nobody stands for counts for nothing"
    billed = ("capacity", "--from", "2026-01-01")
    assert {hour["vm_uuid"] for hour in fleet(nats, *billed)["hours"]} == {DEFAULT_VM, VM}
    signed = fleet(nats, *billed, "--jwks", str(keys))["hours"]
    assert {hour["vm_uuid"] for hour in signed} == {DEFAULT_VM}


def test_every_metric_of_the_fleet_is_there_with_it(
    nats: NatsServer, hypervisor: libvirt.virConnect, tmp_path: Path
) -> None:
    enabler = serving(tmp_path, nats)
    with enabler.running():
        eventually(
            lambda: value(samples(scrape(enabler)), "enabler_fleet_claims_total", outcome="written")
        )
        eventually(lambda: value(samples(scrape(enabler)), "enabler_fleet_spool_events") == 0)
        text = scrape(enabler)
        found = samples(text)
        asked = set(re.findall(r"\benabler_fleet_[a-z_]+", " ".join(expressions())))
        assert asked <= {name for name, _ in found}
        assert promtool("check", "metrics", given=text) == ""
        assert value(found, "enabler_fleet_connected") == 1
        assert value(found, "enabler_fleet_lag_seconds") == 0
        assert value(found, "enabler_fleet_events_total", outcome="published") >= 2
        assert value(found, "enabler_fleet_spool_limit_bytes") == 64 << 20
        nats.stop()
        restart(hypervisor)
        eventually(lambda: value(samples(scrape(enabler)), "enabler_fleet_spool_events") > 0)
        eventually(lambda: value(samples(scrape(enabler)), "enabler_fleet_lag_seconds") > 0)
        eventually(lambda: value(samples(scrape(enabler)), "enabler_fleet_connected") == 0)
