"""A history that a VM gave out (``guest-client history --json``), held against what hosts told.
Pure.

Whether the chain holds by itself ``guest-client history FILE --verify`` says, too; what it can't
see is whether the fleet was told the same.

    reason             what was found
    -----------------  ---------------------------------------------------------------------------
    unknown-key, bad-signature, wrong-type, wrong-issuer, malformed
                       an entry, the checkpoint or the statement is no host's word on this VM
    broken-link        an entry does not follow the one before it
    end-cut-off        the statement is of other entries
    not-told           an entry that no host told
    not-exported       a stay that a host told before this was given out, and that is not in it

The end of a stay is not looked for: of a VM that is stopped and started at once it is written into
a domain that has been taken over already.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from enabler.fleet.audit import SETTLING, Audit, Finding
from enabler.fleet.keyring import Keyring, NotSigned, unverified
from enabler.history import CHECKPOINT, STATEMENT, STAY, digest

LARGEST = 1 << 20
"""Bytes of a file that is read; a chain of 32 entries has some 30,000."""

_MOST = 1000
_LAST_SECOND = 253_402_300_799
"""What a datetime can hold."""

_Claims = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Exported:
    """What a VM gave out. ``name`` says in findings which it was."""

    name: str
    vm: str
    checkpoint: object
    entries: tuple[str, ...]
    statement: object


def read(name: str, content: bytes) -> Exported:
    """Read a history document. Raises `ValueError` if it is none."""
    if len(content) > LARGEST:
        raise ValueError("it is too large")
    try:
        document = json.loads(content)
        entries = document["entries"]
        vm = str(UUID(document["vm_uuid"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("it is no history document") from error
    if (
        not isinstance(entries, list)
        or len(entries) > _MOST
        or not all(isinstance(entry, str) for entry in entries)
    ):
        raise ValueError("it is no history document")
    return Exported(name, vm, document.get("checkpoint"), tuple(entries), document.get("statement"))


def compare(exported: Exported, audit: Audit, keyring: Keyring | None) -> list[Finding]:
    """Return what does not fit between a history and all that ``audit`` has taken in.

    ``keyring`` None: signatures are not verified.
    """
    return list(_Comparison(exported, audit, keyring).findings())


class _Comparison:
    def __init__(self, exported: Exported, audit: Audit, keyring: Keyring | None) -> None:
        self._exported = exported
        self._audit = audit
        self._open: Callable[[object, str], _Claims] = (
            keyring.statement if keyring is not None else lambda token, _: unverified(token)
        )

    def findings(self) -> Iterator[Finding]:
        told = self._audit.entries(self._exported.vm)
        before: tuple[str, _Claims] | None = None
        for number, token in enumerate(self._exported.entries):
            try:
                claims = self._claims(token, STAY)
            except NotSigned as why:
                yield self._finding(why.reason, f"its entry {number + 1}: {why}")
                before = None
                continue
            if before is not None and not _follows(claims, *before):
                sentence = f"its entry {claims['seq']} does not follow the one before it"
                yield self._finding("broken-link", sentence, claims)
            before = token, claims
            if digest(token) not in told and self._should_be_told(claims):
                sentence = f"its entry {claims['seq']}, by {claims['iss']}, no host told"
                yield self._finding("not-told", sentence, claims)
        yield from self._lacking()

    def _lacking(self) -> Iterator[Finding]:
        exported = self._exported
        try:
            stated = self._claims(exported.statement, STATEMENT, numbered=False)
        except NotSigned as why:
            yield self._finding(why.reason, f"its host's statement of the whole: {why}")
            return  # of when it is, is not known: what it lacks may have come later
        last = digest(exported.entries[-1]) if exported.entries else None
        if (stated.get("count"), stated.get("last")) != (len(exported.entries), last):
            sentence = f"its host says that it has {stated.get('count')} entries, and which is last"
            yield self._finding("end-cut-off", sentence, stated)
        dropped = 0
        if exported.checkpoint is not None:
            try:
                cut = self._claims(exported.checkpoint, CHECKPOINT, numbered=False)
                dropped = cut["dropped"] if type(cut.get("dropped")) is int else 0
            except NotSigned as why:
                yield self._finding(why.reason, f"its checkpoint: {why}")
        have = {digest(token) for token in exported.entries}
        given_out = _moment(stated)
        for key, entry in self._audit.entries(exported.vm).items():
            if not entry.is_arrival or key in have or entry.seq < dropped:
                continue
            if entry.at > given_out - SETTLING:
                continue
            sentence = f"{exported.name}: the stay {entry.residency}, which was told, is not in it"
            yield Finding("not-exported", sentence, entry.host, exported.vm, entry.at)

    def _claims(self, token: object, kind: str, *, numbered: bool = True) -> _Claims:
        """Return what a token says of this VM. Raises `NotSigned`."""
        claims = self._open(token, kind)
        if claims.get("vm") != self._exported.vm or not isinstance(claims.get("iss"), str):
            raise NotSigned("malformed", "it is of another VM")
        seconds = claims.get("iat")
        if type(seconds) is not int or not 0 <= seconds <= _LAST_SECOND:
            raise NotSigned("malformed", "it has no time")
        if numbered and type(claims.get("seq")) is not int:
            raise NotSigned("malformed", "it has no number")
        return claims

    def _should_be_told(self, claims: _Claims) -> bool:
        """Whether its host told of what happened then: perhaps it did not publish yet, or the
        stream does not go back as far.
        """
        at = _moment(claims)
        since = self._audit.heard_since(claims["iss"])
        return since is not None and since <= at and self._audit.is_old(at)

    def _finding(self, reason: str, sentence: str, claims: _Claims | None = None) -> Finding:
        at = None if claims is None else _moment(claims)
        return Finding(reason, f"{self._exported.name}: {sentence}", vm=self._exported.vm, at=at)


def _follows(claims: _Claims, before: str, former: _Claims) -> bool:
    return (claims["seq"], claims.get("previous")) == (former["seq"] + 1, digest(before))


def _moment(claims: _Claims) -> datetime:
    return datetime.fromtimestamp(claims["iat"], UTC)
