"""Is this report of a scan what it says it is? Attestations in, proof or refusal out. No I/O.

    reason                what was found
    --------------------  -----------------------------------------------------------------------
    malformed             not a report of a scan, or an attestation that is none
    not-attested          the scan was made without --attest
    attestation-stripped  one of the two attestations, or both, was taken out
    algorithm-refused     an attestation is not signed by EdDSA ("none", HS256, ...)
    wrong-type            what a host signed is no attestation
    unknown-key           signed with a key that none of the files has
    bad-signature         altered, or signed by somebody else with a host's key ID
    wrong-issuer          a host speaks for another
    expired, not-yet-valid, too-old
                          not good at the time of the audit; older than --max-age
    replayed              not of the scan that --nonce was given out for
    mixed-pair            the two attestations are not of one scan
    machine-changed       they are, and a migration (or a restore, a revert, ...) came in between
    host-swapped, another-vm, identity-edited
                          the report names another machine, VM, or fact than was attested
    output-edited         the output is not the one that was attested
    report-edited         nor is the command, the scanner's end, or another sealed member
    not-consistent        the report itself says that the scan does not stand

How the attestations are bound to each other and to the output: see ``attest.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from guest_client.attest import SEAL_VERSION, SEALED, first_part, seal_part
from guest_client.errors import IdentityInvalid
from guest_client.guard import describe_machine, judge
from guest_client.identity import Identity, parse_identity
from guest_client.output import Digest
from guest_client.report import VERSION
from guest_client.text import printable
from guest_client.verify.keyring import Keyring, Signed
from guest_client.verify.refusal import Refusal

TYPE = "vm-enabler-attestation+jwt"
CLOCKS_APART = 300
"""Seconds that a host's clock may be ahead of the auditor's."""

FIRST, SECOND = "the attestation before the scan", "the attestation after the scan"


@dataclass(frozen=True)
class Demands:
    """What the auditor asks beyond what a report must have of itself. Times in seconds since 1970,
    ``max_age`` in seconds.
    """

    at: float
    max_age: float | None = None
    nonce: str | None = None
    vm: str | None = None
    output: Digest | None = None
    """Of the output that came with the report, if it did."""


@dataclass(frozen=True)
class Attestation:
    """One attestation, verified."""

    signed: Signed
    identity: Identity
    iat: int
    exp: int
    nonce: str

    @property
    def when(self) -> str:
        """When it was signed, RFC 3339."""
        return _time(self.iat)


@dataclass(frozen=True)
class Proof:
    """What was proven of a scan."""

    before: Attestation
    after: Attestation
    command: tuple[str, ...]
    exit_code: int
    output: Digest
    demands: Demands

    def as_dict(self) -> dict[str, Any]:
        """Give it for programs."""
        identity = self.after.identity
        return {
            "proven": True,
            "reason": None,
            "sentence": self.sentence,
            "vm": {"uuid": identity.vm.uuid, "name": identity.vm.name},
            "component_id": identity.component_id,
            "machine": identity.as_dict()["machine"],
            "capacity": identity.as_dict()["capacity"],
            "residency": identity.as_dict()["residency"],
            "generation_id": identity.vm.generation_id,
            "from": self.before.when,
            "until": self.after.when,
            "expires": _time(min(self.before.exp, self.after.exp)),
            "signed_with": sorted({self.before.signed.kid, self.after.signed.kid}),
            "command": list(self.command),
            "exit_code": self.exit_code,
            "output": {
                "sha256": self.output.sha256,
                "bytes": self.output.size,
                "compared": self.demands.output is not None,
            },
            "not_proven": list(self.not_proven),
        }

    @property
    def sentence(self) -> str:
        """Say in one line what was proven."""
        identity = self.after.identity
        return (
            f"the VM {printable(identity.vm.name)} ({printable(identity.vm.uuid)}) lived on"
            f" {printable(describe_machine(identity))}, in one unbroken stay, from"
            f" {self.before.when} to {self.after.when}, and this output was there at the end of it"
        )

    @property
    def not_proven(self) -> tuple[str, ...]:
        """Say what was not, and how some of it could be."""
        found = [
            "that the scanner told the truth, or was run at all: who is root in the VM can put any"
            " output in its place before it is attested"
        ]
        if self.demands.output is None:
            found.append("that the output you have is the one attested: name it with --output FILE")
        if self.demands.nonce is None and self.demands.max_age is None:
            found.append(
                "that it is not an older report: give the VM's owner a nonce for --attest-nonce and"
                " verify with --nonce, or use --max-age"
            )
        if self.demands.vm is None:
            found.append("that it is of the VM that you mean: name it with --vm UUID")
        return tuple(found)


def verify(report: object, keyring: Keyring, demands: Demands) -> Proof:
    """Prove a report, as it was read from its JSON. Raises :class:`Refusal`."""
    whole, attempt = _last_attempt(report)
    first, second = _tokens(whole, attempt)
    before = _open(first, keyring, FIRST)
    after = _open(second, keyring, SECOND)
    for attestation, what in ((before, FIRST), (after, SECOND)):
        _good_at(attestation, what, demands)
    _of_one_scan(first, before, after, demands)
    verdict = judge(before.identity, after.identity)
    if not verdict.consistent:
        raise Refusal("machine-changed", f"{verdict.sentence}, as its attestations say")
    _as_told(attempt, before, after, demands)
    output = _output(whole, attempt, after, demands)
    exit_code = _sealed(whole, attempt, after)
    _stands(whole)
    return Proof(before, after, tuple(whole["command"]), exit_code, output, demands)


def _last_attempt(report: object) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    if not isinstance(report, dict) or report.get("report_version") != VERSION:
        raise Refusal(
            "malformed", f"this is no report of a scan, of version {VERSION}; name one with REPORT"
        )
    if "modules" in report:
        raise Refusal("not-attested", "a modular scan can't be attested; scan with one command")
    attempts = report.get("attempts")
    if not isinstance(attempts, list) or not attempts or not isinstance(attempts[-1], dict):
        raise Refusal("malformed", "the report tells of no attempt to scan")
    last = attempts[-1]
    for name in ("before", "after", "verdict"):
        if report.get(name) != last.get(name):
            raise Refusal("report-edited", f"the report's {name!r} is not that of its last attempt")
    return report, last


def _tokens(report: Mapping[str, Any], attempt: Mapping[str, Any]) -> tuple[str, str]:
    tokens = [_member(attempt, name, "attestation") for name in ("before", "after")]
    if tokens == [None, None] and report.get("attestation") is None:
        raise Refusal(
            "not-attested", "the scan was made without --attest: nothing of it can be verified"
        )
    for token, what in zip(tokens, (FIRST, SECOND)):
        if token is None:
            raise Refusal("attestation-stripped", f"{what} was taken out of the report")
    return tokens[0], tokens[1]


def _member(value: object, *path: str) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _open(token: str, keyring: Keyring, what: str) -> Attestation:
    signed = keyring.open(token, TYPE, what)
    claims = signed.claims
    iat, exp, nonce = claims.get("iat"), claims.get("exp"), claims.get("nonce")
    whole = isinstance(iat, int) and isinstance(exp, int) and isinstance(nonce, str)
    try:
        identity = parse_identity(json.dumps(claims.get("identity")).encode())
    except IdentityInvalid as error:
        raise Refusal("malformed", f"{what} has no identity document: {error}") from error
    if not whole:
        raise Refusal("malformed", f"{what} lacks a nonce or a time")
    assert isinstance(iat, int)
    assert isinstance(exp, int)
    assert isinstance(nonce, str)
    if claims.get("iss") != identity.component_id:
        raise Refusal(
            "wrong-issuer", f"{what} is signed by {claims.get('iss')} for {identity.component_id}"
        )
    return Attestation(signed, identity, iat, exp, nonce)


def _good_at(attestation: Attestation, what: str, demands: Demands) -> None:
    if attestation.iat > demands.at + CLOCKS_APART:
        raise Refusal(
            "not-yet-valid", f"{what} is of {attestation.when}, later than {_time(demands.at)}"
        )
    if attestation.exp < demands.at:
        raise Refusal(
            "expired",
            f"{what} was good until {_time(attestation.exp)}; have the scan made again, or judge it"
            " as of an earlier day with --at",
        )
    age = demands.at - attestation.iat
    if demands.max_age is not None and age > demands.max_age:
        raise Refusal(
            "too-old", f"{what} is of {attestation.when}, which is {age / 86400:.1f} days ago"
        )


def _of_one_scan(first: str, before: Attestation, after: Attestation, demands: Demands) -> None:
    if demands.nonce is not None and before.nonce != demands.nonce:
        raise Refusal(
            "replayed",
            f"the scan of {before.when} was made for the nonce {printable(before.nonce, 60)}, not"
            " for yours: it is another scan's report",
        )
    if after.nonce.partition(".")[0] != first_part(first):
        raise Refusal(
            "mixed-pair",
            f"the attestations of {before.when} and {after.when} are not of one scan: the second"
            " was not asked for after the first",
        )


def _as_told(
    attempt: Mapping[str, Any], before: Attestation, after: Attestation, demands: Demands
) -> None:
    for read, attestation in (("before", before), ("after", after)):
        told, attested = _member(attempt, read, "identity"), attestation.identity.as_dict()
        if told == attested:
            continue
        if _member(told, "vm", "uuid") != attestation.identity.vm.uuid:
            raise _another_vm(_member(told, "vm", "uuid"), attestation)
        if any(_member(told, name) != attested[name] for name in ("component_id", "machine")):
            raise Refusal(
                "host-swapped",
                f"the report names another host {read} the scan than the one that attested it:"
                f" {printable(describe_machine(attestation.identity))}",
            )
        names = sorted(name for name in attested if _member(told, name) != attested[name])
        raise Refusal(
            "identity-edited",
            f"the report's identity {read} the scan is not the attested one"
            f" ({', '.join(names) or 'members were added'})",
        )
    if demands.vm is not None and after.identity.vm.uuid.lower() != demands.vm.lower():
        raise _another_vm(demands.vm, after)


def _another_vm(wanted: object, attestation: Attestation) -> Refusal:
    vm = attestation.identity.vm
    return Refusal(
        "another-vm",
        f"the attestations are of the VM {printable(vm.name)} ({printable(vm.uuid)}), not of"
        f" {printable(str(wanted), 60)}",
    )


def _output(
    report: Mapping[str, Any], attempt: Mapping[str, Any], after: Attestation, demands: Demands
) -> Digest:
    attested = after.signed.claims.get("report_digest")
    sha256, size = _member(attempt, "output", "sha256"), _member(attempt, "output", "bytes")
    if demands.output is not None and f"sha256:{demands.output.sha256}" != attested:
        raise Refusal(
            "output-edited",
            f"the output's digest is sha256:{demands.output.sha256}, and {attested} was attested:"
            " it was altered after the scan, or is another scan's",
        )
    for told in (sha256, _member(report, "output", "sha256")):
        if f"sha256:{told}" != attested:
            raise Refusal(
                "output-edited",
                f"the report's output has the digest sha256:{printable(str(told), 70)}, and"
                f" {attested} was attested",
            )
    if not isinstance(sha256, str) or not isinstance(size, int):
        raise Refusal("malformed", "the report tells no digest and size of its output")
    return Digest(sha256, size)


def _sealed(report: Mapping[str, Any], attempt: Mapping[str, Any], after: Attestation) -> int:
    version = _member(report, "attestation", "seal_version")
    if version != SEAL_VERSION:
        raise Refusal(
            "report-edited", f"the report is sealed by version {version!r}, not {SEAL_VERSION}"
        )
    command = report.get("command")
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise Refusal("malformed", "the report tells no command")
    sealed = {
        name: (attempt if name in ("scanner", "output") else report).get(name) for name in SEALED
    }
    if after.nonce.partition(".")[2] != seal_part(sealed):
        raise Refusal(
            "report-edited",
            f"a sealed member of the report was altered after the scan ({', '.join(SEALED)})",
        )
    exit_code = _member(attempt, "scanner", "exit_code")
    return exit_code if isinstance(exit_code, int) else -1


def _stands(report: Mapping[str, Any]) -> None:
    consistent = _member(report, "verdict", "outcome") == "consistent"
    if not consistent or _member(report, "output", "published") is not True:
        sentence = _member(report, "verdict", "sentence")
        raise Refusal(
            "not-consistent",
            "the report itself says that its output does not stand"
            + (f": {printable(sentence)}" if isinstance(sentence, str) and not consistent else ""),
        )


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f} s after 1970"
