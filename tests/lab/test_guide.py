"""deploy/README.md's guide works word for word."""

from __future__ import annotations

import json

import pytest

from tests.lab import guide
from tests.lab.lab import Lab

pytestmark = pytest.mark.lab


def test_the_guide_followed_word_for_word(settled: Lab) -> None:
    guide.follow(settled)
    report = json.loads(settled.guests[0].read_file("/root/report.json"))
    outcomes = [attempt["verdict"]["outcome"] for attempt in report["attempts"]]
    assert outcomes == ["inconsistent", "consistent"]
    assert settled.guests[0].host is settled.hosts[1]
