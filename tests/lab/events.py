"""The witness: what libvirt itself says happened, written down by virsh.

On every host a `virsh event --loop --all --timestamp` runs from the start and writes to the
host's log. It shares no code with the enabler, so tests can take the truth from it. While
libvirtd is down nobody is told anything; the log then has a mark where recording began again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_LINE = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3})\+0000: "
    r"event '(?P<kind>[^']+)' for domain '(?P<domain>[^']+)'(?:: ?(?P<detail>.*))?"
)

# `uri` makes virsh print one line when it is connected and about to register for the events.
_RECORDER = """
while :; do
    virsh -k 0 -q -c qemu:///system 'uri; event --loop --all --timestamp'
    sleep 0.1
done
"""
_MARK = "qemu:///system"


@dataclass(frozen=True, slots=True)
class Event:
    """One event as virsh printed it."""

    time: datetime
    host: str
    kind: str  # "lifecycle", "job-completed", "migration-iteration", …
    domain: str
    detail: str  # "Started Migrated", …

    def __str__(self) -> str:
        stamp = self.time.strftime("%H:%M:%S.%f")[:-3]
        return f"{stamp} {self.host} {self.domain} {self.kind}: {self.detail}"


def recorder_command() -> str:
    """Shell text of the recorder: it connects again whenever libvirtd is back."""
    return _RECORDER


def recording_count(log: Path) -> int:
    """How many times recording has begun."""
    if not log.exists():
        return 0
    return sum(line.strip() == _MARK for line in log.read_text(errors="replace").splitlines())


def parse_events(text: str, host: str) -> list[Event]:
    """The events of a recorder's log, in its order."""
    found = []
    for match in map(_LINE.match, text.splitlines()):
        if match:
            time = datetime.fromisoformat(match["time"]).replace(tzinfo=UTC)
            detail = (match["detail"] or "").strip()
            found.append(Event(time, host, match["kind"], match["domain"], detail))
    return found


def arrivals(events: Iterable[Event], domain: str) -> list[Event]:
    """When a domain began to run on a host because it was migrated there, by time.

    Pre-copy: "Resumed Migrated" on the destination. Post-copy: "Resumed Post-copy" comes
    first, and from that moment the guest runs there; the "Resumed Migrated" that follows on
    the same host is the end of the same migration, not another arrival.
    """
    seen: list[Event] = []
    in_postcopy: set[str] = set()
    lifecycle = [e for e in events if e.domain == domain and e.kind == "lifecycle"]
    for event in sorted(lifecycle, key=lambda e: e.time):
        if event.detail == "Resumed Post-copy":
            seen.append(event)
            in_postcopy.add(event.host)
        elif event.detail == "Resumed Migrated":
            if event.host in in_postcopy:
                in_postcopy.discard(event.host)
            else:
                seen.append(event)
    return seen
