"""The report of a guarded scan: what was read, run and decided, as one JSON document.

It is written whatever came of the scan: also when it was unverified, when the scanner was not
started, and when a signal ended it. Times are RFC 3339 in UTC, sizes bytes, digests SHA-256 in hex.
Members (additive; ``report_version`` counts incompatible changes):

    report_version    1
    client            {"name", "version"}
    command           the scanner and its arguments
    enabler           where the identity was asked for
    started, finished
    verdict           the last attempt's: {"outcome", "reason", "changes", "sentence",
                      "migration_in_progress"}; null if there was none to be given
    before, after     the last attempt's two reads: {"started", "finished", "identity" (the whole
                      document, or null), "error" ({"reason", "message"} or null), "failed_tries"
                      ([{"at", "what"}])}; null for one that was not made
    exit_code         what the client ended with
    error             the one line that it ended with, null if it did not fail
    interrupted_by    the signal that ended it ("SIGINT"), or null
    output            {"destination", "published", "sha256", "bytes"} of the last attempt's output
    kept              where --keep-inconsistent put the last output that was not published, or null
    attempts          one for each time that the scan was begun, in order: {"number", "before",
                      "after", "waited_for_migration" (seconds), "scanner" ({"started", "finished",
                      "exit_code", "signal"} or null), "output" ({"sha256", "bytes"} or null),
                      "verdict"}
    triggers          one for each migration seen that calls for action: {"key", "reason",
                      "recorded" (on disk), "notified" (how the program ended, as "scanner" above,
                      or {"error"}, or null), "signalled" ({"signal", "pid", "error"} or null)}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from guest_client.channel import Read
from guest_client.guard import Verdict
from guest_client.output import Destination, Digest
from guest_client.process import Ended
from guest_client.version import client_version

VERSION = 1


@dataclass(slots=True)
class Attempt:
    """One run of the scanner between two reads, as far as it came."""

    number: int
    before: Read | None = None
    after: Read | None = None
    waited: float = 0.0
    scanner: Ended | None = None
    output: Digest | None = None
    verdict: Verdict | None = None

    def as_dict(self) -> dict[str, Any]:
        """Give the attempt as the report writes it."""
        return {
            "number": self.number,
            "before": _or_null(self.before),
            "after": _or_null(self.after),
            "waited_for_migration": round(self.waited, 3),
            "scanner": ended_as_dict(self.scanner),
            "output": _digest(self.output),
            "verdict": _or_null(self.verdict),
        }


@dataclass(slots=True)
class Reaction:
    """What was done about one migration (or clone, or revert)."""

    key: str
    reason: str
    recorded: bool = False
    notified: dict[str, Any] | None = None
    signalled: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Give the reaction as the report writes it."""
        return {
            "key": self.key,
            "reason": self.reason,
            "recorded": self.recorded,
            "notified": self.notified,
            "signalled": self.signalled,
        }


@dataclass(slots=True)
class Report:
    """The report while it grows."""

    command: Sequence[str]
    enabler: str
    destination: str
    started: str
    finished: str | None = None
    exit_code: int | None = None
    error: str | None = None
    interrupted_by: str | None = None
    published: bool = False
    kept: str | None = None
    attempts: list[Attempt] = field(default_factory=list)
    reactions: list[Reaction] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Give the whole report, as its members above."""
        last = self.attempts[-1] if self.attempts else Attempt(0)
        output = _digest(last.output) or {"sha256": None, "bytes": None}
        return {
            "report_version": VERSION,
            "client": {"name": "guest-client", "version": client_version()},
            "command": list(self.command),
            "enabler": self.enabler,
            "started": self.started,
            "finished": self.finished,
            "verdict": _or_null(last.verdict),
            "before": _or_null(last.before),
            "after": _or_null(last.after),
            "exit_code": self.exit_code,
            "error": self.error,
            "interrupted_by": self.interrupted_by,
            "output": {"destination": self.destination, "published": self.published, **output},
            "kept": self.kept,
            "attempts": [attempt.as_dict() for attempt in self.attempts],
            "triggers": [reaction.as_dict() for reaction in self.reactions],
        }

    def write(self, destination: Destination) -> None:
        """Publish the report in one step; raises :class:`~guest_client.errors.OutputError`."""
        spool = destination.spool()
        try:
            spool.stream.write(json.dumps(self.as_dict(), indent=2).encode() + b"\n")
            spool.stream.flush()
            destination.publish(spool)
        finally:
            spool.discard()


def ended_as_dict(ended: Ended | None) -> dict[str, Any] | None:
    """Give how a program ended as reports and triggers write it."""
    if ended is None:
        return None
    return {
        "started": ended.started,
        "finished": ended.finished,
        "exit_code": ended.exit_code,
        "signal": ended.signal,
    }


def _or_null(part: Read | Verdict | None) -> dict[str, Any] | None:
    return None if part is None else part.as_dict()


def _digest(digest: Digest | None) -> dict[str, Any] | None:
    return None if digest is None else {"sha256": digest.sha256, "bytes": digest.size}
