"""The log of a running enabler: why an answer was refused, bounded, and never a token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from enabler import tokens
from tests.api.network import MACHINE
from tests.api.running import eventually, free_port


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[tuple[httpx.Client, Path]]:
    """A guest that nobody knows, and the log."""
    url, log = f"http://127.0.0.1:{free_port()}", folder / "log"
    command = [sys.executable, "-m", "enabler", "serve", "--libvirt-uri", "test:///default"]
    keys = {"ENABLER_KEYS_DIRECTORY": str(folder / "keys")}
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [*command, "--listen", url, *arguments],
            env=os.environ | MACHINE | keys,
            stderr=stderr,
        ) as process,
        httpx.Client(base_url=url) as client,
    ):

        def ready() -> bool:
            try:
                return client.get("/readyz").status_code == 200
            except httpx.TransportError:
                return False

        try:
            eventually(ready, 60)
            yield client, log
        finally:
            process.terminate()
            assert process.wait() == 0, log.read_text()


def refusals(log: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in log.read_text().splitlines()]
    return [entry for entry in found if "problem" in entry]


def test_a_refusal_says_why_and_can_be_found_by_its_id(tmp_path: Path) -> None:
    with serving(tmp_path, "--log-format", "json") as (guest, log):
        answer = guest.get("/v1/identity", headers={"X-Request-Id": "scan-17"})
        assert (answer.status_code, answer.headers["X-Request-Id"]) == (403, "scan-17")
        made = guest.get("/v1/identity", headers={"X-Request-Id": 'no "ID" at all'})
        # Of an answer that is none, nothing is said; nor of a probe's, however often it comes.
        assert "X-Request-Id" not in guest.get("/healthz").headers
        eventually(lambda: len(refusals(log)) == 2)
        first, second = refusals(log)
    assert first["request_id"] == "scan-17"
    assert first["caller"] == "127.0.0.1"
    assert (first["status"], first["problem"], first["level"]) == (403, "caller-unknown", "warning")
    assert (first["method"], first["route"]) == ("GET", "/v1/identity")
    # What the caller is not told.
    assert first["reason"].startswith("address: no neighbour")
    assert first["reason"] not in answer.text
    assert second["request_id"] == made.headers["X-Request-Id"]
    assert second["request_id"].isalnum()


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_token_is_ever_logged(tmp_path: Path, form: str) -> None:
    token = tokens.make()
    with serving(tmp_path, "--log-format", form, "--log-level", "debug") as (guest, log):
        for path, headers in (
            ("/v1/identity", {"Authorization": f"Bearer {token}"}),
            ("/v1/identity", {"Authorization": token}),
            (f"/v1/identity?token={token}", {}),
            (f"/{token}", {}),
            (f"/v1/vms/{token}/identity", {}),
            ("/v1/identity", {"X-Request-Id": token}),
            ("/v1/identity", {"Host": token}),
            ("/v1/identity", {"Via": token}),
        ):
            assert guest.get(path, headers=headers).status_code >= 400
        eventually(lambda: "refused" in log.read_text())
    assert token not in log.read_text()
    assert token.removeprefix(tokens.PREFIX) not in log.read_text()


def test_what_a_guest_sends_begins_no_line_and_fills_no_disk(tmp_path: Path) -> None:
    limits = {"ENABLER_LIMITS__REQUESTS_PER_SECOND": "0"}
    os.environ.update(limits)
    try:
        with serving(tmp_path) as (guest, log):
            before = len(log.read_text().splitlines())
            for _ in range(300):
                guest.get("/v1/vms/%0aCRITICAL%20forged/identity")
            lines = log.read_text().splitlines()[before:]
    finally:
        for name in limits:
            del os.environ[name]
    assert 0 < len(lines) <= 20
    assert not any(line.startswith("CRITICAL") for line in lines)
