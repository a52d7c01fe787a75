"""Attestations, as the guest asks for them and reads them: no cryptography here.

The guest can't tell a forged attestation from a true one, nor need it: it reads its identity out of
one as it would from a bare answer, over the same channel. Whom it is for has the keys
(``verify/``).

How the two attestations of a scan are bound to each other, and to what the scan found:

    first attestation    nonce          random, or the auditor's (--attest-nonce)
    second attestation   report_digest  "sha256:" and the output's digest
                         nonce          A.B, where
                                        A  is the digest of the first attestation as it was sent,
                                        B  that of the seal: the report's members in SEALED

Digests are SHA-256: A and B in base64url without padding (RFC 4648). The seal is JSON with sorted
members, no white space, and all but ASCII escaped. So whoever had the second attestation signed had
the first one, the output, and all that the seal has: no other output, command or first attestation
fits to it, and none can be made to.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guest_client.errors import IdentityInvalid, UntrustedAnswer
from guest_client.identity import Identity, parse_identity

PATH = "/v1/identity/attestation"
MEDIA_TYPE = "application/jose"
SEAL_VERSION = 1
SEALED = ("client", "command", "scanner", "output")
"""What of a report the seal covers: client and command of the whole, scanner and output of the
attempt that was published."""

_DIGEST = "sha256:"


@dataclass(frozen=True)
class Challenge:
    """What an attestation shall be bound to, as the contract has it."""

    nonce: str
    report_digest: str | None = None

    def body(self) -> bytes:
        """Give the request's body."""
        asked = {"nonce": self.nonce}
        if self.report_digest is not None:
            asked["report_digest"] = self.report_digest
        return json.dumps(asked).encode()


@dataclass(frozen=True)
class Attested:
    """An identity, and the attestation that it was read from."""

    identity: Identity
    token: str


def first_challenge(nonce: str | None) -> Challenge:
    """Make the challenge before a scan, with the auditor's nonce if there is one."""
    import secrets

    return Challenge(secrets.token_urlsafe(32) if nonce is None else nonce)


def second_challenge(first: str, sealed: Mapping[str, Any]) -> Challenge:
    """Make the challenge after a scan: it binds the first attestation and what the seal covers.

    ``sealed`` has the members of :data:`SEALED`, as the report writes them.
    """
    nonce = f"{first_part(first)}.{seal_part(sealed)}"
    return Challenge(nonce, f"{_DIGEST}{sealed['output']['sha256']}")


def first_part(token: str) -> str:
    """Give part A of the second nonce."""
    return _base64url(hashlib.sha256(token.encode()).digest())


def seal_part(sealed: Mapping[str, Any]) -> str:
    """Give part B of the second nonce."""
    seal = {"version": SEAL_VERSION, **{name: sealed[name] for name in SEALED}}
    canonical = json.dumps(seal, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return _base64url(hashlib.sha256(canonical.encode()).digest())


def take(raw: bytes, asked: Challenge) -> Attested:
    """Read the identity out of an attestation; raises :class:`UntrustedAnswer` if it is not to be
    found there, or the attestation is of something else than was asked.
    """
    try:
        token = raw.decode("ascii").strip()
        claims = payload(token)
    except ValueError as error:
        raise IdentityInvalid("", f"is in no attestation ({error})") from error
    if (claims.get("nonce"), claims.get("report_digest")) != (asked.nonce, asked.report_digest):
        raise UntrustedAnswer(
            "the attestation is of another question than ours; check the address (--enabler)"
        )
    return Attested(parse_identity(json.dumps(claims.get("identity")).encode()), token)


def payload(token: str) -> dict[str, Any]:
    """Give what a JWS in compact form says, verified by nobody; raises ``ValueError``."""
    parts = token.split(".")
    if len(parts) != 3:
        raise ValueError("it has not three parts")
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise ValueError("its payload is not JSON") from error
    if not isinstance(claims, dict):
        raise ValueError("its payload is no object")  # noqa: TRY004 - of the text, not of a type
    return claims


def _base64url(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
