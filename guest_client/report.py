"""The report of a guarded scan: what was read, run and decided, as one JSON document.

It is written whatever came of the scan: also when it was unverified, when the scanner was not
started, and when a signal ended it. Times are RFC 3339 in UTC, sizes bytes, digests SHA-256 in hex.
Members (additive; ``report_version`` counts incompatible changes):

    report_version    1
    client            {"name", "version"}
    enabler           where the identity was asked for
    started, finished
    verdict           the last attempt's: {"outcome", "reason", "changes", "sentence",
                      "migration_in_progress"}; null if there was none to be given
    before, after     the last attempt's two reads: {"started", "finished", "via" (where the enabler
                      was reached, or null), "identity" (the whole document, or null), "attestation"
                      (what it was read from, or null), "error" ({"reason", "message"} or null),
                      "failed_tries" ([{"at", "what"}])}; null for one that was not made
    exit_code         what the client ended with
    error             the one line that it ended with, null if it did not fail
    interrupted_by    the signal that ended it ("SIGINT"), or null
    output            {"destination", "published", "sha256", "bytes"} of the last attempt's output
    kept              where --keep-inconsistent put the last output that was not published, or null
    triggers          one for each migration seen that calls for action: {"key", "reason",
                      "recorded" (on disk), "notified" (how the program ended, as "scanner" below,
                      or {"error"}, or null), "signalled" ({"signal", "pid", "error"} or null)}

and of a scan that is one command (of one that has modules, see ``set_report.py``):

    command           the scanner and its arguments
    attestation       {"seal_version"} if reads were attested (see ``attest.py``), else null
    attempts          one for each time that the scan was begun, in order: {"number", "before",
                      "after", "waited_for_migration" (seconds), "scanner" ({"started", "finished",
                      "exit_code", "signal"} or null), "output" ({"sha256", "bytes"} or null),
                      "verdict"}
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from guest_client.attest import SEAL_VERSION
from guest_client.channel import Read
from guest_client.guard import Verdict
from guest_client.output import Destination, Digest
from guest_client.process import Ended
from guest_client.version import client_version

VERSION = 1


@dataclass
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
            "before": or_null(self.before),
            "after": or_null(self.after),
            "waited_for_migration": round(self.waited, 3),
            "scanner": ended_as_dict(self.scanner),
            "output": digest_as_dict(self.output),
            "verdict": or_null(self.verdict),
        }


@dataclass
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


@dataclass
class Report(ABC):
    """What every report has, while it grows."""

    enabler: str
    destination: str
    started: str
    finished: str | None = field(default=None, init=False)
    exit_code: int | None = field(default=None, init=False)
    error: str | None = field(default=None, init=False)
    interrupted_by: str | None = field(default=None, init=False)
    published: bool = field(default=False, init=False)
    kept: str | None = field(default=None, init=False)
    reactions: list[Reaction] = field(default_factory=list, init=False)

    @abstractmethod
    def last(self) -> Attempt:
        """Give what the whole's verdict, two reads and output digest are taken of."""

    @abstractmethod
    def details(self) -> dict[str, Any]:
        """Give the members that this kind of scan has besides."""

    def as_dict(self) -> dict[str, Any]:
        """Give the whole report, as its members above."""
        last = self.last()
        output = digest_as_dict(last.output) or {"sha256": None, "bytes": None}
        return {
            "report_version": VERSION,
            "client": client_as_dict(),
            "enabler": self.enabler,
            "started": self.started,
            "finished": self.finished,
            "verdict": or_null(last.verdict),
            "before": or_null(last.before),
            "after": or_null(last.after),
            "exit_code": self.exit_code,
            "error": self.error,
            "interrupted_by": self.interrupted_by,
            "output": {"destination": self.destination, "published": self.published, **output},
            "kept": self.kept,
            **self.details(),
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


@dataclass
class ScanReport(Report):
    """The report of a scan that is one command."""

    command: Sequence[str]
    attested: bool = False
    attempts: list[Attempt] = field(default_factory=list, init=False)

    def last(self) -> Attempt:
        """Give the last attempt, or an empty one."""
        return self.attempts[-1] if self.attempts else Attempt(0)

    def details(self) -> dict[str, Any]:
        """Give the command and its attempts."""
        return {
            "command": list(self.command),
            "attestation": {"seal_version": SEAL_VERSION} if self.attested else None,
            "attempts": [attempt.as_dict() for attempt in self.attempts],
        }

    def sealed(self, attempt: Attempt) -> dict[str, Any]:
        """Give what the second attestation of an attempt covers."""
        return {
            "client": client_as_dict(),
            "command": list(self.command),
            "scanner": ended_as_dict(attempt.scanner),
            "output": digest_as_dict(attempt.output),
        }


def client_as_dict() -> dict[str, str]:
    """Say which client wrote something."""
    return {"name": "guest-client", "version": client_version()}


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


def or_null(part: Read | Verdict | None) -> dict[str, Any] | None:
    """Give a read or a verdict as reports write it."""
    return None if part is None else part.as_dict()


def digest_as_dict(digest: Digest | None) -> dict[str, Any] | None:
    """Give a digest as reports write it."""
    return None if digest is None else {"sha256": digest.sha256, "bytes": digest.size}
