"""A host and guests on its bridge, as network namespaces; a real ``enabler serve`` in the host's.

A guest's namespace has the MAC that libvirt's test driver gives to a domain, so to the host it is
that VM. Guest 1 of `NODE` files, and the one domain of ``test:///default``, are the first guest's.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.api.running import eventually

HOST, HOST_V6, PORT = "169.254.77.1", "fe80::77:1", 8777
DEFAULT_MAC = "aa:bb:cc:dd:ee:ff"
"""The test driver's own, of the interface of the one domain of ``test:///default``."""

MACHINE = {"ENABLER_MACHINE__SERIAL_NUMBER": "SN-0001", "ENABLER_MACHINE__MANUFACTURER": "Acme"}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def run_in(namespace: str, *command: str) -> list[str]:
    """Return the command that runs a command in a namespace."""
    return ["ip", "netns", "exec", namespace, *command]


@dataclass
class Network:
    """A host and its guests (names of namespaces); ``url`` is the enabler's in a guest."""

    host: str
    guests: list[str]
    listen: str
    url: str

    @property
    def guest(self) -> str:
        return self.guests[0]

    def curl(self, path: str, *more: str, guest: int = 0) -> tuple[int, dict[str, object]]:
        curl = run_in(self.guests[guest], "curl", "-sS", "-g", "-w", "\n%{http_code}")
        done = subprocess.run(
            [*curl, *more, self.url + path], check=True, capture_output=True, text=True
        )
        body, _, status = done.stdout.rpartition("\n")
        return int(status), json.loads(body) if body else {}

    def as_other_mac(self, mac: str) -> None:
        ip("-n", self.guest, "link", "set", "eth0", "address", mac)
        # The host would find out by itself, in its own time.
        ip("-n", self.host, "neigh", "flush", "all")

    def is_ready(self) -> bool:
        with contextlib.suppress(subprocess.CalledProcessError):
            return self.curl("/readyz", "--insecure")[0] == 200
        return False


@contextmanager
def network(
    prefix: str, macs: Sequence[str] = (DEFAULT_MAC,), family: str = "ipv4", scheme: str = "http"
) -> Iterator[Network]:
    """A host with a bridge ``enabler0`` and a guest for each MAC."""
    host = f"{prefix}-h{os.getpid()}"
    guests = [f"{prefix}-g{number}-{os.getpid()}" for number in range(len(macs))]
    with contextlib.ExitStack() as stack:
        for name in (host, *guests):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", host, "link", "add", "enabler0", "type", "bridge")
        for number, (guest, mac) in enumerate(zip(guests, macs, strict=True), 1):
            peer = ("peer", "name", "eth0", "netns", guest)
            ip("-n", host, "link", "add", f"vnet{number}", "type", "veth", *peer)
            ip("-n", host, "link", "set", f"vnet{number}", "master", "enabler0", "up")
            ip("-n", guest, "link", "set", "eth0", "address", mac)
            _up(guest, "eth0", f"169.254.77.{number + 1}/16")
        _up(host, "enabler0", f"{HOST}/16")
        ip("-n", host, "address", "add", f"{HOST_V6}/64", "dev", "enabler0", "nodad")
        if family == "ipv4":
            listen = url = f"{scheme}://{HOST}:{PORT}"
        else:
            listen = f"{scheme}://[{HOST_V6}%25enabler0]:{PORT}"
            url = f"{scheme}://[{HOST_V6}%25eth0]:{PORT}"
        yield Network(host, guests, listen, url)


def _up(namespace: str, interface: str, address: str) -> None:
    accept_dad = f"net.ipv6.conf.{interface}.accept_dad=0"
    subprocess.run(run_in(namespace, "sysctl", "-q", accept_dad), check=True)
    ip("-n", namespace, "address", "add", address, "dev", interface)
    ip("-n", namespace, "link", "set", interface, "up")


@contextmanager
def serving(
    network: Network,
    log: Path,
    *arguments: str,
    uri: str = "test:///default",
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """``enabler serve`` in the host's namespace, ready."""
    keys = {"ENABLER_KEYS_DIRECTORY": str(log.parent / "keys")}
    serve = [sys.executable, "-m", "enabler", "serve", "--libvirt-uri", uri]
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            run_in(network.host, *serve, "--listen", network.listen, *arguments),
            env=os.environ | MACHINE | keys | (environment or {}),
            stderr=stderr,
        ) as process,
    ):
        try:
            eventually(network.is_ready, 60)
            yield process
        finally:
            process.terminate()
            assert process.wait() == 0, log.read_text()


def vm_uuid(number: int) -> str:
    """The UUID of a VM of `write_node`, counted from 1."""
    return f"11111111-0000-4000-8000-{number:012x}"


def vm_mac(number: int) -> str:
    """The MAC of a VM of `write_node`."""
    return "52:54:00:" + ":".join(f"{number:06x}"[at : at + 2] for at in (0, 2, 4))


_DOMAIN = """
  <domain type='test'>
    <name>vm{number}</name><uuid>{uuid}</uuid>
    <memory>1048576</memory><currentMemory>1048576</currentMemory><vcpu>2</vcpu>
    <os><type arch='i686'>hvm</type></os>
    <devices><interface type='network'><mac address='{mac}'/><source network='default'/></interface>
    </devices>
  </domain>"""


def write_node(path: Path, vms: int) -> str:
    """Write a description of a host with so many running VMs for libvirt's test driver
    (https://libvirt.org/drvtest.html); return its URI.
    """
    domains = [
        _DOMAIN.format(number=number, uuid=vm_uuid(number), mac=vm_mac(number))
        for number in range(1, vms + 1)
    ]
    path.write_text(f"<node>{''.join(domains)}\n</node>\n")
    return f"test://{path}"
