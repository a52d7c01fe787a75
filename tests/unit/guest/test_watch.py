"""The watch, against a server that holds requests as an enabler does: what it tells, and when."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from guest_client.hints import Waker, announces
from guest_client.identity import parse_identity
from guest_client.news import Change, news

from .conftest import Guest
from .documents import MIGRATED, document
from .enabler_server import EnablerServer, Handler, problem


class Holding:
    """Answers 200 when the state is not the one that is known, else holds the request."""

    def __init__(self, server: EnablerServer) -> None:
        self.state = document()
        self.holding = 0
        self.changed = threading.Condition()
        server.file = None
        server.otherwise = self._answer

    def become(self, changes: dict[str, Any]) -> None:
        with self.changed:
            self.state = document(changes)
            self.changed.notify_all()

    def forget(self, changes: dict[str, Any]) -> None:
        """Change without a word to those who wait: they have migrated away from us."""
        with self.changed:
            self.state = document(changes)

    def wait_for_a_hold(self) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.holding > 0, 20)

    def _answer(self, handler: Handler) -> None:
        with self.changed:
            known = handler.headers.get("If-None-Match")
            if known == self._etag():
                self.holding += 1
                self.changed.notify_all()
                self.changed.wait_for(lambda: self._etag() != known, 20)
                self.holding -= 1
            body, etag = json.dumps(self.state).encode(), self._etag()
        handler.reply(body, ETag=etag)

    def _etag(self) -> str:
        return f'W/"{abs(hash(json.dumps(self.state)))}"'


@pytest.fixture
def holding(guest: Guest, server: EnablerServer) -> Holding:
    return Holding(server)


class Watching:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found


@contextmanager
def watching(guest: Guest, *options: str) -> Iterator[Watching]:
    process = guest.start("watch", *options)
    try:
        yield Watching(process)
    finally:
        process.kill()
        process.communicate()


def test_each_change_is_a_line(guest: Guest, holding: Holding) -> None:
    with watching(guest) as watch:
        first = watch.line()
        assert (first["change"], first["previous"]) == ("present", None)
        assert first["identity"] == document()
        holding.wait_for_a_hold()
        holding.become({"migration": {"state": "outgoing"}})
        assert watch.line()["change"] == "migrating"
        holding.wait_for_a_hold()
        holding.become(MIGRATED)
        moved = watch.line()
        assert moved["change"] == "migrated"
        assert moved["previous"]["residency_id"] == first["identity"]["residency"]["id"]
        holding.wait_for_a_hold()
        watch.process.send_signal(signal.SIGTERM)
        assert watch.process.wait(20) == 128 + signal.SIGTERM
        assert watch.process.stdout is not None
        assert watch.process.stdout.read() == b""


def test_a_lost_connection_is_a_reason_to_look(
    guest: Guest, holding: Holding, server: EnablerServer
) -> None:
    with watching(guest, "--once") as watch:
        watch.line()
        holding.wait_for_a_hold()
        holding.forget(MIGRATED)
        server.drop_connections()
        assert watch.line()["change"] == "migrated"
        assert watch.process.wait(20) == 0


def test_a_lost_connection_alone_is_no_change(
    guest: Guest, holding: Holding, server: EnablerServer
) -> None:
    with watching(guest) as watch:
        watch.line()
        holding.wait_for_a_hold()
        server.drop_connections()
        holding.forget({})
        holding.wait_for_a_hold()
        holding.become(MIGRATED)
        assert watch.line()["change"] == "migrated"


def test_an_outage_is_told_once(guest: Guest, holding: Holding, server: EnablerServer) -> None:
    guest.config.write_text("watch_interval = 0.1\n")
    with watching(guest, "--deadline", "0.3") as watch:
        watch.line()
        holding.wait_for_a_hold()
        hold, server.otherwise = server.otherwise, problem(503, "hypervisor-unavailable")
        server.drop_connections()
        lost = watch.line()
        assert (lost["change"], lost["reason"], lost["identity"]) == (
            "unverified",
            "no-answer",
            None,
        )
        server.otherwise = hold
        holding.become(MIGRATED)
        assert watch.line()["change"] == "migrated"


def test_an_enabler_that_does_not_wait_is_asked_at_the_interval(
    guest: Guest, server: EnablerServer
) -> None:
    guest.config.write_text("watch_interval = 0.1\n")
    with watching(guest) as watch:  # it sends no ETag
        watch.line()
        guest.say(document(MIGRATED))
        assert watch.line()["change"] == "migrated"


def test_the_time_is_up(guest: Guest, holding: Holding) -> None:
    assert guest.run("watch", "--timeout", "0.3").returncode == 0
    done = guest.run("watch", "--timeout", "0.3", "--once")
    assert done.returncode == 69


def test_a_closed_pipe_ends_it(guest: Guest, holding: Holding) -> None:
    reading, writing = os.pipe()
    process = guest.start("watch", stdout=writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        pipe.readline()
    holding.wait_for_a_hold()
    holding.become(MIGRATED)
    assert process.wait(20) == 74
    process.communicate()


STATES = {
    "stays": {},
    "leaving": {"migration": {"state": "outgoing"}},
    "postcopy": {"migration": {"state": "postcopy"}},
    "moved": MIGRATED,
    "moved and leaving": MIGRATED | {"migration": {"state": "outgoing"}},
}


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ("stays", "stays", []),
        ("stays", "leaving", [Change.MIGRATING]),
        ("leaving", "stays", [Change.ABORTED]),
        ("leaving", "leaving", []),
        ("leaving", "moved", [Change.MIGRATED]),
        ("stays", "moved and leaving", [Change.MIGRATED, Change.MIGRATING]),
        ("leaving", "moved and leaving", [Change.MIGRATED, Change.MIGRATING]),
        ("postcopy", "stays", [Change.SETTLED]),
    ],
)
def test_news(before: str, now: str, expected: list[Change]) -> None:
    one, other = (parse_identity(json.dumps(document(STATES[s])).encode()) for s in (before, now))
    assert [change for change, _ in news(one, other)] == expected
    assert news(None, other)[0][0] is Change.PRESENT


def link_message(event: int | None) -> bytes:
    """An RTM_NEWLINK as the kernel sends it: a name, perhaps an event."""
    attributes = struct.pack("=HH8s", 12, 3, b"eth0\0\0\0\0")
    if event is not None:
        attributes += struct.pack("=HHI", 8, 44, event)
    body = bytes(16) + attributes
    return struct.pack("=IHHII", 16 + len(body), 16, 0, 0, 0) + body


def test_an_announcement_is_found_among_other_messages() -> None:
    assert announces(link_message(4))
    assert announces(link_message(None) + link_message(4))
    for other in (b"", link_message(None), link_message(5), link_message(4)[:20], bytes(64)):
        assert not announces(other)


def test_another_thread_wakes() -> None:
    waker = Waker()
    assert not waker.take()
    waker.wake()
    waker.wake()
    assert waker.take()
    assert not waker.take()
