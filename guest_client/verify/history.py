"""Where a VM has been: the chain of its hosts' entries, read, and verified if there are keys.

No I/O. A chain that is whole has no finding:

    reason                what was found
    --------------------  -----------------------------------------------------------------------
    malformed, algorithm-refused, wrong-type, unknown-key, bad-signature
                          an entry, a checkpoint or the statement is not some known host's word
    wrong-vm              it is another VM's
    broken-link           an entry was removed, altered, added or put elsewhere
    beginning-cut-off     what came before the first entry was removed
    end-cut-off           what came after the last entry was removed
    no-statement          nobody says that this is all of it
    begun-anew            a host found a chain that did not hold, and began a new one
    unknown-before        the VM arrived from somewhere, and nothing tells from where
    elsewhere             it returned to the host it was last seen on: it was elsewhere meanwhile
    present-missing       the present stay is not in it (yet)
    out-of-order          a stay began before the one that came before it

A stay's end is told by its departure (the VM was stopped), or by the next arrival if that came by
live migration. Else it is known only that it had ended by then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from guest_client.attest import payload
from guest_client.text import printable
from guest_client.times import parse_time
from guest_client.verify.keyring import Keyring
from guest_client.verify.refusal import Refusal

STAY = "vm-enabler-stay+jwt"
CHECKPOINT = "vm-enabler-checkpoint+jwt"
STATEMENT = "vm-enabler-history+jwt"
CLOCKS_APART = 300
"""Seconds that two hosts' clocks may differ."""

_MOST = 1000


@dataclass(frozen=True)
class Finding:
    """What is not as it should be; ``seq`` is the entry's place in the chain, if it is one's."""

    reason: str
    sentence: str
    seq: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Give it for programs."""
        return {"reason": self.reason, "seq": self.seq, "sentence": self.sentence}


@dataclass
class Stay:
    """One stay, as its host told it."""

    component_id: str
    machine: Mapping[str, Any]
    residency_id: str
    since: str
    arrived_by: str
    signed_with: str | None
    """The ID of the key that it is verified with; None: it is not."""
    until: str | None = None
    until_told_by: str | None = None
    """``departure``, ``next-arrival``, or ``latest``: it had ended by then."""

    @property
    def host(self) -> str:
        """The real machine, in a few words."""
        kind = "-".join(str(self.machine[k]) for k in ("type", "model") if self.machine.get(k))
        words = (self.machine.get("manufacturer"), kind, self.machine.get("serial_number"))
        return printable(" ".join(str(word) for word in words if word)) or self.component_id[:20]

    def as_dict(self) -> dict[str, Any]:
        """Give it for programs."""
        return {
            "component_id": self.component_id,
            "machine": dict(self.machine),
            "residency_id": self.residency_id,
            "from": self.since,
            "until": self.until,
            "until_told_by": self.until_told_by,
            "arrived_by": self.arrived_by,
            "signed_with": self.signed_with,
        }


@dataclass
class History:
    """Where a VM has been, and what is not as it should be. ``dropped`` entries are not kept."""

    vm_uuid: str
    dropped: int = 0
    stays: list[Stay] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Give it for programs."""
        return {
            "vm_uuid": self.vm_uuid,
            "whole": not self.findings,
            "dropped": self.dropped,
            "stays": [stay.as_dict() for stay in self.stays],
            "findings": [finding.as_dict() for finding in self.findings],
        }


def read_history(document: object, keyring: Keyring | None) -> History:
    """Read a history document, and verify it if there is a keyring. Raises :class:`Refusal` if it
    is none.
    """
    return _Reader(document, keyring).read()


