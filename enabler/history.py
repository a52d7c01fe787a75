"""Where a VM has been: a chain of signed entries that travels in its domain metadata. Pure.

Each host adds an entry when a VM has arrived, in the live domain, with which it migrates, and in
the persistent one, so that it is there after a power-off. An entry is a JWS (`enabler.attestation`)
with these claims:

    iss, iat    the host component ID of the host that wrote it, and when
    vm          the VM's UUID
    seq         its place in the chain, from 0
    previous    the SHA-256 of the entry before it, as it was sent, in hex; null if there is none
    event       "arrival", or "departure": the VM was stopped, and its domain is still here
    residency   the stay: {"id", "since", "arrived_by"}
    machine     the host's machine identity (arrivals)
    until       when the stay ended (departures)
    order       the stay's place among all stays of the VM (arrivals), see `order`
    gap         why a chain that was found is not continued: only in the first entry of a new one

A live migration away can't be told where it happens: libvirt changes no metadata of a domain that
is being moved, and what the source writes after the switch-over travels no more. The next host's
arrival tells it.

At most `MOST` entries are kept. What takes the place of older ones is a checkpoint: {"iss", "iat",
"vm", "dropped" (how many), "last" (the SHA-256 of the last of them)}.

What is found in the metadata is text that a VM's owner may control. A host has no other host's keys
and verifies no signature; it looks whether the links hold (`read`), and a chain with a flaw is
left behind: the new one says so. Whoever has the keys finds the rest (``guest-client history``).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from enabler.documents import timestamp
from enabler.events import Carried, Stay

NAMESPACE = "urn:vm-enabler:history:1"
"""The XML namespace of the chain's element in a domain's ``<metadata>``."""

STAY = "vm-enabler-stay+jwt"
CHECKPOINT = "vm-enabler-checkpoint+jwt"
STATEMENT = "vm-enabler-history+jwt"
"""The ``typ`` of an entry, of a checkpoint, and of a host's statement of a whole chain."""

MOST = 32
"""Entries that are kept."""

LONGEST = 4096
"""Characters of one entry; ours have some 900."""

_HIGHEST = 1 << 53
"""What every reader of JSON can take as a whole number (RFC 8259, 6)."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

Sign = Callable[[str, Mapping[str, Any]], str]
"""Signs claims as a type of statement; raises `enabler.errors.SigningUnavailable`."""


def read(root: Element, vm_uuid: str) -> Carried:
    """Return the chain in a domain's XML; one that can't be continued with its ``flaw``."""
    found = root.findall(f"metadata/{{{NAMESPACE}}}history")
    if not found:
        return Carried()
    if len(found) > 1 or len(found[0]) > MOST + 1:
        return Carried(flaw="too-long")
    tokens: dict[str, list[str]] = {"checkpoint": [], "entry": []}
    for child in found[0]:
        name, text = child.tag.rpartition("}")[2], (child.text or "").strip()
        if name not in tokens or len(text) > LONGEST or not _TOKEN.fullmatch(text):
            return Carried(flaw="malformed")
        tokens[name].append(text)
    checkpoints, entries = tokens["checkpoint"], tuple(tokens["entry"])
    if len(checkpoints) > 1 or not entries:
        return Carried(flaw="malformed")
    checkpoint = checkpoints[0] if checkpoints else None
    return _look(vm_uuid, checkpoint, entries)


def element(carried: Carried) -> str:
    """Return the metadata element of a chain."""
    root = Element("history")
    if carried.checkpoint is not None:
        SubElement(root, "checkpoint").text = carried.checkpoint
    for entry in carried.entries:
        SubElement(root, "entry").text = entry
    return tostring(root, encoding="unicode")


def last_entry(element: str) -> str:
    """Return the last entry in the metadata element of a chain of ours."""
    return element.rpartition("<entry>")[2].partition("<")[0]


class Archive:
    """Writes for one host. ``machine`` is its identity, as the contract has it."""

    def __init__(self, component_id: str, machine: Mapping[str, Any], sign: Sign) -> None:
        self._component_id = component_id
        self._machine = dict(machine)
        self._sign = sign

    def has(self, carried: Carried, stay: Stay) -> bool:
        """Return whether a chain tells of a stay's beginning."""
        return carried.flaw is None and stay.id in carried.stays

    def arrival(self, carried: Carried, vm_uuid: str, stay: Stay, now: datetime) -> Carried:
        """Return the chain with a stay's beginning. Raises `SigningUnavailable`."""
        what: dict[str, Any] = {
            "event": "arrival",
            "residency": _residency(stay),
            "machine": self._machine,
            "order": order(carried, stay),
        }
        if carried.flaw is not None:
            what["gap"] = {"reason": carried.flaw}
            carried = Carried()
        return self._append(carried, vm_uuid, what, now)

    def departure(
        self, carried: Carried, vm_uuid: str, stay: Stay, until: datetime, now: datetime
    ) -> Carried:
        """Return the chain with a stay's end. Raises `SigningUnavailable`."""
        what = {"event": "departure", "residency": _residency(stay), "until": timestamp(until)}
        return self._append(carried, vm_uuid, what, now)

    def statement(self, carried: Carried, vm_uuid: str, stay: Stay, now: datetime) -> str:
        """Sign what a VM's chain is at this moment, so that nobody can cut its end off.

        Raises `SigningUnavailable`.
        """
        last = carried.entries[-1] if carried.entries else None
        return self._sign(
            STATEMENT,
            self._head(vm_uuid, now)
            | {
                "residency": _residency(stay),
                "count": len(carried.entries),
                "last": None if last is None else digest(last),
                "flaw": carried.flaw,
            },
        )

    def _append(
        self, carried: Carried, vm_uuid: str, what: dict[str, Any], now: datetime
    ) -> Carried:
        previous, seq = None, 0
        if carried.entries:
            previous, seq = digest(carried.entries[-1]), _claims(carried.entries[-1])["seq"] + 1
        head = self._head(vm_uuid, now) | {"seq": seq, "previous": previous}
        entries = (*carried.entries, self._sign(STAY, head | what))
        checkpoint, kept = carried.checkpoint, entries[-MOST:]
        if kept != entries:
            first = _claims(kept[0])
            dropped = {"dropped": first["seq"], "last": first["previous"]}
            checkpoint = self._sign(CHECKPOINT, self._head(vm_uuid, now) | dropped)
        return _look(vm_uuid, checkpoint, kept)

    def _head(self, vm_uuid: str, now: datetime) -> dict[str, Any]:
        return {"iss": self._component_id, "iat": int(now.timestamp()), "vm": vm_uuid}


