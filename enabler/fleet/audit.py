"""What does not fit in what the hosts told: each word against its signature, its neighbours' words,
and the history that the VM carries; the buckets against the stream. Pure.

    reason             what was found
    -----------------  ---------------------------------------------------------------------------
    not-an-event       a message in the stream that is none
    wrong-subject      published where another host's, VM's or kind's events are
    unsigned, wrong-type, unknown-key, bad-signature, wrong-issuer, malformed
                       an event, or a history's entry in it, is not its host's word
    two-machines       two machines publish as one host
    events-missing     a host's events have a hole in their numbers
    events-lost        a host gave events up, as its spool was full
    refused            the servers refused a host's events for a while: it had another host's
                       credentials, or none that they know
    bucket-malformed   what a bucket has under a key is no event, or one of another VM or host
    bucket-not-told    the bucket has an event of a VM that is not in the stream
    bucket-outdated    the bucket has not the word on a VM that counts, by the stream
    overlap            a VM was on two hosts at once, by their own words
    gap                a VM was moved away, and nobody told where to
    unknown-before     a VM arrived by migration, and nobody told that it was anywhere before
    not-in-history     a stay that was told is not in the VM's own history
    broken-link        an entry of the history does not follow the one before it
    not-told           an entry of the history, or one that a VM brought, is of nothing told
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from sys import intern
from typing import Any

from enabler.documents import timestamp
from enabler.fleet.advice import ADVICE
from enabler.fleet.event import (
    ARRIVALS,
    EVENTS_LOST,
    HOST_SEEN,
    HOST_STOPPED,
    RECORDED,
    REFUSED,
    Event,
    Mark,
)
from enabler.fleet.keyring import Keyring, NotSigned, unverified
from enabler.fleet.numbers import Numbers
from enabler.fleet.timeline import Stay, Timeline
from enabler.history import digest

SETTLING = timedelta(minutes=2)
"""For how long what was told a moment ago may lack what follows from it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not fit."""

    reason: str
    sentence: str
    host: str | None = None
    vm: str | None = None
    at: datetime | None = None

    def as_dict(self) -> dict[str, Any]:
        """Give it for programs."""
        at = None if self.at is None else timestamp(self.at)
        return {
            "reason": self.reason,
            "host": self.host,
            "vm": self.vm,
            "at": at,
            "sentence": self.sentence,
            "advice": ADVICE[self.reason],
        }


@dataclass(frozen=True, slots=True)
class Entry:
    """What is kept of an entry of a VM's history."""

    seq: int
    is_arrival: bool
    residency: str | None
    previous: str | None
    host: str
    at: datetime


@dataclass(frozen=True, slots=True)
class _Counting:
    """What is kept of the event that counts."""

    claim: tuple[int, str, Mark]
    id: str
    at: datetime