class _Reader:
    def __init__(self, document: object, keyring: Keyring | None) -> None:
        if not isinstance(document, dict) or not isinstance(document.get("vm_uuid"), str):
            raise _no_history()
        entries = document.get("entries")
        if not isinstance(entries, list) or len(entries) > _MOST:
            raise _no_history()
        self._document = document
        self._entries = entries
        self._keyring = keyring
        self._found = History(document["vm_uuid"])
        self._apart: set[str] = set()
        """The residencies that nothing ties to the stay before."""

    def read(self) -> History:
        claims, before = None, None
        for number, entry in enumerate(self._entries):
            seen = self._entry(entry, number)
            if number == 0:
                self._beginning(seen)
            else:
                self._link(seen, claims, before)
            claims, before = seen, entry
        self._statement(before)
        self._ends()
        return self._found

    def _entry(self, entry: object, number: int) -> Mapping[str, Any]:
        what = f"entry {number + 1} of {len(self._entries)}"
        claims, kid = self._open(entry, STAY, what)
        residency, machine = claims.get("residency"), claims.get("machine")
        if not claims:
            return claims
        if not isinstance(residency, dict) or claims.get("event") not in ("arrival", "departure"):
            self._find("malformed", f"{what} tells of no stay", claims)
            return claims
        texts = [residency.get(name) for name in ("id", "since", "arrived_by")]
        if not all(isinstance(text, str) for text in texts) or _seconds(texts[1]) is None:
            self._find("malformed", f"{what} tells of no stay", claims)
            return claims
        stay_id, since, arrived_by = (str(text) for text in texts)
        stays = self._found.stays
        if claims["event"] == "departure":
            if stays and stays[-1].residency_id == stay_id:
                stays[-1].until, stays[-1].until_told_by = str(claims.get("until")), "departure"
            return claims
        machine = machine if isinstance(machine, dict) else {}
        stays.append(Stay(str(claims.get("iss")), machine, stay_id, since, arrived_by, kid))
        return claims

    def _open(self, token: object, kind: str, what: str) -> tuple[Mapping[str, Any], str | None]:
        """Give what a token says, and the key that it is verified with."""
        kid = None
        claims: Mapping[str, Any] = {}
        try:
            if self._keyring is not None:
                signed = self._keyring.open(token, kind, what)
                claims, kid = signed.claims, signed.kid
        except Refusal as refusal:
            told = _unverified(token)
            host = f" (it says that it is of {told['iss']})" if "iss" in told else ""
            self._find(refusal.reason, f"{refusal.sentence}{printable(host, 120)}", told)
        if not claims:
            claims = _unverified(token)
            if not claims and self._keyring is None:
                self._find("malformed", f"{what} is no signed statement (JWS)", {})
        if claims and claims.get("vm") != self._found.vm_uuid:
            other = printable(str(claims.get("vm")), 60)
            self._find("wrong-vm", f"{what} is of another VM: {other}", claims)
        return claims, kid

    def _beginning(self, claims: Mapping[str, Any]) -> None:
        checkpoint = self._document.get("checkpoint")
        seq, previous = claims.get("seq"), claims.get("previous")
        if checkpoint is not None:
            cut, _ = self._open(checkpoint, CHECKPOINT, "the checkpoint")
            dropped = cut.get("dropped")
            if isinstance(dropped, int) and dropped > 0:
                self._found.dropped = dropped
            if (dropped, cut.get("last")) != (seq, previous):
                self._find(
                    "beginning-cut-off",
                    "the first entry does not follow on what the checkpoint says was dropped",
                    claims,
                )
        elif seq != 0 or previous is not None:
            self._find(
                "beginning-cut-off",
                f"the first entry is number {seq} of the chain, counted from 0, and nothing stands"
                " for those before it: they were removed",
                claims,
            )
        elif claims.get("gap") is not None:
            gap = claims["gap"]
            why = gap.get("reason") if isinstance(gap, dict) else gap
            self._find(
                "begun-anew",
                "the first host here found a chain that did not hold"
                f" ({printable(str(why), 60)}), and began a new one",
                claims,
            )
        elif self._found.stays and self._found.stays[0].arrived_by not in ("start", "unknown"):
            self._find(
                "unknown-before",
                f"the VM came to the first host by {self._found.stays[0].arrived_by}, and nothing"
                " tells where it was before",
                claims,
            )

    def _link(
        self, claims: Mapping[str, Any], former: Mapping[str, Any] | None, before: object
    ) -> None:
        assert former is not None
        seq, last = claims.get("seq"), former.get("seq")
        follows = isinstance(seq, int) and isinstance(last, int) and seq == last + 1
        if not follows or claims.get("previous") != _digest(before):
            self._find(
                "broken-link",
                f"between the entries with the numbers {last} and {seq} one was removed, altered,"
                " added or put elsewhere",
                claims,
            )
            self._apart.add(self._found.stays[-1].residency_id if self._found.stays else "")
        if len(self._found.stays) < 2 or claims.get("event") != "arrival":
            return
        old, new = self._found.stays[-2:]
        if old.component_id == new.component_id and new.arrived_by == "migration":
            self._find(
                "elsewhere",
                f"the VM returned to {new.host} by migration: it was elsewhere before, and that"
                " host wrote no entry",
                claims,
            )
            self._apart.add(new.residency_id)
        earlier, later = _seconds(old.since), _seconds(new.since)
        if earlier is not None and later is not None and later < earlier - CLOCKS_APART:
            self._find(
                "out-of-order", f"the stay of {new.since} follows on that of {old.since}", claims
            )

    def _statement(self, last: object) -> None:
        token = self._document.get("statement")
        if token is None:
            self._find("no-statement", "no host says that these are all the entries", {})
            return
        claims, _ = self._open(token, STATEMENT, "the statement of the whole")
        wanted = None if last is None else _digest(last)
        if (claims.get("count"), claims.get("last")) != (len(self._entries), wanted):
            self._find(
                "end-cut-off",
                f"the present host says that there are {printable(str(claims.get('count')), 20)}"
                f" entries and which is the last; here are {len(self._entries)}: some were removed"
                " or added",
                {},
            )
            return
        residency = claims.get("residency")
        present = residency.get("id") if isinstance(residency, dict) else None
        if not self._found.stays or self._found.stays[-1].residency_id != present:
            self._find(
                "present-missing",
                "the present stay is not in it; if the VM has just arrived, ask again",
                {},
            )

    def _ends(self) -> None:
        for stay, following in zip(self._found.stays, self._found.stays[1:]):
            if stay.until is None:
                tied = following.residency_id not in self._apart
                moved = tied and following.arrived_by == "migration"
                stay.until = following.since
                stay.until_told_by = "next-arrival" if moved else "latest"

    def _find(self, reason: str, sentence: str, claims: Mapping[str, Any]) -> None:
        seq = claims.get("seq")
        place = seq if isinstance(seq, int) else None
        self._found.findings.append(Finding(reason, sentence, place))


def _unverified(token: object) -> Mapping[str, Any]:
    try:
        return payload(token) if isinstance(token, str) else {}
    except ValueError:
        return {}


def _digest(token: object) -> str:
    return hashlib.sha256(str(token).encode()).hexdigest()


def _seconds(time: object) -> float | None:
    try:
        return parse_time(str(time)).timestamp()
    except (ValueError, OverflowError):
        return None


def _no_history() -> Refusal:
    return Refusal(
        "malformed", "this is no history of a VM; name what `guest-client history --json` printed"
    )