def order(carried: Carried, stay: Stay) -> int:
    """Return a number that is greater than that of every stay that the VM had before this one.

    It is when the stay began, in milliseconds since 1970, but later than the stay before it in the
    chain (a hybrid logical clock: Kulkarni and others, 2014). So two hosts whose clocks differ are
    put right by the chain that the VM brought; their clocks alone decide where the chain does not
    tell (a host that could not write its entry, a domain that was made anew or reverted).
    """
    since = _milliseconds(stay.since)
    if carried.flaw is not None or carried.latest is None:
        return since
    stay_id, number = carried.latest
    return number if stay_id == stay.id else max(since, number + 1)


def digest(token: str) -> str:
    """Return what the next entry calls this one: its SHA-256 in hex."""
    return hashlib.sha256(token.encode()).hexdigest()


@lru_cache(maxsize=1024)
def _look(vm_uuid: str, checkpoint: str | None, entries: tuple[str, ...]) -> Carried:
    """Return a chain that was looked through; one that is seen again and again, only once."""
    claims = [_claims(entry) for entry in entries]
    flaw = _flaw(vm_uuid, checkpoint, entries, claims)
    arrivals = (_stay_id(claim) for claim in claims if claim.get("event") == "arrival")
    stays = frozenset(stay for stay in arrivals if isinstance(stay, str))
    return Carried(checkpoint, entries, flaw, stays, _latest(claims))


def _latest(claims: list[dict[str, Any]]) -> tuple[str, int] | None:
    """Return the last arrival's stay, and its `order`."""
    stay_id, number = None, -1
    for claim in claims:
        if claim.get("event") != "arrival":
            continue
        signed, since = claim.get("order"), _since(claim)
        if not isinstance(signed, int):  # an entry from before there was an order
            signed = -1 if since is None else _milliseconds(since)
        stay_id, number = _stay_id(claim), max(signed, number + 1)
    return (stay_id, number) if isinstance(stay_id, str) and number < _HIGHEST else None


def _since(claims: Mapping[str, Any]) -> datetime | None:
    residency = claims.get("residency")
    try:
        since = datetime.fromisoformat(residency["since"]) if isinstance(residency, dict) else None
    except (KeyError, TypeError, ValueError):
        return None
    return since if since is not None and since.tzinfo is not None else None


def _milliseconds(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def _flaw(
    vm_uuid: str, checkpoint: str | None, entries: tuple[str, ...], claims: list[dict[str, Any]]
) -> str | None:
    if any(claim.get("vm") != vm_uuid for claim in claims):
        return "another-vm"
    seq, previous = claims[0].get("seq"), claims[0].get("previous")
    if not isinstance(seq, int) or seq < 0 or (seq == 0) != (previous is None):
        return "malformed"
    if checkpoint is not None or seq:
        cut = {} if checkpoint is None else _claims(checkpoint)
        if (cut.get("vm"), cut.get("dropped"), cut.get("last")) != (vm_uuid, seq, previous):
            return "broken-link"
    for before, claim in zip(entries, claims[1:], strict=False):
        seq += 1
        if (claim.get("seq"), claim.get("previous")) != (seq, digest(before)):
            return "broken-link"
    return None


def _claims(token: str) -> dict[str, Any]:
    """Return what a token says, verified by nobody; nothing if it is none."""
    part = token.split(".")[1]
    try:
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def _stay_id(claims: Mapping[str, Any]) -> object:
    residency = claims.get("residency")
    return residency.get("id") if isinstance(residency, dict) else None


def _residency(stay: Stay) -> dict[str, str]:
    since = timestamp(stay.since)
    return {"id": stay.id, "since": since, "arrived_by": stay.arrived_by.value}
