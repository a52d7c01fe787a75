"""The stand-in licence server as a process of its own, as the lab runs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from guest_client.agent.event_schema import event_example

ROOT = Path(__file__).parents[3]
KIND = {"Content-Type": "application/cloudevents+json"}


@contextmanager
def running(record: Path) -> Iterator[str]:
    """A receiver's process, and its URL; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.lab.receiver", "--listen", "127.0.0.1:0",
         "--record", str(record)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        _, _, host, port = process.stdout.readline().split()
        try:
            yield f"http://{host}:{port}"
        finally:
            process.kill()
            process.wait()


def test_it_remembers_what_it_has_taken_when_it_was_killed(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    event = event_example()
    with running(record) as url:
        assert httpx.post(f"{url}/events", json=event, headers=KIND).status_code == 204
    with record.open("a") as stream:
        stream.write('{"number": 2, "at": "half a li')
    with running(record) as url:
        assert httpx.post(f"{url}/events", json=event, headers=KIND).status_code == 204
        arrivals = httpx.get(f"{url}/arrivals").json()
        assert [arrival["repeat"] for arrival in arrivals] == [False, True]
        assert httpx.get(f"{url}/events").json() == [event]


def test_it_behaves_as_it_is_told(tmp_path: Path) -> None:
    with running(tmp_path / "record.jsonl") as url:
        behaviour = {"kind": "failing", "status": 503, "retry_after": 5}
        assert httpx.put(f"{url}/behaviour", json=behaviour).status_code == 200
        answer = httpx.post(f"{url}/events", json=event_example(), headers=KIND)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert httpx.get(f"{url}/events").json() == []
        httpx.put(f"{url}/behaviour", json={"kind": "dead"})
        with pytest.raises(httpx.TransportError):
            httpx.post(f"{url}/events", json=event_example(), headers=KIND)
        httpx.put(f"{url}/behaviour", json={"kind": "slow", "seconds": 0.1})
        answer = httpx.post(f"{url}/events", json=event_example(), headers=KIND)
        assert answer.status_code == 204
