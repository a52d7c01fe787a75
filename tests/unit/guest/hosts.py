"""Hosts that sign, for what is verified: by the contract, with none of the enabler's code."""

from __future__ import annotations

import base64
import hmac
import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from joserfc import jws
from joserfc.jwk import OKPKey

from guest_client.verify.keyring import Keyring

ATTESTATION = "vm-enabler-attestation+jwt"


class SigningHost:
    """A host's key, and what it signs."""

    def __init__(self) -> None:
        self.key = OKPKey.generate_key("Ed25519")
        self.kid = self.key.thumbprint()
        self.now = int(time.time())

    @property
    def public(self) -> dict[str, Any]:
        return {**self.key.as_dict(private=False), "kid": self.kid, "use": "sig", "alg": "EdDSA"}

    @property
    def keyring(self) -> Keyring:
        return Keyring([self.public])

    def write_jwks(self, path: Path) -> Path:
        path.write_text(json.dumps({"keys": [self.public]}))
        return path

    def sign(self, kind: str, claims: Mapping[str, Any], **header: Any) -> str:
        protected = {"alg": "EdDSA", "kid": self.kid, "typ": kind} | header
        return jws.serialize_compact(protected, json.dumps(claims), self.key, ["EdDSA"])

    def claims(self, identity: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
        return {
            "iss": identity["component_id"],
            "iat": self.now,
            "exp": self.now + 400 * 86400,
            "jti": str(uuid.uuid4()),
            **asked,
            "identity": identity,
        }

    def attest(self, identity: dict[str, Any], asked: dict[str, Any]) -> str:
        return self.sign(ATTESTATION, self.claims(identity, asked))


def by_none(claims: Mapping[str, Any], kid: str) -> str:
    """The oldest trick: no signature at all."""
    return _unsigned({"alg": "none", "kid": kid, "typ": ATTESTATION}, claims) + "."


def by_hmac(claims: Mapping[str, Any], host: SigningHost) -> str:
    """The next: the public key, which everybody has, as the secret of an HMAC."""
    signing_input = _unsigned({"alg": "HS256", "kid": host.kid, "typ": ATTESTATION}, claims)
    secret = host.key.as_bytes(private=False)
    signature = hmac.digest(secret, signing_input.encode(), "sha256")
    return f"{signing_input}.{_base64url(signature)}"


def _unsigned(header: Mapping[str, Any], claims: Mapping[str, Any]) -> str:
    return ".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
