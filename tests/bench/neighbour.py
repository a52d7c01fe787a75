"""Reads of one guest before and during another's abuse (``abuse.py``): the ratio of their times."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tests.api.network import HOST, PORT, Network, network, run_in, serving, vm_mac, write_node
from tests.bench import abuse as program
from tests.bench.figures import Figure, say

MALFORMED, SLOW, READS, ROUNDS = 10_000, 1_000, 200, 3


def run() -> list[Figure]:
    """Measure it. No aim is set; that every read is answered is asserted here and in tests/api."""
    before: list[float] = []
    during: list[float] = []
    with tempfile.TemporaryDirectory() as name, two_guests(Path(name)) as net:
        for number in range(ROUNDS):
            before += reads(net, READS)
            with abused(net, MALFORMED // ROUNDS, SLOW):
                during += reads(net, READS)
            say(f"round {number + 1} of {ROUNDS}: {median(during) / median(before):.2f}")
    name = f"a guest's reads beside {MALFORMED:,} malformed requests, {SLOW:,} slow connections"
    return [
        Figure("neighbour", name, median(during) * 1000, "ms", median(before) * 1000, "before"),
        Figure("neighbour", "their p99", _p99(during) * 1000, "ms", _p99(before) * 1000, "before"),
    ]


@contextlib.contextmanager
def two_guests(folder: Path) -> Iterator[Network]:
    """A host with an enabler as it comes, and two guests on its bridge."""
    uri = write_node(folder / "node.xml", 2)
    with (
        network("vmabuse", [vm_mac(1), vm_mac(2)]) as net,
        serving(net, folder / "log", uri=uri),
    ):
        yield net


@contextlib.contextmanager
def abused(net: Network, malformed: int, slow: int) -> Iterator[None]:
    """The second guest's abuse: begun when this is entered, and sent in full by its end."""
    command = _program("abuse", malformed, slow)
    with subprocess.Popen(
        run_in(net.guests[1], *command), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield
            assert process.stdout is not None
            assert process.stdout.readline().startswith("sent")
        finally:
            process.kill()


def reads(net: Network, count: int) -> list[float]:
    """Seconds that each read of the first guest took; every one was answered."""
    command = run_in(net.guest, *_program("read", count))
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert {status for status, _ in found} == {200}, found
    return [seconds for _, seconds in found]


def _program(what: str, *numbers: int) -> list[str]:
    return [sys.executable, str(program.__file__), what, HOST, str(PORT), *map(str, numbers)]


def _p99(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)]
