"""What a host does with another's credentials or subject: refused by the servers, or else seen in
the audit. A real cluster of three nodes, real publishers, `enabler fleet audit` as it is run.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from enabler import cli
from enabler.documents import EventDocument
from enabler.errors import FleetRefused
from enabler.events import Carried
from enabler.fleet.bus import connected
from enabler.fleet.event import HOSTS, TYPE, VMS, Event, Mark, make
from enabler.fleet.publisher import Host, Publisher
from enabler.keys import Keys
from tests.api.running import eventually
from tests.fleet.cluster import OPERATOR, READER, Cluster
from tests.unit.fleet.events import VM, A, B, component, document

OTHER = "22222222-0000-4000-8000-000000000002"
CAPACITY = {"sockets": 2, "cores_per_socket": 8, "threads_per_core": 2, "memory_bytes": 2**30}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path / "cluster")
    for host in (A, B):
        made.add("host", host)
    with made:
        asyncio.run(made.set_up())
        yield made


def keys(folder: Path, host: str) -> Keys:
    made = Keys(folder / f"keys-{host[-1]}")
    made.component_id = component(host)
    return made


@contextmanager
def publishing(
    cluster: Cluster, folder: Path, host: str, credentials: str, signed_by: str
) -> Iterator[Publisher]:
    """A host's publisher, with somebody's credentials and somebody's key."""
    settings = replace_spool(cluster, credentials, folder / f"spool-{host[-1]}")
    machine = {"manufacturer": "Acme", "serial_number": host[-1], "type": None, "model": "M"}
    word = Host(host, f"host-{host[-1]}", component(host), machine, CAPACITY, "0")
    publisher = Publisher(settings, word, keys(folder, signed_by))
    publisher.start()
    try:
        yield publisher
    finally:
        publisher.stop()


def replace_spool(cluster: Cluster, credentials: str, spool: Path) -> Any:
    return cluster.settings(credentials).model_copy(update={"spool": spool})


def now(kind: str, stay: str, vm: str = VM) -> tuple[EventDocument, Carried]:
    told, carried = document(kind, 0, stay, 0, arrived_by="start", vm=vm)
    at = datetime.now(UTC)
    assert told.residency is not None
    stay_now = told.residency.model_copy(update={"since": at})
    return told.model_copy(update={"at": at, "residency": stay_now}), carried


