"""Attestations: an identity document, signed, with what the asker wants it bound to.

An attestation is a JWS in compact form (RFC 7515), signed with the host's key (`enabler.keys`). Its
claims are named as JSON Web Tokens name them (RFC 7519, RFC 8725 for the ``typ``):

    iss            the host component ID of the host that says this
    iat, exp       when it was said, and until when it is good: seconds since 1970
    jti            its own ID, a UUID
    nonce          the asker's, as it was given
    report_digest  the asker's, as it was given; not there if none was
    identity       the identity document, as ``GET /v1/identity`` gives it

It says: at ``iat``, the VM that asked lived on this host, in this residency, and whoever asked knew
this nonce and this digest. It says nothing of what they stand for.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from enabler.answers import Answer
from enabler.documents import AttestationRequest
from enabler.errors import SigningUnavailable
from enabler.keys import Keys

log = logging.getLogger(__name__)

TYPE = "vm-enabler-attestation+jwt"
"""The ``typ`` of an attestation: what was signed as something else is none."""


class Attestor:
    """Signs what this host says. ``good_for`` is how long an attestation is good."""

    def __init__(self, keys: Keys, component_id: str, good_for: timedelta) -> None:
        self._keys = keys
        self.component_id = component_id
        self._good_for = good_for
        self._complained: str | None = None

    def attest(
        self, answer: Answer, observed_at: datetime, asked: AttestationRequest, now: datetime
    ) -> str:
        """Return the attestation of a VM's identity. Raises `SigningUnavailable`."""
        claims = {
            "iss": self.component_id,
            "iat": int(now.timestamp()),
            "exp": int((now + self._good_for).timestamp()),
            "jti": str(uuid.uuid4()),
            **asked.model_dump(exclude_none=True),
            "identity": json.loads(answer.body(observed_at)),
        }
        return self.sign(TYPE, claims)

    def sign(self, kind: str, claims: Mapping[str, Any]) -> str:
        """Sign for whoever asks. Raises `SigningUnavailable`, which tells guests nothing of the
        host's files; the log has it all.
        """
        with self._discreetly():
            return self._keys.sign(kind, claims)

    def public_keys(self) -> list[dict[str, Any]]:
        """Return `Keys.public`, and raise as `sign` does."""
        with self._discreetly():
            return self._keys.public()

    @contextmanager
    def _discreetly(self) -> Iterator[None]:
        try:
            yield
        except SigningUnavailable as error:
            if str(error) != self._complained:  # once, not for every VM that arrives or asks
                log.warning("nothing can be attested: %s", error)
            self._complained = str(error)
            raise SigningUnavailable(
                "there is no signing key that can be used; "
                "the host's admin finds the reason in the enabler's log"
            ) from None
        if self._complained is not None:
            log.info("attesting again")
        self._complained = None
