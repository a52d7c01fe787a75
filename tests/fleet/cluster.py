"""A real cluster of NATS nodes, from the very files of deploy/nats, that can be broken and mended.

Debian's nats-server runs deploy/nats/nats-server.conf as it is; what differs from node to node
(node.conf) is written here, users and certificates are made by users.py and certificates.sh. The
nodes are on an address each, so nothing shares a port; that is a loopback address of a /8 that is
wide enough for tests side by side, or one in a network namespace of the lab.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from enabler.config import FleetSettings
from enabler.fleet.bus import connected
from enabler.fleet.setup import Wanted, set_up
from tests.lab.processes import Service, wait_until

DEPLOY = Path(__file__).parents[2] / "deploy" / "nats"
OPERATOR, READER, SYSTEM = "setup", "audit", "sys"

_NODE = """\
node_name: "{name}"
node_listen: "{address}:4222"
node_cluster_listen: "{address}:6222"
node_routes: [{routes}]
node_monitoring: "{address}:8222"
node_certificate: "{tls}/{name}.pem"
node_key: "{tls}/{name}.key"
node_cluster_ca: "{tls}/ca.pem"
node_store: "{store}"
node_max_store: {max_store}
"""


class Node:
    """One node: its files, its process."""

    def __init__(
        self,
        name: str,
        address: str,
        directory: Path,
        command: Callable[..., list[str]],
    ) -> None:
        self.name = name
        self.address = address
        self.directory = directory
        self.store = directory / "store"
        self.config = directory / "nats-server.conf"
        self.service = Service(
            name,
            directory,
            lambda: command("nats-server", "-c", str(self.config)),
            lambda: self.asked("/healthz?js-enabled-only=true") is not None,
        )
        self._command = command

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @property
    def url(self) -> str:
        """Where hosts and readers connect to it."""
        return f"tls://{self.address}:4222"

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it answers."""
        self.service.start(wait=wait)

    def stop(self) -> None:
        """End it as `systemctl stop` does."""
        self.service.stop(60)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.service.kill()

    def reload(self) -> None:
        """Have it read its files anew, as `systemctl reload` does."""
        if process := self.service.process:
            process.signal(signal.SIGHUP)

    def asked(self, path: str) -> Any:
        """What its monitoring says; None if it says nothing, or that it is not well."""
        url = f"http://{self.address}:8222{path}"
        # By a program, as it may be in another network namespace.
        done = subprocess.run(
            self._command("curl", "-sf", "--max-time", "5", url), capture_output=True, check=False
        )
        return json.loads(done.stdout) if done.returncode == 0 else None


