"""Signs an event by the Standard Webhooks convention, version 1. Pure.

    webhook-id          the event's ID, the same at each try
    webhook-timestamp   seconds since 1970 of this try
    webhook-signature   ``v1,`` and the base64 of HMAC-SHA256 over ``ID.TIMESTAMP.BODY``

The receiver computes the same with the shared secret, compares in constant time, and refuses a
timestamp that is too far from its own clock.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

SECRET_PREFIX = "whsec_"  # noqa: S105 - what secrets begin with, not one
SHORTEST_SECRET = 24
LONGEST_SECRET = 64
"""Bytes of a key, as the convention has it."""


def parse_secret(text: str) -> bytes:
    """Read ``whsec_`` and base64; raises ``ValueError`` saying what is wrong, never the secret."""
    text = text.strip()
    if not text.startswith(SECRET_PREFIX):
        raise ValueError(f"does not begin with {SECRET_PREFIX}")
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError(f"what follows {SECRET_PREFIX} is not base64") from error
    if not SHORTEST_SECRET <= len(key) <= LONGEST_SECRET:
        raise ValueError(f"has {len(key)} bytes; a key has {SHORTEST_SECRET} to {LONGEST_SECRET}")
    return key


def signature_headers(key: bytes, event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Give the three headers."""
    signed = b".".join((event_id.encode(), str(timestamp).encode(), body))
    digest = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{digest}",
    }
