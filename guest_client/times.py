"""Times as the contract and the reports write them: RFC 3339, UTC, with milliseconds. Pure."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone

WallClock = Callable[[], datetime]
"""Gives the time of day, aware and in UTC."""

_WRITTEN = len("2026-11-23T02:37:29.304Z")


def utc_now() -> datetime:
    """Give the time of day."""
    return datetime.now(timezone.utc)


def rfc3339(moment: datetime) -> str:
    """Write a moment, as in ``2026-11-23T02:37:29.304Z``."""
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(timestamp: str) -> datetime:
    """Read what :func:`rfc3339` writes; raises ``ValueError``."""
    if len(timestamp) == _WRITTEN and timestamp[-1] == "Z":
        # strptime comes with modules of its own, which take longer than a scan's whole report.
        with suppress(ValueError):
            moment = datetime.fromisoformat(timestamp[:-1])
            if moment.tzinfo is None:
                return moment.replace(tzinfo=timezone.utc)
    return datetime.strptime(timestamp, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