class Cluster:
    """Nodes, users and certificates; a context manager that leaves nothing behind.

    Args:
        directory: where its files go. It is emptied at the end.
        addresses: one for each node; not given: new ones on the loopback.
        command: how a program is run where the nodes are.
    """

    def __init__(
        self,
        directory: Path,
        addresses: Sequence[str] | None = None,
        *,
        command: Callable[..., list[str]] = lambda *argv: list(argv),
        max_store: str = "4GB",
    ) -> None:
        self.directory = directory
        addresses = addresses or _loopback(3)
        self.nodes = [
            Node(f"nats-{n}", address, directory / f"nats-{n}", command)
            for n, address in enumerate(addresses, 1)
        ]
        self.ca = directory / "tls" / "ca.pem"
        self._max_store = max_store
        self._seeds: dict[str, Path] = {}
        self._write()

    @property
    def urls(self) -> list[str]:
        """Where hosts and readers connect."""
        return [node.url for node in self.nodes]

    def credentials(self, name: str) -> Path:
        """The file with a user's seed."""
        return self._seeds[name]

    # -- users --------------------------------------------------------------------------

    def add(self, role: str, name: str) -> Path:
        """Let somebody in, with a new key; returns the file with its seed."""
        seed = self.directory / "keys" / f"{name}-{random.getrandbits(32):08x}.nk"
        seed.parent.mkdir(exist_ok=True)
        key = self._users("key", str(seed)).strip()
        self._users("add", role, name, key)
        self._seeds[name] = seed
        return seed

    def remove(self, name: str) -> None:
        """Let somebody in no more."""
        self._users("remove", name)

    def hand_out(self) -> None:
        """Give all nodes the users as they are now; those that run read them."""
        for node in self.nodes:
            shutil.copy2(self.directory / "users.conf", node.directory)
            node.reload()

    def _users(self, *arguments: str) -> str:
        directory = ("--directory", str(self.directory))
        program = [sys.executable, str(DEPLOY / "users.py"), *directory, *arguments]
        return subprocess.run(program, capture_output=True, text=True, check=True).stdout

    def settings(self, name: str) -> FleetSettings:
        """How a user connects."""
        return FleetSettings(
            servers=tuple(self.urls), credentials=self.credentials(name), ca=self.ca
        )

    async def set_up(self) -> None:
        """Make the stream and the buckets, as `enabler fleet setup` does."""
        async with connected(self.settings(OPERATOR), "set up") as bus:
            await set_up(bus, Wanted(), dry_run=False)

    # -- up and down --------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start all nodes that do not run, and wait until the cluster works."""
        for node in self.nodes:
            shutil.copy2(self.directory / "users.conf", node.directory)
            node.start(wait=False)
        for node in self.nodes:
            node.start()
        self.wait_well()

    def wait_well(self, seconds: float = 60) -> None:
        """Wait until every node has all that it should have, and knows who leads."""
        well = wait_until(
            lambda: all(node.asked("/healthz") is not None and _led(node) for node in self.nodes),
            seconds,
            0.1,
        )
        logs = "\n".join(f"{node.name}:\n{node.service.tail()}" for node in self.nodes)
        assert well, f"the cluster is not well after {seconds:g} s\n{logs}"

    def stop(self) -> None:
        """Stop all nodes in good order."""
        for node in self.nodes:
            if process := node.service.process:
                process.signal(signal.SIGTERM)
        for node in self.nodes:
            node.stop()

    def kill(self) -> None:
        """SIGKILL all nodes, as a power cut would end them all."""
        for node in self.nodes:
            if process := node.service.process:
                process.signal(signal.SIGKILL)
        for node in self.nodes:
            node.kill()

    def close(self) -> None:
        """End everything and remove it."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def disk_bytes(self) -> int:
        """What the stores of all nodes take on disk; some of it may go while this is counted."""
        found = 0
        for node in self.nodes:
            for file in node.store.rglob("*"):
                with suppress(FileNotFoundError):
                    found += file.lstat().st_blocks * 512
        return found

    def has_files_of(self, stream: str) -> bool:
        """Whether a node still keeps files of a stream: one that is deleted goes a little later."""
        return any(
            folder.exists()
            for node in self.nodes
            for folder in node.store.glob(f"jetstream/*/streams/{stream}")
        )

    def _write(self) -> None:
        tls = self.directory / "tls"
        names = [f"{node.name},{node.address}" for node in self.nodes]
        script = [str(DEPLOY / "certificates.sh"), str(tls), *names]
        self.directory.mkdir(parents=True, exist_ok=True)
        subprocess.run(script, check=True, capture_output=True)
        for role, name in (("operator", OPERATOR), ("reader", READER), ("system", SYSTEM)):
            self.add(role, name)
        for node in self.nodes:
            node.directory.mkdir()
            shutil.copy2(DEPLOY / "nats-server.conf", node.directory)
            shutil.copy2(self.directory / "users.conf", node.directory)
            (node.directory / "node.conf").write_text(
                _NODE.format(
                    name=node.name,
                    address=node.address,
                    routes=", ".join(f'"nats://{each.address}:6222"' for each in self.nodes),
                    tls=tls,
                    store=node.store,
                    max_store=self._max_store,
                )
            )


def _led(node: Node) -> bool:
    said = node.asked("/jsz")
    return bool(said and said.get("meta_cluster", {}).get("leader"))


def _loopback(count: int) -> list[str]:
    net = f"127.{random.randrange(64, 255)}.{random.randrange(256)}"
    return [f"{net}.{n}" for n in range(1, count + 1)]
