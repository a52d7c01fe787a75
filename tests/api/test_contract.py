"""Both listeners against the contract: schemathesis makes up requests, good ones and bad ones, and
no answer may be one that the contract does not know, nor a failure of the enabler's.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from enabler.api import admin, attestation, events, guest, service
from openapi.export import document
from tests.api.network import DEFAULT_MAC, Network, network, run_in, serving
from tests.bench.load import UNLIMITED

EXAMPLES = 25
ENDLESS = "/v1/events"
"""A stream, which ends when its reader has enough: `test_events.py` reads it."""

ROUTERS = [each.router for each in (guest, admin, attestation, events, service)]

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Network]:
    with (
        network("vmenc", [DEFAULT_MAC]) as made,
        serving(
            made,
            tmp_path / "log",
            "--listen",
            f"unix:{tmp_path}/admin.sock",
            environment=UNLIMITED,
        ),
    ):
        yield made


def contract(folder: Path, listener: str) -> Path:
    """The part of the contract that one listener answers."""
    whole: dict[str, Any] = document()
    paths = {
        path: item
        for path, item in whole["paths"].items()
        if path != ENDLESS
        and any(server["description"].startswith(listener) for server in item["servers"])
    }
    assert paths
    for item in paths.values():
        del item["servers"]
    file = folder / f"{listener}.json"
    file.write_text(json.dumps(whole | {"paths": paths}))
    return file


def run(file: Path, url: str, *before: str) -> None:
    schemathesis = Path(sys.executable).with_name("schemathesis")
    command = [
        *before,
        str(schemathesis),
        "run",
        str(file),
        *("--url", url),
        *("--checks", ",".join(CHECKS)),
        *("--phases", "examples,coverage,fuzzing"),
        *("--max-examples", str(EXAMPLES)),
        # It may ask to wait for five minutes.
        *("--request-timeout", "310"),
        "--generation-deterministic",
        "--no-color",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=file.parent, timeout=480)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr


def test_the_guest_listener(net: Network, tmp_path: Path) -> None:
    run(contract(tmp_path, "Guest"), net.url, *run_in(net.guest))


def test_the_admin_listener(net: Network, tmp_path: Path) -> None:
    with over_tcp(tmp_path / "admin.sock") as url:
        run(contract(tmp_path, "Admin"), url)


@contextmanager
def over_tcp(path: Path) -> Iterator[str]:
    """A way to a Unix socket for what speaks TCP alone."""

    class Relay(StreamRequestHandler):
        def handle(self) -> None:
            with socket.socket(socket.AF_UNIX) as other:
                other.connect(str(path))
                back = threading.Thread(target=pump, args=(other, self.connection))
                back.start()
                pump(self.connection, other)
                back.join()

    class Server(ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Relay) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("router", ROUTERS, ids=lambda router: ",".join(router.tags))
def test_no_answer_waits_for_a_thread_of_a_pool(router: APIRouter) -> None:
    # FastAPI calls what is no coroutine function in one; 40 of them are a quarter of the memory.
    def called(dependant: Dependant) -> Iterator[Callable[..., Any]]:
        if dependant.call is not None:
            yield dependant.call
        for each in dependant.dependencies:
            yield from called(each)

    routes = [route for route in router.routes if isinstance(route, APIRoute)]
    assert routes
    for route in routes:
        for call in called(route.dependant):
            assert inspect.iscoroutinefunction(call), f"{route.path}: {call}"
