"""The hot path: identity requests of a known guest, one worker, 64 connections that are kept."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from statistics import median

from tests.api.network import HOST, network, serving, vm_mac, write_node
from tests.bench.figures import Figure, at_least, at_most, say
from tests.bench.load import UNLIMITED, Load, answer, baseline, wrk

ROUNDS = 7
_BARE, _MODEL = 9001, 9002


def run() -> list[Figure]:
    """Measure the enabler, a bare ASGI app and a FastAPI route by turns."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        uri = write_node(folder / "node.xml", 10)
        net = stack.enter_context(network("vmbench", [vm_mac(1)]))
        stack.enter_context(serving(net, folder / "log", uri=uri, environment=UNLIMITED))
        answer(net, folder / "answer")
        stack.enter_context(baseline(net, "bare", _BARE, folder / "answer"))
        stack.enter_context(baseline(net, "model", _MODEL, folder / "answer"))
        urls = {
            "enabler": f"{net.url}/v1/identity",
            "bare": f"http://{HOST}:{_BARE}/v1/identity",
            "model": f"http://{HOST}:{_MODEL}/v1/identity",
        }
        loads: dict[str, list[Load]] = {what: [] for what in urls}
        for number in range(ROUNDS):
            for what, url in urls.items():
                loads[what].append(wrk(net, url))
            said = ", ".join(f"{what} {loads[what][-1].per_second:,.0f}/s" for what in urls)
            say(f"round {number + 1} of {ROUNDS}: {said}")
    rate = {what: median(load.per_second for load in found) for what, found in loads.items()}
    p99 = {what: median(load.p99 for load in found) * 1000 for what, found in loads.items()}
    name = "identity requests, 64 connections"
    return [
        Figure("server", name, rate["enabler"], "/s", rate["bare"], "bare ASGI", at_least(0.9)),
        Figure("server", name, rate["enabler"], "/s", rate["model"], "FastAPI", at_least(3)),
        Figure(
            "server", "their p99 latency", p99["enabler"], "ms", p99["bare"], "bare", at_most(1.2)
        ),
    ]
