"""The model: hosts that VMs migrate between, agents that tell of it, receivers that take it.

What is simulated and what is not. A migration takes a place on its source, some time, and ends on
another host. Its guest costs the source one answer and one request (it is told that it is about to
leave, and waits again), the target one read and one request that waits. Its agent runs its
programs and delivers one event per migration to the receivers, and tries again as the real agent
does (`guest_client.agent.steps.resend_at`). Each enabler streams its events to a collector, where
somebody has one. What a request costs an enabler is not simulated: ``make bench`` measures it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

import simpy

from guest_client.agent.steps import resend_at

Step = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, slots=True)
class Parameters:
    """Times in seconds. ``measured`` ones come from ``make bench``, the others are assumptions."""

    hosts: int = 10_000
    vms_per_host: int = 30
    hosts_per_rack: int = 40
    migrations_per_host: int = 4
    """Outgoing ones at a time: what management software allows by default is 1 to 8."""
    migration_median: float = 20.0
    migration_sigma: float = 0.6
    """Log-normal: half within 20 s, one in twenty longer than 54 s (8 to 16 GB at 10 Gbit/s)."""
    told_after: float = 0.4
    """Measured: from the guest's first moment on its new host to its knowing (`watch`)."""
    programs_take: float = 1.0
    """What the registered programs of an agent take."""
    wait: float = 240.0
    """A request that waits is renewed so often (`guest_client.watcher.HOLD`)."""
    reads_per_day: float = 8.0
    """Of one guest: two guarded scans a day, with four reads each."""
    receiver_workers: int = 8
    receiver_takes: float = 0.02
    """One event, in one worker: with 8 of them, 400 events a second."""
    receiver_patience: int = 400
    """Events that wait for a worker at most; what is beyond is refused (503) and sent again."""
    upgrade_takes: float = 900.0
    """A drained host's reboot into its new system."""
    seed: int = 20261125


@dataclass
class Tally:
    """What happened, by the second."""

    migrations: Counter[int] = field(default_factory=Counter)
    requests: Counter[tuple[int, int]] = field(default_factory=Counter)
    """By host and second."""
    wakes: Counter[int] = field(default_factory=Counter)
    posts: Counter[int] = field(default_factory=Counter)
    host_events: Counter[int] = field(default_factory=Counter)
    """Of the enablers' streams."""
    delays: list[float] = field(default_factory=list)
    """From a migration's end to its event's being taken."""
    waiting: int = 0
    most_waiting: int = 0
    first: float = 0.0
    last_migration: float = 0.0
    last_delivery: float = 0.0

    def event_begins(self) -> None:
        self.waiting += 1
        self.most_waiting = max(self.waiting, self.most_waiting)

    def event_ends(self, now: float, began: float) -> None:
        self.waiting -= 1
        self.delays.append(now - began)
        self.last_delivery = now


class Fleet:
    """The fleet in one simulation."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.random = random.Random(parameters.seed)
        self.simulation = simpy.Environment()
        self.tally = Tally()
        self.vms = [parameters.vms_per_host] * parameters.hosts
        self._open = list(range(parameters.hosts))
        """Hosts that take VMs; the order means nothing."""
        self._place = list(range(parameters.hosts))
        """Where in ``_open`` a host is; -1 if nowhere."""
        self._receiver = simpy.Resource(self.simulation, parameters.receiver_workers)
        self._down_until = 0.0

    def run(self, what: Iterable[Step]) -> Tally:
        for each in what:
            self.simulation.process(each)
        self.simulation.run()
        assert self.tally.waiting == 0
        assert sum(self.vms) == self.parameters.hosts * self.parameters.vms_per_host
        return self.tally

    # Hosts ---------------------------------------------------------------------------------------

    def drain(self, host: int) -> Step:
        """Move every VM away from a host."""
        self._close(host)
        places = simpy.Resource(self.simulation, self.parameters.migrations_per_host)
        moves = [
            self.simulation.process(self._migrate(host, places)) for _ in range(self.vms[host])
        ]
        yield self.simulation.all_of(moves)

    def upgrade(self, host: int, crew: simpy.Resource) -> Step:
        """Drain a host, renew it, and let it take VMs again."""
        with crew.request() as turn:
            yield turn
            yield self.simulation.process(self.drain(host))
            yield self.simulation.timeout(self.parameters.upgrade_takes)
            self._place[host] = len(self._open)
            self._open.append(host)

    def balance(self, moves: int, seconds: float) -> Step:
        """Move single VMs, spread over some time, as a scheduler does all day."""
        places = simpy.Resource(self.simulation, self.parameters.hosts)
        for _ in range(moves):
            yield self.simulation.timeout(self.random.expovariate(moves / seconds))
            host = self.random.choice(self._open)
            if self.vms[host]:
                self.simulation.process(self._migrate(host, places))

    def receivers_down(self, begin: float, seconds: float) -> Step:
        """Let nobody take events for some time."""
        yield self.simulation.timeout(begin)
        self._down_until = self.simulation.now + seconds

    def _close(self, host: int) -> None:
        at, last = self._place[host], self._open[-1]
        self._open[at], self._place[last] = last, at
        self._open.pop()
        self._place[host] = -1

    def _migrate(self, source: int, places: simpy.Resource) -> Step:
        now, tally, known = self.simulation, self.tally, self.parameters
        with places.request() as place:
            yield place
            if not self.vms[source]:
                return
            self._request(source, 1)  # told that it is about to leave, it waits again
            tally.wakes[int(now.now)] += 1
            tally.host_events[int(now.now)] += 1
            yield now.timeout(
                self.random.lognormvariate(0, known.migration_sigma) * known.migration_median
            )
            target = self.random.choice(self._open)
            while target == source:
                target = self.random.choice(self._open)
            self.vms[source] -= 1
            self.vms[target] += 1
            tally.migrations[int(now.now)] += 1
            tally.last_migration = now.now
            tally.host_events[int(now.now)] += 3  # switched over, departure; arrival
        now.process(self._tell(target))

    def _request(self, host: int, count: int) -> None:
        self.tally.requests[host, int(self.simulation.now)] += count

    # The management side -------------------------------------------------------------------------

    def _tell(self, host: int) -> Step:
        now, tally, known = self.simulation, self.tally, self.parameters
        began = now.now
        tally.event_begins()
        yield now.timeout(known.told_after)
        self._request(host, 2)  # it reads, and waits again
        tally.wakes[int(now.now)] += 1
        yield now.timeout(self.random.expovariate(1 / known.programs_take))
        failures = 0
        while not (yield from self._post()):
            failures += 1
            yield now.timeout(resend_at(failures, 0.0, now.now, self.random.random()) - now.now)
        tally.event_ends(now.now, began)

    def _post(self) -> Generator[simpy.Event, Any, bool]:
        """Send one event; whether it was taken."""
        now = self.simulation
        self.tally.posts[int(now.now)] += 1
        busy = len(self._receiver.queue) >= self.parameters.receiver_patience
        if now.now < self._down_until or busy:
            return False
        with self._receiver.request() as worker:
            yield worker
            yield now.timeout(self.random.expovariate(1 / self.parameters.receiver_takes))
        return True
