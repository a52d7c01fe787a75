"""One guest's malformed requests and slow connections are nothing to another guest."""

from __future__ import annotations

from pathlib import Path

from tests.bench.neighbour import abused, reads, two_guests


def test_a_guest_is_answered_whatever_another_does(tmp_path: Path) -> None:
    with two_guests(tmp_path) as net, abused(net, malformed=500, slow=200):
        reads(net, 50)  # asserts that each is answered
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert log.count("disconnected") < 50, "a guest fills the log"
