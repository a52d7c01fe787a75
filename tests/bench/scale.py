"""Many VMs on a host: requests a second with 10,000 against 10; time to ready with 1,000."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tests.api.network import HOST, PORT, Network, network, run_in, serving, vm_mac, write_node
from tests.bench.figures import Figure, at_least, at_most, say
from tests.bench.load import UNLIMITED, quiet, wrk

MANY, FEW, READY = 10_000, 10, 1_000
ROUNDS, STARTS = 3, 9

_LIST = """
import sys, time, libvirt
began = time.monotonic()
connection = libvirt.open(sys.argv[1])
for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
    domain.UUIDString(), domain.state(), domain.XMLDesc()
print(time.monotonic() - began)
"""


_WAIT = """
import socket, sys, time
host, port = sys.argv[1], int(sys.argv[2])
print("waiting", flush=True)
while True:
    try:
        with socket.create_connection((host, port), 5) as asked:
            asked.sendall(b"GET /readyz HTTP/1.1\\r\\nHost: %s\\r\\n\\r\\n" % host.encode())
            if asked.recv(4096).startswith(b"HTTP/1.1 200"):
                break
    except OSError:
        pass
    time.sleep(0.01)
print(time.monotonic())
"""
"""Says when an enabler is ready: to run curl again and again would be slower than what is timed."""


def run() -> list[Figure]:
    """Measure both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [_requests(folder), _ready(folder)]


def _requests(folder: Path) -> Figure:
    rates: dict[int, list[float]] = {FEW: [], MANY: []}
    for number in range(ROUNDS):
        for count, found in rates.items():
            uri = write_node(folder / "node.xml", count)
            with (
                network("vmscale", [vm_mac(1)]) as net,
                serving(net, folder / "log", uri=uri, environment=UNLIMITED) as process,
            ):
                quiet(process)
                wrk(net, f"{net.url}/v1/identity", 1)
                found.append(wrk(net, f"{net.url}/v1/identity").per_second)
        said = ", ".join(f"{count} VMs {found[-1]:,.0f}/s" for count, found in rates.items())
        say(f"round {number + 1} of {ROUNDS}: {said}")
    return Figure(
        "scale",
        f"identity requests with {MANY:,} VMs",
        median(rates[MANY]),
        "/s",
        median(rates[FEW]),
        f"with {FEW}",
        at_least(0.95),
    )


def _ready(folder: Path) -> Figure:
    uri = write_node(folder / "node.xml", READY)
    empty = write_node(folder / "empty.xml", 1)
    listing, ready = [], []
    with network("vmready", [vm_mac(1)]) as net:
        for number in range(STARTS):
            # Python's start and the imports are the same with one VM, and not what is asked.
            listing.append(_list(uri) - _list(empty))
            ready.append(_start(net, folder, uri) - _start(net, folder, empty))
            said = f"{ready[-1]:.2f} s to ready, {listing[-1]:.2f} s to list"
            say(f"start {number + 1} of {STARTS}: {said}")
    return Figure(
        "scale",
        f"time to ready with {READY:,} VMs, beyond that with one",
        median(ready),
        "s",
        median(listing),
        "the same of a connection and one pass of listing, bare libvirt-python",
        at_most(1.5),
    )


def _list(uri: str) -> float:
    listed = [sys.executable, "-c", _LIST, uri]
    return float(subprocess.run(listed, check=True, capture_output=True, text=True).stdout)


def _start(net: Network, folder: Path, uri: str) -> float:
    wait = run_in(net.host, sys.executable, "-c", _WAIT, HOST, str(PORT))
    with subprocess.Popen(wait, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        waiting.stdout.readline()
        began = time.monotonic()
        with serving(net, folder / "log", uri=uri):
            return float(waiting.stdout.readline()) - began
