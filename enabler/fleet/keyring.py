"""The hosts' public keys, and the signatures of events and of history entries held against them.

What is accepted, and nothing else: EdDSA with an Ed25519 key (RFC 8037) that a file names, the
``typ`` that is asked for (RFC 8725, 3.11). A key that ``enabler keys export`` gave with its host's
component ID speaks for that host alone.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from joserfc import jws
from joserfc.errors import BadSignatureError, JoseError
from joserfc.jwk import OKPKey

from enabler.errors import ConfigurationError
from enabler.fleet.event import TYPE, Event
from enabler.history import STAY
from enabler.keys import ALGORITHM


class NotSigned(Exception):
    """Why a signature does not hold: a short word for programs, a sentence for people."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class Keyring:
    """Public keys, by their thumbprint (RFC 7638)."""

    def __init__(self, keys: Iterable[Mapping[str, Any]]) -> None:
        self._keys: dict[str, OKPKey] = {}
        self._hosts: dict[str, set[str]] = {}
        for data in keys:
            if data.get("kty") != "OKP" or data.get("crv") != "Ed25519":
                continue  # RFC 7517, 5: what is not understood is passed over
            key = OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": data["x"]})
            kid = key.thumbprint()
            self._keys[kid] = key
            if isinstance(data.get("component_id"), str):
                self._hosts.setdefault(kid, set()).add(data["component_id"])

    @classmethod
    def load(cls, files: Iterable[Path]) -> Keyring:
        """Read JWK sets from files. Raises `ConfigurationError`."""
        keys: list[Mapping[str, Any]] = []
        for file in files:
            try:
                found = json.loads(file.read_bytes())["keys"]
                usable = cls(found)
            except OSError as error:
                raise ConfigurationError(
                    f"the keys in {file} can't be read: {error.strerror}"
                ) from error
            except (ValueError, TypeError, KeyError, AttributeError, JoseError) as error:
                raise _no_keys(file) from error
            if not usable._keys:
                raise _no_keys(file)
            keys += found
        return cls(keys)

    def check(self, event: Event) -> str:
        """Return the ID of the key that an event is signed with. Raises `NotSigned`."""
        if event.signature is None:
            raise NotSigned("unsigned", "it has no signature")
        header, _, signature = event.signature.partition("..")
        content = base64.urlsafe_b64encode(event.content()).decode().rstrip("=")
        kid, _ = self._open(f"{header}.{content}.{signature}", TYPE)
        self._speaks_for(kid, event.component_id)
        return kid

    def holds(self, event: Event) -> bool:
        """Return whether an event is its host's word."""
        try:
            self.check(event)
        except NotSigned:
            return False
        return True

    def entry(self, token: object) -> dict[str, Any]:
        """Return what an entry of a VM's history says. Raises `NotSigned`."""
        return self.statement(token, STAY)

    def statement(self, token: object, kind: str) -> dict[str, Any]:
        """Return what a host's statement of a ``kind`` (its ``typ``) says. Raises `NotSigned`."""
        if not isinstance(token, str):
            raise NotSigned("malformed", "it is no signed statement")
        kid, payload = self._open(token, kind)
        try:
            claims = json.loads(payload)
        except (ValueError, RecursionError):
            claims = None
        if not isinstance(claims, dict):
            raise NotSigned("malformed", "what is signed is no statement")
        self._speaks_for(kid, str(claims.get("iss")))
        return claims

    def _open(self, token: str, kind: str) -> tuple[str, bytes]:
        header = _header(token)
        kid = header.get("kid")
        key = self._keys.get(kid) if isinstance(kid, str) else None
        if header.get("alg") != ALGORITHM or header.get("typ") != kind:
            raise NotSigned("wrong-type", f"it is not signed as {kind}, by {ALGORITHM}")
        if key is None or not isinstance(kid, str):
            raise NotSigned("unknown-key", f"no --jwks file has the key {kid!r:.60}")
        try:
            return kid, jws.deserialize_compact(token, key, algorithms=[ALGORITHM]).payload
        except BadSignatureError as error:
            raise NotSigned("bad-signature", "it was altered, or signed by another") from error
        except (JoseError, ValueError, TypeError) as error:
            raise NotSigned("malformed", "its signature is none") from error

    def _speaks_for(self, kid: str, component_id: str) -> None:
        hosts = self._hosts.get(kid)
        if hosts is not None and component_id not in hosts:
            raise NotSigned(
                "wrong-issuer",
                f"it names the host {component_id:.80}, and the key {kid} is another's",
            )


def unverified(token: object) -> dict[str, Any]:
    """Return what a statement says, verified by nobody. Raises `NotSigned` if it is none."""
    try:
        part = str(token).split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, IndexError, RecursionError) as error:
        raise NotSigned("malformed", "it is no signed statement") from error
    if not isinstance(claims, dict):
        raise NotSigned("malformed", "it is no signed statement")
    return claims


def _header(token: str) -> dict[str, Any]:
    part = token.partition(".")[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise NotSigned("malformed", "its signature is none") from error
    if not isinstance(header, dict):
        raise NotSigned("malformed", "its signature is none")
    return header


def _no_keys(file: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{file} has no host's public keys; name a file that `enabler keys export` wrote"
    )
