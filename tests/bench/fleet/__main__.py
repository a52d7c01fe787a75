"""Play the waves, print the table: ``python -m tests.bench.fleet``. The same numbers each time."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import simpy

from tests.bench.fleet.model import Fleet, Parameters, Step, Tally

OUTAGE = 1800.0
CREW = 200
"""Hosts that a rolling upgrade has out of service at a time: 2 %."""


@dataclass(frozen=True, slots=True)
class Wave:
    """One thing that happens to a fleet."""

    name: str
    play: Callable[[Fleet], Iterable[Step]]


def rolling(fleet: Fleet) -> Iterable[Step]:
    crew = simpy.Resource(fleet.simulation, CREW)
    return [fleet.upgrade(host, crew) for host in range(fleet.parameters.hosts)]


WAVES = (
    Wave("an hour of balancing: 1 % of the VMs", lambda fleet: [fleet.balance(3_000, 3600)]),
    Wave("a host is drained", lambda fleet: [fleet.drain(0)]),
    Wave(
        "a rack is drained",
        lambda fleet: [fleet.drain(host) for host in range(fleet.parameters.hosts_per_rack)],
    ),
    Wave(
        "ten racks are drained at once",
        lambda fleet: [fleet.drain(host) for host in range(10 * fleet.parameters.hosts_per_rack)],
    ),
    Wave(f"rolling upgrade, {CREW} hosts at a time", rolling),
    Wave(
        "the same; receivers down for 30 min in it",
        lambda fleet: [*rolling(fleet), fleet.receivers_down(7200, OUTAGE)],
    ),
)
_HEAD = (
    "wave",
    "migrations",
    "lasts",
    "migrations/s, peak",
    "requests/s of a host, peak",
    "wake-ups/s, peak",
    "posts/s to receivers, peak",
    "undelivered, most",
    "delivered after, p99",
    "all delivered after the last move",
    "stream events/s, peak",
)


def row(name: str, tally: Tally) -> tuple[str, ...]:
    delays = sorted(tally.delays)
    return (
        name,
        f"{len(delays):,}",
        _span(tally.last_migration),
        f"{max(tally.migrations.values()):,}",
        f"{max(tally.requests.values()):,}",
        f"{max(tally.wakes.values()):,}",
        f"{max(tally.posts.values()):,}",
        f"{tally.most_waiting:,}",
        _span(delays[int(len(delays) * 0.99)]),
        _span(max(0.0, tally.last_delivery - tally.last_migration)),
        f"{max(tally.host_events.values()):,}",
    )


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fleet", description=__doc__)
    parser.add_argument("--seed", type=int, default=Parameters().seed)
    known = Parameters(seed=parser.parse_args().seed)
    vms = known.hosts * known.vms_per_host
    calm = known.vms_per_host * (1 / known.wait + known.reads_per_day / 86400)
    print(
        f"{known.hosts:,} hosts, {vms:,} VMs. In calm, a host has {known.vms_per_host} requests "
        f"that wait and {calm:.2f} requests/s; the receivers have nothing.\n"
    )
    print("| " + " | ".join(_HEAD) + " |")
    print("|" + "---|" * len(_HEAD))
    for wave in WAVES:
        began = time.monotonic()
        fleet = Fleet(known)
        print("| " + " | ".join(row(wave.name, fleet.run(wave.play(fleet)))) + " |", flush=True)
        print(f"{wave.name}: {time.monotonic() - began:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
