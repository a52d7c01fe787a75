"""Tokens: what a VM shows to be known by, where its channel does not say who it is. Pure.

A token is 256 random bits, and so a plain SHA-256 of it is all that need be kept: what makes a hash
of a password slow is that passwords can be guessed. The hash lives in the VM's domain metadata
(`enabler.domains`) and travels with it; the token itself is in the VM alone.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

PREFIX = "vme_"
"""What every token begins with, so that one which was left lying about is found by a search."""

_RANDOM_BYTES = 32


def make() -> str:
    """Return a new token: 47 characters of RFC 6750's ``b64token``."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def sha256_of(token: str) -> str:
    """Return the hash that is kept of a token, in hexadecimal."""
    return hashlib.sha256(token.encode()).hexdigest()


def matches(token: str, sha256: str) -> bool:
    """Whether a token is the one with this hash; takes as long whether it is or not."""
    return hmac.compare_digest(sha256_of(token), sha256)


def of_headers(authorizations: list[str]) -> str | None:
    """Return the token in the values of a request's ``Authorization`` headers (RFC 6750, 2.1).

    None if it shows none: no header, or another scheme. Empty, and so no VM's, if what it shows can
    be none: two of them, say.
    """
    if not authorizations:
        return None
    scheme, _, token = authorizations[0].strip().partition(" ")
    if scheme.lower() != "bearer":
        return None if len(authorizations) == 1 else ""
    token = token.strip()
    plausible = token.isascii() and token.isprintable() and " " not in token
    return token if len(authorizations) == 1 and plausible else ""