class Audit:
    """Takes events in, in any order, and tells what does not fit.

    ``keyring`` None: signatures are only looked for, not verified. ``tolerance`` is by how much
    two hosts' clocks may differ. Not ``whole``: of one VM alone, so that numbers have holes.
    """

    def __init__(
        self, keyring: Keyring | None, tolerance: timedelta, *, whole: bool = True
    ) -> None:
        self._whole = whole
        self._keyring = keyring
        self._tolerance = tolerance
        self._timeline = Timeline()
        self._seen: dict[tuple[str, str], Numbers] = {}
        """The numbers of each host's events, by its spool: an event's ID is these three."""
        self._believed: dict[tuple[str, str], Numbers] = {}
        self._machines: dict[str, str] = {}
        self._heard: dict[str, datetime] = {}
        self._entries: dict[str, dict[str, Entry]] = {}
        self._brought: list[tuple[str, str | None, datetime, str]] = []
        self._findings: list[Finding] = []
        self._counting: dict[str, _Counting] = {}
        """Of each VM the event of the stream that counts: what the bucket should have."""
        self._oldest: datetime | None = None
        self._newest: datetime | None = None

    def add_flawed(self, topic: str, why: str, stored_at: datetime) -> None:
        """Take a message in that is no event."""
        self._findings.append(Finding("not-an-event", f"on {topic}: {why}", at=stored_at))

    def add(self, topic: str, event: Event) -> None:
        """Take an event in, and where it was published."""
        if topic != event.topic:
            self._find("wrong-subject", f"it was published on {topic}", event)
        numbers = (intern(event.host), event.mark.spool)
        self._seen.setdefault(numbers, Numbers()).add(event.mark.number)
        if not self._is_hosts_word(event):
            return  # what nobody stands for proves nothing, and takes no ID from its host
        if not self._believed.setdefault(numbers, Numbers()).add(event.mark.number):
            return
        known = self._machines.setdefault(event.host, event.component_id)
        if known != event.component_id:
            self._find("two-machines", f"{known} and {event.component_id} are one host", event)
        first = self._heard.setdefault(known, event.time)
        if event.time < first:
            self._heard[known] = event.time
        self._newest = max(self._newest or event.time, event.time)
        self._oldest = min(self._oldest or event.time, event.time)
        if event.kind in (EVENTS_LOST, REFUSED):
            told = event.data.get("lost") or event.data.get("refused")
            self._find(event.kind, json.dumps(told), event)
        if event.kind == RECORDED:
            self._add_entry(event)
        elif event.kind in ARRIVALS and isinstance(event.data.get("carried"), str):
            carried = event.data["carried"]
            self._brought.append((intern(event.host), event.vm, event.time, carried))
        if event.vm is not None and event.kind != RECORDED:
            claim, counting = event.claim, self._counting.get(event.vm)
            if counting is None or claim > counting.claim:
                self._counting[event.vm] = _Counting(claim, event.id, event.time)
        self._timeline.add(event)

    def add_claim(self, vm: str, event: Event | None) -> None:
        """Take in what the bucket holds of a VM, once all of the stream was: its host's word too.

        The stream gets each event before the bucket does. What is older than the stream's first
        event may have been there.
        """
        if event is None or event.vm != vm or event.kind == RECORDED:
            self._flawed_key("VMs", vm, event)
            return
        told, counting = self._has_seen(event), self._counting.get(vm)
        if not told and self._oldest is not None and event.time >= self._oldest:
            self._find("bucket-not-told", "the bucket has it, and the stream has not", event)
        if not self._is_hosts_word(event):
            return
        if not told:
            self._timeline.add(event)
        elif counting is None or event.claim > counting.claim:  # none that was told has more
            self._find("bucket-not-told", "the stream has another event by this ID", event)
        if counting is not None and counting.claim > event.claim and self.is_old(counting.at):
            self._find("bucket-outdated", f"in its place should be {counting.id}", event)

    def add_sign(self, host: str, event: Event | None) -> None:
        """Take in what the bucket holds of a host: its last sign of life, by its own word."""
        if event is None or event.host != host or event.kind not in (HOST_SEEN, HOST_STOPPED):
            self._flawed_key("hosts", host, event)
        else:
            self._is_hosts_word(event)

    def findings(self) -> list[Finding]:
        """Return all that does not fit: first of single events, then of hosts, then of VMs."""
        found = list(self._findings)
        for (host, spool), numbers in sorted(self._believed.items()):
            # The stream may have been cut at its beginning: what is too old is no hole.
            if numbers.missing and self._whole:
                sentence = f"{numbers.missing} of its events (spool {spool}) are not there"
                found.append(Finding("events-missing", sentence, host))
        for vm in self._timeline.vms():
            stays = self._timeline.stays(vm)
            found += self._of_neighbours(stays)
            found += self._of_history(vm, stays)
        known = {entry for entries in self._entries.values() for entry in entries}
        for host, of_vm, at, carried in self._brought:
            if carried not in known:
                sentence = f"it brought a history whose last entry ({carried[:12]}…) no host told"
                found.append(Finding("not-told", sentence, host, of_vm, at))
        return found

    def entries(self, vm: str) -> Mapping[str, Entry]:
        """Return the entries of a VM's history that hosts told, by their SHA-256."""
        return self._entries.get(vm, {})

    def heard_since(self, component_id: str) -> datetime | None:
        """Return of when the first event of a machine is; None if there is none."""
        return self._heard.get(component_id)

    def is_old(self, at: datetime | None) -> bool:
        """Return whether what follows from something should have been told by now."""
        return at is not None and self._newest is not None and self._newest - at > SETTLING

    @property
    def counts(self) -> dict[str, int]:
        """Return how much was held against one another."""
        vms = list(self._timeline.vms())
        return {
            "events": sum(len(numbers) for numbers in self._seen.values()),
            "vms": len(vms),
            "stays": sum(len(self._timeline.stays(vm)) for vm in vms),
            "history_entries": sum(len(entries) for entries in self._entries.values()),
        }

    # Inside --------------------------------------------------------------------------------------

    def _find(self, reason: str, sentence: str, event: Event) -> None:
        self._findings.append(
            Finding(reason, f"{event.id}: {sentence}", event.host, event.vm, event.time)
        )

    def _has_seen(self, event: Event) -> bool:
        numbers = self._seen.get((event.host, event.mark.spool))
        return numbers is not None and event.mark.number in numbers

    def _flawed_key(self, bucket: str, key: str, event: Event | None) -> None:
        what = "no event" if event is None else f"{event.id}, which is of another or another kind"
        sentence = f"the bucket of the {bucket} has under {key} {what}"
        self._findings.append(Finding("bucket-malformed", sentence))

    def _is_hosts_word(self, event: Event) -> bool:
        if event.signature is None:
            self._find("unsigned", "it has no signature", event)
            return self._keyring is None
        if self._keyring is None:
            return True
        try:
            self._keyring.check(event)
        except NotSigned as why:
            self._find(why.reason, str(why), event)
            return False
        return True

    def _add_entry(self, event: Event) -> None:
        token = event.data.get("entry")
        try:
            claims = unverified(token) if self._keyring is None else self._keyring.entry(token)
        except NotSigned as why:
            self._find(why.reason, f"its history's entry: {why}", event)
            return
        seq = claims.get("seq", 0)
        if (
            claims.get("vm") != event.vm
            or claims.get("iss") != event.component_id
            or type(seq) is not int
        ):
            self._find("malformed", "its history's entry is of another VM or host", event)
            return
        stay = claims.get("residency")
        residency = stay.get("id") if isinstance(stay, dict) else None
        previous = claims.get("previous")
        self._entries.setdefault(event.vm or "", {})[digest(str(token))] = Entry(
            seq,
            claims.get("event") == "arrival",
            None if residency is None else str(residency),
            None if previous is None else str(previous),
            intern(event.host),
            event.time,
        )

    def _of_neighbours(self, stays: list[Stay]) -> Iterable[Finding]:
        for before, after in pairwise(stays):
            if before.host == after.host or before.seen_until is None:
                continue
            both = before.seen_until - after.since
            if both > self._tolerance:
                yield Finding(
                    "overlap",
                    f"it was on {before.host} until {timestamp(before.seen_until)}, "
                    f"and on {after.host} from {timestamp(after.since)}",
                    after.host,
                    after.vm,
                    after.since,
                )
        for place, stay in enumerate(stays):
            following = stays[place + 1] if place + 1 < len(stays) else None
            if stay.moved_away and following is None and self.is_old(stay.seen_until):
                sentence = f"it was moved away from {stay.host}, and nobody told where to"
                yield Finding("gap", sentence, stay.host, stay.vm, stay.seen_until)
            if stay.moved_away and following is not None and following.arrived_by != "migration":
                sentence = f"it was moved away from {stay.host}, and then began on {following.host}"
                yield Finding("gap", sentence, stay.host, stay.vm, stay.seen_until)
            if stay.arrived_by == "migration" and not place:
                sentence = f"it arrived on {stay.host}, and nobody told that it was anywhere before"
                yield Finding("unknown-before", sentence, stay.host, stay.vm, stay.since)

    def _of_history(self, vm: str, stays: list[Stay]) -> Iterable[Finding]:
        entries = self._entries.get(vm, {})
        told = {stay.residency for stay in stays}
        written = set()
        oldest = min((each.seq for each in entries.values()), default=0)
        for entry in entries.values():
            if entry.is_arrival:
                written.add(entry.residency)
            if entry.residency not in told:
                sentence = f"the history has a stay {entry.residency} that no host told"
                yield Finding("not-told", sentence, entry.host, vm, entry.at)
            previous = entry.previous
            if previous is not None and previous not in entries and entry.seq > oldest:
                sentence = f"entry {entry.seq} follows one ({previous[:12]}…) that no host told"
                yield Finding("broken-link", sentence, entry.host, vm, entry.at)
        for stay in stays:
            if stay.residency not in written and self.is_old(stay.since):
                sentence = f"the stay on {stay.host} ({stay.residency}) is not in its history"
                yield Finding("not-in-history", sentence, stay.host, vm, stay.since)
