"""What the runbook of deploy/nats tells an admin to do, done to a real cluster."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enabler.errors import FleetError
from enabler.fleet.bus import connected
from enabler.fleet.store import told, topics
from tests.fleet.cluster import DEPLOY, READER, Cluster
from tests.lab.processes import wait_until

HOST = "aaaaaaaa-0000-4000-8000-00000000000a"
VM = "11111111-0000-4000-8000-000000000001"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path / "cluster", max_store="8MB")
    cluster.add("host", HOST)
    with cluster:
        asyncio.run(cluster.set_up())
        yield cluster


def publish(cluster: Cluster, *ids: str, size: int = 2) -> None:
    async def scene() -> None:
        async with connected(cluster.settings(HOST), "host", HOST) as bus:
            for each in ids:
                await bus.publish((each, f"enabler.{HOST}.{VM}.arrival"), b" " * size)

    asyncio.run(scene())


def taken(cluster: Cluster, event_id: str) -> bool:
    """Whether the servers take an event now."""
    try:
        publish(cluster, event_id)
    except FleetError:
        return False
    return True


def count(cluster: Cluster) -> int:
    async def scene() -> int:
        async with connected(cluster.settings(READER), "reader") as bus:
            return len([each async for each in told(bus, topics())])

    return asyncio.run(scene())


def replicas(cluster: Cluster) -> list[Any]:
    """How each node's copy of the stream stands: how many messages it has."""
    found = []
    for node in cluster.nodes:
        said = node.asked("/jsz?accounts=true&streams=true") or {}
        for account in said.get("account_details", ()):
            for stream in account.get("stream_detail", ()):
                if stream["name"] == "ENABLER":
                    found.append(stream["state"]["messages"])
    return found


def test_a_node_that_lost_its_disk_gets_everything_anew(cluster: Cluster) -> None:
    publish(cluster, "1", "2")
    node = cluster.nodes[0]
    node.kill()
    shutil.rmtree(node.store)
    assert wait_until(lambda: taken(cluster, "3"), 60, 0.2)  # others may have to be elected first
    node.start()
    cluster.wait_well()
    assert wait_until(lambda: replicas(cluster) == [3, 3, 3], 30, 0.2), replicas(cluster)


def test_a_copy_of_the_stopped_nodes_is_a_backup(cluster: Cluster, tmp_path: Path) -> None:
    publish(cluster, "1", "2")
    cluster.stop()
    for node in cluster.nodes:
        shutil.copytree(node.store, tmp_path / node.name)
    cluster.start()
    publish(cluster, "3")
    assert count(cluster) == 3
    cluster.kill()
    for node in cluster.nodes:
        shutil.rmtree(node.store)
        shutil.copytree(tmp_path / node.name, node.store)
    cluster.start()
    assert count(cluster) == 2
    publish(cluster, "2", "4")
    assert count(cluster) == 3


def test_a_full_store_refuses_and_forgets_nothing(cluster: Cluster) -> None:
    kept = 0

    def fill() -> None:
        nonlocal kept
        for number in range(1000):
            publish(cluster, *(f"{number}-{each}" for each in range(20)), size=60_000)
            kept += 20

    with pytest.raises(FleetError, match="resource"):
        fill()
    assert kept > 0
    assert count(cluster) >= kept
    used = cluster.nodes[0].asked("/varz")["jetstream"]
    assert used["stats"]["storage"] > 0.9 * used["config"]["max_storage"]


def test_certificates_are_renewed_without_a_restart(cluster: Cluster) -> None:
    tls = cluster.directory / "tls"
    names = [f"{node.name},{node.address}" for node in cluster.nodes]
    before = {port: shown(cluster, port) for port in (4222, 6222)}
    subprocess.run([DEPLOY / "certificates.sh", tls, *names], check=True, capture_output=True)
    for node in cluster.nodes:
        node.reload()
    for port, old in before.items():
        assert wait_until(lambda port=port, old=old: shown(cluster, port) != old, 20, 0.1)
    publish(cluster, "1")
    cluster.nodes[2].kill()  # what comes back has the nodes' new certificates to deal with
    cluster.start()
    publish(cluster, "2")
    assert wait_until(lambda: replicas(cluster) == [2, 2, 2], 30, 0.2), replicas(cluster)


def shown(cluster: Cluster, port: int) -> bytes | None:
    """The certificate that the first node shows on a port."""
    node, tls = cluster.nodes[0], cluster.directory / "tls"
    context = ssl.create_default_context(cafile=cluster.ca)
    context.load_cert_chain(tls / f"{node.name}.pem", tls / f"{node.name}.key")
    with socket.create_connection((node.address, port), 10) as plain:
        if port == 4222:
            plain.recv(4096)  # INFO; TLS follows
        with context.wrap_socket(plain, server_hostname=node.address) as secured:
            return secured.getpeercert(binary_form=True)
