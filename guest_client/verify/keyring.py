"""The public keys that an auditor trusts, and signatures held against them.

The one place that loads joserfc, and not before it is needed. What is accepted, and nothing else:
a JWS in compact form (RFC 7515), algorithm EdDSA with an Ed25519 key (RFC 8037), the ``typ`` that
is asked for (RFC 8725, 3.11), no critical extensions, a ``kid`` that one of the keys has. Which
algorithm and which key is used is never the token's choice. A key that ``enabler keys export`` gave
with its host's component ID speaks for that host alone.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guest_client.errors import AuditMissing, ConfigurationError, InputError
from guest_client.text import printable
from guest_client.verify.refusal import Refusal

if TYPE_CHECKING:
    from joserfc.jwk import OKPKey

ALGORITHM = "EdDSA"
_CURVE = "Ed25519"
_LARGEST_FILE = 1 << 20
_LARGEST_TOKEN = 64 * 1024
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Signed:
    """What a token says, and the ID of the key that signed it."""

    claims: Mapping[str, Any]
    kid: str


class Keyring:
    """Keys by their thumbprint. Raises :class:`AuditMissing` if joserfc is not installed."""

    def __init__(self, keys: Iterable[Mapping[str, Any]]) -> None:
        self._keys: dict[str, OKPKey] = {}
        self._hosts: dict[str, set[str]] = {}
        okp_key = _joserfc()
        from joserfc.errors import JoseError

        for data in keys:
            if data.get("kty") != "OKP" or data.get("crv") != _CURVE:
                continue  # RFC 7517, 5: what is not understood is passed over
            # Nothing but the key itself, and whose it is: what else is said of it decides nothing.
            public: dict[str, Any] = {"kty": "OKP", "crv": _CURVE, "x": data["x"]}
            try:
                key = okp_key.import_key(public)
                kid = key.thumbprint()
            except JoseError as error:
                raise ValueError("an Ed25519 key is malformed") from error
            self._keys[kid] = key
            if isinstance(data.get("component_id"), str):
                self._hosts.setdefault(kid, set()).add(data["component_id"])

    @classmethod
    def load(cls, files: Iterable[Path]) -> Keyring:
        """Read JWK sets, or single JWKs, from files.

        Raises :class:`InputError`, :class:`ConfigurationError`, :class:`AuditMissing`.
        """
        keys: list[Mapping[str, Any]] = []
        _joserfc()
        for file in files:
            found = _read_keys(file)
            try:
                usable = cls(found)
            except (ValueError, TypeError, KeyError) as error:
                raise _no_set(file) from error
            if not usable._keys:
                raise ConfigurationError(
                    f"{printable(str(file))} has no Ed25519 key; name a file that `enabler keys"
                    " export` wrote"
                )
            keys += found
        return cls(keys)

    def open(self, token: object, kind: str, what: str) -> Signed:
        """Verify a token of the type ``kind``, which is called ``what`` in a :class:`Refusal`."""
        from joserfc import jws
        from joserfc.errors import BadSignatureError, JoseError

        header = _header(token, what)
        assert isinstance(token, str)
        algorithm = header.get("alg")
        if algorithm != ALGORITHM:
            raise Refusal(
                "algorithm-refused",
                f"{what} is signed by {printable(repr(algorithm), 40)}; hosts sign by {ALGORITHM}"
                " alone, so no host signed it",
            )
        if header.get("typ") != kind:
            raise Refusal(
                "wrong-type",
                f"{what} was signed as {printable(repr(header.get('typ')), 60)}, not as {kind}",
            )
        kid = header.get("kid")
        key = self._keys.get(kid) if isinstance(kid, str) else None
        if key is None or not isinstance(kid, str):
            raise Refusal(
                "unknown-key",
                f"{what} is signed with the key {printable(repr(kid), 60)}, which no --jwks file"
                " has; if a host of yours has it, get it with `enabler keys export` there",
            )
        try:
            found = jws.deserialize_compact(token, key, algorithms=[ALGORITHM])
        except BadSignatureError as error:
            raise Refusal(
                "bad-signature",
                f"{what} was altered, or signed by somebody else: its signature is not that of the"
                f" key {kid}",
            ) from error
        except (JoseError, ValueError, TypeError) as error:
            raise _malformed(what) from error
        claims = _json_object(found.payload, what)
        hosts = self._hosts.get(kid)
        if hosts is not None and str(claims.get("iss")) not in hosts:
            raise Refusal(
                "wrong-issuer",
                f"{what} says that it is of the host {printable(str(claims.get('iss')), 80)}, and"
                f" the key {kid} is another host's",
            )
        return Signed(claims, kid)


def _joserfc() -> type[OKPKey]:
    import warnings

    try:
        from joserfc.errors import SecurityWarning
        from joserfc.jwk import OKPKey
    except ImportError as error:
        raise AuditMissing(
            "signatures can't be verified without joserfc;"
            " pip install 'vm-enabler[audit]' on the auditor's machine"
        ) from error
    # RFC 9864 has a more exact name for EdDSA, which few libraries know by now.
    warnings.filterwarnings("ignore", message="EdDSA is deprecated", category=SecurityWarning)
    return OKPKey


def _read_keys(file: Path) -> list[Mapping[str, Any]]:
    try:
        with file.open("rb") as stream:
            content = stream.read(_LARGEST_FILE)
    except OSError as error:
        raise InputError(
            f"can't read the keys in {printable(str(file))}: {error.strerror}; name a file that"
            " `enabler keys export` wrote"
        ) from error
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _no_set(file) from error
    keys = document.get("keys", [document]) if isinstance(document, dict) else document
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise _no_set(file)
    return keys


def _no_set(file: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{printable(str(file))} is no set of public keys (JWKS); name a file that `enabler keys"
        " export` wrote"
    )


def _header(token: object, what: str) -> dict[str, Any]:
    if (
        not isinstance(token, str)
        or len(token) > _LARGEST_TOKEN
        or not token.isascii()
        or not _TOKEN.fullmatch(token)
    ):
        raise _malformed(what)
    first = token.partition(".")[0]
    try:
        return _json_object(base64.urlsafe_b64decode(first + "=" * (-len(first) % 4)), what)
    except binascii.Error as error:
        raise _malformed(what) from error


def _json_object(raw: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _malformed(what) from error
    if not isinstance(found, dict):
        raise _malformed(what)
    return found


def _malformed(what: str) -> Refusal:
    return Refusal("malformed", f"{what} is no signed statement (JWS) of any host")
