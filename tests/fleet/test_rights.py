"""Who may do what on the cluster: a real one of three nodes, with the rights of deploy/nats.

What a host may do is exactly what it needs; every other wish is refused by the server, whatever the
program on the host is.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.errors import Error
from nats.js.errors import APIError, NotFoundError

from enabler.errors import FleetRefused
from enabler.fleet.bus import connected
from tests.fleet.cluster import OPERATOR, READER, Cluster, Node

A = "aaaaaaaa-0000-4000-8000-00000000000a"
B = "aaaaaaaa-0000-4000-8000-00000000000b"
VM = "11111111-0000-4000-8000-000000000001"


class Session:
    """A connection, and what was refused on it."""

    def __init__(self) -> None:
        self.client = Client()
        self.refusals: list[str] = []
        self.ended = asyncio.Event()

    async def refused(self, wish: Callable[[], Coroutine[Any, Any, object]]) -> str:
        """What the server says to a wish that it refuses."""
        before = len(self.refusals)
        asked = asyncio.create_task(wish())
        try:
            async with asyncio.timeout(10):
                while len(self.refusals) == before:
                    assert not asked.done() or asked.exception(), "granted"
                    await asyncio.sleep(0.01)
        finally:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        return self.refusals[-1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("nats") / "cluster")
    for host in (A, B):
        cluster.add("host", host)
    with cluster:
        asyncio.run(cluster.set_up())
        yield cluster


@asynccontextmanager
async def session(cluster: Cluster, user: str) -> AsyncIterator[Session]:
    made = Session()

    async def refused(error: Exception) -> None:
        made.refusals.append(str(error))

    async def ended() -> None:
        made.ended.set()

    await made.client.connect(
        cluster.urls[0],
        tls=ssl.create_default_context(cafile=cluster.ca),
        nkeys_seed_str=cluster.credentials(user).read_text().strip(),
        inbox_prefix="_INBOX" if user in (READER, OPERATOR) else f"_INBOX_{user}",
        allow_reconnect=False,
        error_cb=refused,
        closed_cb=ended,
    )
    try:
        yield made
    finally:
        await made.client.close()


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scene)


def test_a_host_can_publish_be_told_of_duplicates_and_keep_the_buckets(cluster: Cluster) -> None:
    async def scene() -> None:
        async with session(cluster, A) as host:
            jetstream = host.client.jetstream()
            event = (f"enabler.{A}.{VM}.arrival", b"{}")
            first = await jetstream.publish(*event, headers={"Nats-Msg-Id": "1"})
            again = await jetstream.publish(*event, headers={"Nats-Msg-Id": "1"})
            assert (first.seq, bool(first.duplicate)) == (again.seq, False)
            assert again.duplicate
            await jetstream.publish(f"enabler.{A}.-.host-started", b"{}")
            await jetstream.publish(f"$KV.enabler-hosts.{A}", b"{}")
            place = f"$KV.enabler-vms.{VM}"
            none = {"Nats-Expected-Last-Subject-Sequence": "0"}
            kept = await jetstream.publish(place, b"{}", headers=none)
            with pytest.raises(APIError):
                await jetstream.publish(place, b"late", headers=none)
            found = await jetstream.get_msg("KV_enabler-vms", subject=place)
            assert (found.seq, found.data) == (kept.seq, b"{}")
            assert host.refusals == []

    play(scene())


REFUSED = {
    "another-host's-event": f"enabler.{B}.{VM}.arrival",
    "another-host's-sign-of-life": f"$KV.enabler-hosts.{B}",
    "no-event's-subject": f"enabler.{A}.{VM}",
    "the-stream's-content": "$JS.API.STREAM.MSG.GET.ENABLER",
    "the-stream's-state": "$JS.API.STREAM.INFO.ENABLER",
    "a-consumer": "$JS.API.CONSUMER.CREATE.ENABLER",
    "a-consumer-of-the-bucket": "$JS.API.CONSUMER.CREATE.KV_enabler-vms",
    "to-purge": "$JS.API.STREAM.PURGE.KV_enabler-vms",
    "to-delete": "$JS.API.STREAM.DELETE.ENABLER",
    "another's-inbox": f"_INBOX_{B}.1",
    "the-system": "$SYS.REQ.SERVER.PING",
}


@pytest.mark.parametrize("wish", REFUSED)
def test_a_host_can_not_send(cluster: Cluster, wish: str) -> None:
    async def scene() -> None:
        async with session(cluster, A) as host:
            subject = REFUSED[wish]
            said = await host.refused(lambda: host.client.request(subject, b"{}", timeout=10))
            assert f'permissions violation for publish to "{subject.lower()}"' in said.lower()
        async with session(cluster, OPERATOR) as operator:
            with pytest.raises(NotFoundError):
                await operator.client.jetstream().get_msg(
                    "ENABLER", subject=f"enabler.{B}.{VM}.arrival"
                )

    play(scene())


def test_a_host_with_another_host_s_credentials_is_told_so(cluster: Cluster) -> None:
    async def scene() -> None:
        mixed_up = cluster.settings(B)
        async with connected(mixed_up, "host A", A) as bus:
            with pytest.raises(FleetRefused, match="refuse these credentials"):
                await bus.publish(("1", f"enabler.{A}.{VM}.departure"), b"{}")
            with pytest.raises(FleetRefused, match="refuse these credentials"):
                await bus.keep("enabler-hosts", A, b"{}", None)

    play(scene())


@pytest.mark.parametrize("subject", ["enabler.>", "$KV.>", f"_INBOX_{B}.>", "_INBOX.>", ">"])
def test_a_host_can_not_listen(cluster: Cluster, subject: str) -> None:
    async def scene() -> None:
        async with session(cluster, A) as host:
            said = await host.refused(lambda: host.client.subscribe(subject))
            assert "permissions violation for subscription" in said.lower()

    play(scene())


def test_who_has_no_key_of_ours_or_does_not_trust_the_nodes_is_not_connected(
    cluster: Cluster, tmp_path: Path
) -> None:
    async def connect(ca: Path, seed: str | None) -> None:
        await nats.connect(
            cluster.urls[0],
            tls=ssl.create_default_context(cafile=ca),
            nkeys_seed_str=seed,
            allow_reconnect=False,
        )

    stranger = Cluster(tmp_path / "other")
    for seed in (None, stranger.credentials(READER).read_text().strip()):
        with pytest.raises(Error, match="Authorization"):
            play(connect(cluster.ca, seed))
    with pytest.raises(ssl.SSLCertVerificationError):
        play(connect(stranger.ca, cluster.credentials(READER).read_text().strip()))


def test_no_host_can_wipe_a_bucket_or_the_stream(cluster: Cluster) -> None:
    """A roll-up is a publish: on a bucket that allows them, one would remove all VMs."""

    async def scene() -> None:
        async with session(cluster, A) as host:
            jetstream = host.client.jetstream()
            for subject in (f"$KV.enabler-vms.{VM}", f"enabler.{A}.{VM}.arrival"):
                for scope in ("all", "sub"):
                    with pytest.raises(APIError, match="rollup not permitted"):
                        await jetstream.publish(subject, b"", headers={"Nats-Rollup": scope})

    play(scene())


def test_a_reader_reads_in_every_way_and_writes_nothing(cluster: Cluster) -> None:
    async def scene() -> None:
        async with session(cluster, B) as host:
            await host.client.jetstream().publish(f"enabler.{B}.{VM}.departure", b"{}")
            await host.client.jetstream().publish(f"$KV.enabler-vms.{A}", b"{}")
        async with session(cluster, READER) as reader:
            jetstream = reader.client.jetstream()
            events = await jetstream.subscribe("enabler.>", ordered_consumer=True)
            assert (await events.next_msg(10)).subject.startswith("enabler.")
            await events.unsubscribe()
            pulled = await jetstream.pull_subscribe(f"enabler.{B}.*.*", stream="ENABLER")
            await (await pulled.fetch(1, timeout=10))[0].ack()
            await pulled.unsubscribe()
            bucket = await jetstream.key_value("enabler-vms")
            assert (await bucket.get(A)).value == b"{}"
            watcher = await bucket.watchall()
            assert (await watcher.updates(10)).value == b"{}"
            await watcher.stop()
            assert reader.refusals == []
            for subject in (
                f"enabler.{A}.{VM}.arrival",
                f"$KV.enabler-vms.{VM}",
                "$JS.API.STREAM.PURGE.ENABLER",
                "$JS.API.STREAM.UPDATE.ENABLER",
                "$JS.API.STREAM.SNAPSHOT.ENABLER",
                "$JS.API.STREAM.MSG.DELETE.ENABLER",
            ):
                said = await reader.refused(
                    lambda subject=subject: reader.client.request(subject, b"{}", timeout=10)
                )
                assert "permissions violation for publish" in said.lower()

    play(scene())


def test_an_operator_tells_nothing_of_a_vm(cluster: Cluster) -> None:
    async def scene() -> None:
        async with session(cluster, OPERATOR) as operator:
            for subject in (f"enabler.{A}.{VM}.arrival", f"$KV.enabler-vms.{VM}"):
                said = await operator.refused(
                    lambda subject=subject: operator.client.request(subject, b"{}", timeout=10)
                )
                assert "permissions violation for publish" in said.lower()

    play(scene())


def test_an_answer_that_is_sent_astray_is_no_event(cluster: Cluster) -> None:
    """What rights can't prevent: JetStream answers a publish to whatever subject its sender names,
    another host's too. What then stands there is the server's answer, which is no event.
    """

    async def scene() -> None:
        foreign = f"enabler.{B}.{VM}.vm-changed"
        async with session(cluster, A) as host, session(cluster, READER) as reader:
            events = await reader.client.jetstream().subscribe(foreign, ordered_consumer=True)
            await host.client.publish(f"enabler.{A}.{VM}.arrival", b"{}", reply=foreign)
            content = json.loads((await events.next_msg(10)).data)
            assert set(content) == {"stream", "seq"}

    play(scene())


def test_a_host_comes_and_goes_without_cutting_off_the_others(cluster: Cluster) -> None:
    async def scene() -> None:
        new = "aaaaaaaa-0000-4000-8000-00000000000c"
        async with session(cluster, A) as host:
            cluster.add("host", new)
            cluster.hand_out()
            async with asyncio.timeout(20), await admitted(new) as added:
                await added.client.jetstream().publish(f"enabler.{new}.-.host-started", b"")
                cluster.remove(new)
                cluster.hand_out()
                await added.ended.wait()
            await host.client.jetstream().publish(f"enabler.{A}.-.host-started", b"")
            assert host.client.is_connected

    async def admitted(user: str) -> AbstractAsyncContextManager[Session]:
        while True:  # until the node has read its file anew
            try:
                async with session(cluster, user):
                    return session(cluster, user)
            except Error:
                await asyncio.sleep(0.1)

    play(scene())


def test_no_node_joins_without_a_certificate_of_the_nodes_ca(
    cluster: Cluster, tmp_path: Path
) -> None:
    """A node is trusted with everything."""
    node, stranger = cluster.nodes[0], Cluster(tmp_path / "other").nodes[0]

    def greeting(of: Node | None) -> bytes:
        context = ssl.create_default_context(cafile=cluster.ca)
        if of is not None:
            tls = of.directory.parent / "tls"
            context.load_cert_chain(tls / f"{of.name}.pem", tls / f"{of.name}.key")
        try:
            with (
                socket.create_connection((node.address, 6222), 10) as plain,
                context.wrap_socket(plain, server_hostname=node.address) as secured,
            ):
                # In TLS 1.3 the server's word on our certificate comes after the handshake.
                return secured.recv(4096)
        except (ssl.SSLError, ConnectionError):
            return b""

    assert greeting(node).startswith(b"INFO ")
    assert greeting(stranger) == b""
    assert greeting(None) == b""
