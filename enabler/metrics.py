"""The enabler's figures for Prometheus, collected when they are asked for.

Names and units follow https://prometheus.io/docs/practices/naming/. Nothing here is imported before
the first scrape: the library is memory that an enabler nobody scrapes need not have.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from enabler.residency import Place

if TYPE_CHECKING:
    from enabler.api.state import State
    from enabler.fleet.counters import Counters


_Labels = TypeVar("_Labels", bound=tuple[str, ...])


class Exposition:
    """What a scrape is answered."""

    def __init__(self, state: State) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Enabler(state))
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the figures and their media type, one that the ``Accept`` header asks for."""
        encoder, media_type = choose_encoder(accept)
        return encoder(self._registry), media_type


class _Enabler(Collector):
    def __init__(self, state: State) -> None:
        self._state = state
        self._build = {"version": version("vm-enabler"), "python": platform.python_version()}

    def collect(self) -> Iterable[Metric]:
        yield InfoMetricFamily("enabler_build", "What runs here.", self._build)
        inventory = self._state.inventory
        machine = {"component_id": inventory.component_id}
        yield InfoMetricFamily("enabler_host", "Which real machine this is.", machine)
        yield from self._requests()
        yield from self._libvirt()
        yield from self._vms()
        if self._state.fleet is not None:
            yield from _fleet(self._state.fleet)

    def describe(self) -> Iterable[Metric]:
        """Return nothing: registering must not collect."""
        return ()

    def _requests(self) -> Iterable[Metric]:
        state, tally = self._state, self._state.tally
        answers = dict(tally.answers)
        for status, count in tally.hot.items():
            answers["guest", status] = answers.get(("guest", status), 0) + count
        yield _counter(
            "enabler_requests",
            "Requests that were answered, by listener and HTTP status.",
            ("listener", "status"),
            {(listener, str(status)): count for (listener, status), count in answers.items()},
        )
        yield _counter(
            "enabler_refusals",
            "Answers that were problems (RFC 9457), by listener and the problem's type.",
            ("listener", "problem"),
            tally.refusals,
        )
        yield _gauge("enabler_connections", "Open connections of guests.", state.door.connections)
        yield _gauge(
            "enabler_waits", "Requests that wait for a change (Prefer: wait).", state.waits.open
        )
        yield _counter(
            "enabler_waits_ended",
            "Requests that waited, by what ended it: a change, the time, a refusal, or the caller.",
            ("outcome",),
            {(outcome,): count for outcome, count in tally.waits_ended.items()},
        )
        yield _gauge("enabler_event_streams", "Readers of /v1/events.", state.streams.open)

    def _libvirt(self) -> Iterable[Metric]:
        inventory = self._state.inventory
        yield _gauge(
            "enabler_libvirt_connected",
            "1 while libvirt is connected.",
            int(inventory.connected_now),
        )
        yield _gauge(
            "enabler_libvirt_confirmed",
            "1 while libvirt has confirmed recently that it answers: VMs are told their identity.",
            int(inventory.failure is None),
        )
        if inventory.confirmed_age is not None:
            yield _gauge(
                "enabler_libvirt_confirmation_age_seconds",
                "Seconds since libvirt confirmed that it answers.",
                inventory.confirmed_age,
            )
        if inventory.age is not None:
            yield _gauge(
                "enabler_inventory_age_seconds",
                "Seconds since libvirt's whole list of VMs was taken in.",
                inventory.age,
            )
        lag = self._state.tally.lag
        buckets, count = [], 0
        for bound, more in zip((*lag.bounds, "+Inf"), lag.counts, strict=True):
            count += more
            buckets.append((str(bound), count))
        yield HistogramMetricFamily(
            "enabler_event_lag_seconds",
            "Seconds from libvirt's event to its being taken in.",
            buckets=buckets,
            sum_value=lag.sum,
        )

    def _vms(self) -> Iterable[Metric]:
        inventory = self._state.inventory
        places = inventory.places()
        vms = GaugeMetricFamily(
            "enabler_vms", "VMs that are known here, by residency.", labels=("residency",)
        )
        for place in Place:
            if place is not Place.ABSENT:
                vms.add_metric((place.value,), places[place])
        yield vms
        yield _gauge(
            "enabler_vms_unsettled",
            "VMs of which libvirt must be asked before anything is said of them.",
            inventory.unsettled(),
        )
        yield _counter(
            "enabler_migrations",
            "Migrations that were seen, by kind.",
            ("kind",),
            {(kind,): count for kind, count in inventory.migrations.counts.items()},
        )
        yield _counter(
            "enabler_events",
            "Events that were told on /v1/events, by kind.",
            ("kind",),
            {(kind.value,): count for kind, count in inventory.feed.counts.items()},
        )


def _fleet(told: Counters) -> Iterable[Metric]:
    yield _gauge(
        "enabler_fleet_connected", "1 while a server of the fleet is connected.", told.connected
    )
    yield _gauge(
        "enabler_fleet_lag_seconds",
        "Seconds since the oldest event happened that the fleet has not got; 0 if it has all.",
        told.lag(time.time()),
    )
    yield _gauge("enabler_fleet_spool_events", "Events that wait on the disk.", told.waiting)
    yield _gauge("enabler_fleet_spool_bytes", "Bytes that they take.", told.waiting_bytes)
    yield _gauge(
        "enabler_fleet_spool_limit_bytes",
        "Bytes that they may take before the oldest are given up.",
        told.most_bytes,
    )
    yield _counter(
        "enabler_fleet_events",
        "Events, by what became of them: published (duplicate: the stream had it already), or lost "
        "as the spool was full; and those that went out unsigned.",
        ("outcome",),
        {
            ("published",): told.published - told.duplicates,
            ("duplicate",): told.duplicates,
            ("lost",): told.lost,
            ("unsigned",): told.unsigned,
        },
    )
    yield _counter(
        "enabler_fleet_attempts_failed",
        "Attempts to publish that the servers refused, or that got no answer.",
        ("reason",),
        {("refused",): told.refused, ("unavailable",): told.failed},
    )
    yield _counter(
        "enabler_fleet_claims",
        "Where a VM is, told to the bucket: written, outdated by a later stay, or in conflict with "
        "another's word and decided anew.",
        ("outcome",),
        {
            ("written",): told.claims,
            ("outdated",): told.outdated,
            ("conflict",): told.conflicts,
        },
    )


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value)


def _counter(
    name: str, about: str, labels: tuple[str, ...], counts: Mapping[_Labels, int]
) -> Metric:
    family = CounterMetricFamily(name, about, labels=labels)
    for values, count in sorted(counts.items()):
        family.add_metric(values, count)
    return family