def fleet(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], user: str, *arguments: str
) -> tuple[int, Any]:
    """The exit code of a command of `enabler fleet`, and what it printed: JSON, or an error."""
    servers = [word for url in cluster.urls for word in ("--fleet", url)]
    how = ["--fleet-credentials", str(cluster.credentials(user)), "--fleet-ca", str(cluster.ca)]
    capsys.readouterr()
    code = cli.main(["fleet", *arguments, *servers, *how, "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else said.err


def audit(
    cluster: Cluster, folder: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> list[Mapping[str, Any]]:
    """What `enabler fleet audit` finds, with the public keys of both hosts."""
    files = []
    for host in (A, B):
        file = folder / f"{host[-1]}.jwks"
        public = [key | {"component_id": component(host)} for key in keys(folder, host).public()]
        file.write_text(json.dumps({"keys": public}))
        files.append(str(file))
    code, said = fleet(cluster, capsys, READER, "audit", *more, "--jwks", *files)
    found: list[Mapping[str, Any]] = said["findings"]
    assert code == (1 if found else 0)
    return found


def put(
    cluster: Cluster,
    credentials: str,
    event: Event,
    *,
    bucket: bool = False,
    topic: str | None = None,
) -> None:
    """Publish an event by hand, with somebody's credentials; perhaps where it does not belong."""

    async def scene() -> None:
        async with connected(cluster.settings(credentials), "thief", credentials) as bus:
            if not bucket:
                await bus.publish((event.id, topic or event.topic), event.encode())
                return
            kept = await bus.kept(VMS, event.vm or "")
            await bus.keep(VMS, event.vm or "", event.encode(), kept.revision if kept else 0)

    asyncio.run(scene())


def forged(host: str, number: int, signer: Keys, **data: Any) -> Event:
    """An arrival of the VM on a host, as somebody signs it."""
    at = datetime.now(UTC)
    told, _ = document("arrival", 0, f"forged-{number}", 0, arrived_by="migration")
    content = json.loads(told.line())
    stay = content["residency"] | {"since": at.isoformat().replace("+00:00", "Z")}
    event = make(
        host,
        VM,
        "arrival",
        at,
        Mark("forged", number),
        {"component_id": component(host), "vm": content["vm"], "residency": stay, "order": 1}
        | data,
    )
    return event.with_signature(signer.sign_detached(TYPE, event.content()))


def test_another_host_s_credentials_are_refused_and_the_audit_shows_it(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Host A was given B's file by mistake; its admin mends that, and starts the enabler anew."""
    with publishing(cluster, tmp_path, A, credentials=B, signed_by=A) as a:
        a.tell(*now("arrival", "a1"))
        eventually(lambda: a.counters.refused >= 2)
        assert a.counters.published == 0
        assert audit(cluster, tmp_path, capsys) == []
    with publishing(cluster, tmp_path, A, credentials=A, signed_by=A) as a:
        eventually(lambda: a.counters.published >= 3 and a.counters.waiting == 0)
    [found] = audit(cluster, tmp_path, capsys)
    assert (found["reason"], found["host"]) == ("refused", A)
    assert "refuse these credentials" in found["sentence"]
    assert "credentials" in found["advice"]
    # Looked at, and mended: what is new since then is asked for.
    assert len(audit(cluster, tmp_path, capsys, "--since", found["at"])) == 1
    assert audit(cluster, tmp_path, capsys, "--since", datetime.now(UTC).isoformat()) == []


def test_who_stole_credentials_and_not_the_key_is_found(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The servers can't tell them from B: the signature can."""
    with publishing(cluster, tmp_path, B, credentials=B, signed_by=B) as b:
        b.tell(*now("arrival", "b1", OTHER))
        eventually(lambda: b.counters.claims == 1)
    assert audit(cluster, tmp_path, capsys) == []
    with publishing(cluster, tmp_path / "thief", B, credentials=B, signed_by=A) as thief:
        thief.tell(*now("departure", "b1", OTHER))
        eventually(lambda: thief.counters.published >= 2)
    reasons = {found["reason"] for found in audit(cluster, tmp_path, capsys)}
    assert reasons == {"unknown-key"}
    put(cluster, B, forged(B, 1, keys(tmp_path, A)))
    put(cluster, B, replace(forged(B, 2, keys(tmp_path, B)), signature=None))
    found = audit(cluster, tmp_path, capsys)
    assert {"wrong-issuer", "unsigned"} <= {each["reason"] for each in found}
    assert all(each["host"] == B for each in found)


def test_a_host_that_is_taken_over_and_lies_in_the_bucket_is_found(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A VM may come to any host, so any host may write its key: with an order that always wins."""
    with publishing(cluster, tmp_path, B, credentials=B, signed_by=B) as b:
        b.tell(*now("arrival", "b1"))
        eventually(lambda: b.counters.claims == 1)
        put(cluster, A, forged(A, 1, keys(tmp_path, A), order=2**60), bucket=True)
        b.tell(*now("migration-begun", "b1"))
        eventually(lambda: b.counters.outdated + b.counters.conflicts >= 1)
    found = audit(cluster, tmp_path, capsys)
    lie = next(each for each in found if each["reason"] == "bucket-not-told")
    assert (lie["host"], lie["vm"]) == (A, VM)


def test_what_no_right_can_prevent_is_no_event(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """JetStream answers a publish to any subject that its sender names, another host's too."""

    async def scene() -> None:
        async with connected(cluster.settings(A), "host A", A) as bus:
            foreign = f"enabler.{B}.{VM}.departure"
            await bus.client.publish(f"enabler.{A}.{VM}.arrival", b"{}", reply=foreign)
            await bus.client.flush()

    asyncio.run(scene())

    def flawed() -> list[str]:
        return [each["reason"] for each in audit(cluster, tmp_path, capsys)]

    eventually(lambda: flawed() == ["not-an-event"] * 2)


def test_who_tells_in_another_s_name_on_its_own_subject_is_found(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The servers look at subjects alone: what an event says is for the audit."""
    own_place = f"enabler.{A}.{VM}.arrival"
    put(cluster, A, forged(B, 1, keys(tmp_path, A)), topic=own_place)
    as_b = [(each["reason"], each["host"]) for each in audit(cluster, tmp_path, capsys)]
    assert as_b == [("wrong-subject", B), ("wrong-issuer", B)]
    with pytest.raises(FleetRefused):
        put(cluster, A, forged(B, 2, keys(tmp_path, A)))


def test_no_message_keeps_the_audit_from_the_rest(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What one host sends must not hide what another does."""
    event = forged(A, 1, keys(tmp_path, A))
    content = json.loads(event.encode())
    no_name = json.dumps(content | {"signature": "\ud800"}).encode()
    flawed = [no_name, json.dumps(content | {"signature": 1}).encode(), b"[" * 60_000, b""]
    del content["data"]["residency"]["arrived_by"]
    flawed.append(json.dumps(content).encode())

    async def scene() -> None:
        async with connected(cluster.settings(A), "host A", A) as bus:
            for number, raw in enumerate(flawed):
                await bus.publish((f"flawed-{number}", event.topic), raw)
            await bus.keep(VMS, VM, no_name, None)
            await bus.keep(HOSTS, A, b"", None)

    asyncio.run(scene())
    put(cluster, B, replace(forged(B, 1, keys(tmp_path, B)), signature=None))
    put(cluster, B, replace(forged(B, 2, keys(tmp_path, B)), data={**event.data, "order": 2}))
    found = [each["reason"] for each in audit(cluster, tmp_path, capsys)]
    assert found[: len(flawed)] == ["not-an-event"] * len(flawed)
    assert found[len(flawed) :] == ["unsigned", "bad-signature", *["bucket-malformed"] * 2]
    for command in (("vms",), ("hosts",), ("history", VM), ("capacity", "--from", "2026-01-01")):
        assert fleet(cluster, capsys, READER, *command)[0] == 0


def states(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """How each VM of the bucket is."""
    _, said = fleet(cluster, capsys, READER, "vms", "--gone")
    return {each["vm"]["uuid"]: each["state"] for each in said["vms"]}


def test_what_is_gone_is_forgotten_by_who_may(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with publishing(cluster, tmp_path, B, credentials=B, signed_by=B) as b:
        for kind, stay, vm in (
            ("arrival", "b1", VM),
            ("arrival", "o1", OTHER),
            ("departure", "o1", OTHER),
        ):
            b.tell(*now(kind, stay, vm))
        eventually(lambda: fleet(cluster, capsys, READER, "hosts")[1]["hosts"])
        eventually(lambda: fleet(cluster, capsys, READER, "where", VM)[0] == 0)
        eventually(lambda: states(cluster, capsys) == {VM: "here", OTHER: "gone"})
        code, said = fleet(cluster, capsys, OPERATOR, "forget", VM)
        assert (code, "is on host host-b (up)" in said) == (69, True)
        code, said = fleet(cluster, capsys, OPERATOR, "forget", "--host", "host-b")
        assert (code, "stop its enabler first" in said) == (69, True)
        assert fleet(cluster, capsys, READER, "forget", OTHER)[0] == 77, "a reader changes nothing"
        for dry_run in (["--dry-run"], []):
            code, said = fleet(cluster, capsys, OPERATOR, "forget", OTHER, *dry_run)
            assert (code, said["vms"]) == (0, [OTHER])
        assert states(cluster, capsys) == {VM: "here"}
        assert fleet(cluster, capsys, OPERATOR, "forget", OTHER)[0] == 1
        _, said = fleet(cluster, capsys, READER, "history", OTHER)
        assert len(said["stays"]) == 1, "the history stays"
    code, said = fleet(cluster, capsys, OPERATOR, "forget", "--host", "host-b")
    assert (code, said["vms"], said["hosts"]) == (0, [VM], [B])
    assert fleet(cluster, capsys, READER, "hosts")[1]["hosts"] == []
    assert states(cluster, capsys) == {}
    assert audit(cluster, tmp_path, capsys) == []
