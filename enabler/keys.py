"""The host's signing key: what a host says with it, an auditor can check without the host.

An Ed25519 key (RFC 8037), as a JSON Web Key (RFC 7517) in a folder of its own:

    signing.jwk   the private key: mode 0600, made at first need, replaced by `Keys.rotate`
    jwks.json     the public half of every key that ever signed here, the newest first

A key is in ``jwks.json`` before anything is signed with it, so no crash loses the means to verify.
A key can also be given as a file (JWK, or PEM as ``openssl genpkey -algorithm ed25519`` makes it);
``jwks.json`` then collects the public halves just the same.

A key speaks for one host. The service puts its host's component ID beside the public key, where who
verifies finds it (``component_id``), and refuses a key that has another's: one that came with a
copied disk, or was made when this machine was known as another.

Whether the file is another than at the last signature is looked at each time (one stat(2)): a
running service goes over to a new key with its next signature, and nobody need tell it.

Signatures are joserfc's (JWS, RFC 7515); the ``kid`` is the key's thumbprint (RFC 7638).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import stat
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import OKPKey

from enabler.errors import SigningUnavailable

log = logging.getLogger(__name__)

ALGORITHM = "EdDSA"
"""As RFC 8037 names it. RFC 9864 has a more exact name, which few libraries know by now."""
warnings.filterwarnings("ignore", message="EdDSA is deprecated", category=SecurityWarning)

_CURVE: Final = "Ed25519"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_LARGEST_FILE = 1 << 20


@dataclass(frozen=True, slots=True)
class _Signer:
    key: OKPKey
    kid: str


_Mark = tuple[int, int, int, int]
"""What tells one state of a file from the next: inode, size, and the times of change."""


class Keys:
    """The signing key in a folder, or ``given`` as a file. Nothing is read or made before it is
    needed. For one thread.
    """

    component_id: str | None = None
    """The host that speaks with it, once that is known."""

    def __init__(self, directory: Path, given: Path | None = None) -> None:
        self._directory = directory
        self._given = given
        self._path = given or directory / "signing.jwk"
        self._published = directory / "jwks.json"
        self._signer: _Signer | None = None
        self._mark: _Mark | None = None

    def sign(self, kind: str, claims: Mapping[str, Any]) -> str:
        """Return ``claims`` as a JWS in compact form, with ``kind`` as its ``typ``.

        Raises `SigningUnavailable`.
        """
        return self._sign(kind, json.dumps(claims, separators=(",", ":"), ensure_ascii=False))

    def sign_detached(self, kind: str, content: bytes) -> str:
        """Return the JWS of ``content`` without it (RFC 7515, appendix F): who verifies it has the
        content from elsewhere. Raises `SigningUnavailable`.
        """
        return jws.detach_content(self._sign(kind, content))

    def _sign(self, kind: str, payload: str | bytes) -> str:
        signer = self._current()
        header = {"alg": ALGORITHM, "kid": signer.kid, "typ": kind}
        return jws.serialize_compact(header, payload, signer.key, algorithms=[ALGORITHM])

    def kid(self) -> str:
        """Return the ID of the key that signs now. Raises `SigningUnavailable`."""
        return self._current().kid

    def public(self) -> list[dict[str, Any]]:
        """Return the public half of every key that ever signed here, as JWKs; the present one
        first. Raises `SigningUnavailable`.
        """
        signer = self._current()
        known = self._read_published()
        mine = [key for key in known if key["kid"] == signer.kid] or [_public(signer)]
        return mine + [key for key in known if key["kid"] != signer.kid]

    def rotate(self) -> str:
        """Replace the key by a new one, and return its ID. Raises `SigningUnavailable`."""
        if self._given is not None:
            raise SigningUnavailable(
                f"the key is given by signing_key; put another into {self._given}, and the service "
                "takes it with its next signature"
            )
        self._current()  # see that the present one is published before it goes
        with self._folder():
            return self._make().kid

    def look(self) -> str:
        """Say what there is, and change nothing: for ``enabler doctor``.

        Raises `SigningUnavailable`.
        """
        if self._given is None and not self._path.exists():
            folder = next(each for each in (self._directory, *self._directory.parents) if _is(each))
            if not os.access(folder, os.W_OK | os.X_OK):
                raise _cannot_write(self._directory, "this user can't write there")
            return f"none yet; one will be made in {self._directory}"
        return f"{self._read(self._path).kid} in {self._path}"

    # The private key -----------------------------------------------------------------------------

    def _current(self) -> _Signer:
        try:
            mark = _mark(self._path)
        except FileNotFoundError:
            return self._first()
        except OSError as error:
            raise self._unreadable(error) from error
        if self._signer is None or mark != self._mark:
            signer = self._read(self._path)
            self._settle(signer)
            if self._signer is None or self._signer.kid != signer.kid:
                log.info("the signing key is %s", signer.kid)
            self._signer, self._mark = signer, mark
        return self._signer

    def _first(self) -> _Signer:
        if self._given is not None:
            raise SigningUnavailable(
                f"there is no signing key {self._given}; put one there, or unset signing_key"
            )
        with self._folder():
            if self._path.exists():  # another process was first
                return self._read(self._path)
            signer = self._make()
        log.info("made the signing key %s in %s", signer.kid, self._directory)
        self._signer, self._mark = signer, _mark(self._path)
        return signer

    def _make(self) -> _Signer:
        made: dict[str, Any] = {**OKPKey.generate_key(_CURVE).as_dict(private=True)}
        key = OKPKey.import_key(made | {"iat": int(time.time())})
        signer = _Signer(key, key.thumbprint())
        private = {**key.as_dict(private=True), "kid": signer.kid, "use": "sig", "alg": ALGORITHM}
        try:
            self._publish(signer)
            _write(self._path, private, 0o600)
        except OSError as error:
            raise _cannot_write(self._directory, error.strerror) from error
        return signer

    def _read(self, path: Path) -> _Signer:
        try:
            with path.open("rb") as opened:
                status = os.fstat(opened.fileno())
                content = opened.read(_LARGEST_FILE)
        except OSError as error:
            raise self._unreadable(error) from error
        if status.st_mode & _OTHERS:
            raise SigningUnavailable(
                f"the signing key {path} can be read or written by others than its owner "
                f"(mode {stat.S_IMODE(status.st_mode):04o}) and may be known to them; make a new "
                f"one with 'enabler keys rotate' after 'chmod 600 {path}'"
            )
        if status.st_uid not in (0, os.geteuid(), _served_by(self._directory)):
            raise SigningUnavailable(
                f"the signing key {path} belongs to user {status.st_uid}; "
                f"chown it to the user that runs the enabler, or to root"
            )
        return self._understand(path, content)

    def _understand(self, path: Path, content: bytes) -> _Signer:
        try:
            data = json.loads(content) if content.lstrip().startswith(b"{") else content
            key = OKPKey.import_key(data)
            usable = key.is_private and key.curve_name == _CURVE
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise _no_key(path) from error
        if not usable:
            raise _no_key(path)
        return _Signer(key, key.thumbprint())

    def _unreadable(self, error: OSError) -> SigningUnavailable:
        return SigningUnavailable(
            f"the signing key {self._path} can't be read: {error.strerror}; "
            "run the enabler as the user that owns it, or set keys_directory"
        )

    # The public keys -----------------------------------------------------------------------------

    def _settle(self, signer: _Signer) -> None:
        """See that a key is published, and that it is this host's."""
        known = [key for key in self._read_published() if key["kid"] == signer.kid]
        host = known[0].get("component_id") if known else None
        if self.component_id is not None and host not in (None, self.component_id):
            raise SigningUnavailable(
                f"the signing key {self._path} is that of the host {host}, and this is "
                f"{self.component_id}: a copied disk, or a machine that is known as another now; "
                "give this one a key of its own with 'enabler keys rotate'"
            )
        if known and (self.component_id is None or host is not None):
            return
        try:
            with self._folder():
                self._publish(signer)
        except (SigningUnavailable, OSError) as error:
            log.warning(
                "%s can't be written (%s): after the next key, nobody will find this one there",
                self._published,
                error,
            )

    def _publish(self, signer: _Signer) -> None:
        kept = [key for key in self._read_published() if key["kid"] != signer.kid]
        host = {} if self.component_id is None else {"component_id": self.component_id}
        _write(self._published, {"keys": [_public(signer) | host, *kept]}, 0o644)

    def _read_published(self) -> list[dict[str, Any]]:
        try:
            content = json.loads(self._published.read_bytes())
            return [_public(_Signer(key, key.thumbprint())) for key in _imported(content)]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError, JoseError) as error:
            raise SigningUnavailable(
                f"{self._published} can't be read as a JWK set ({error}); put it back from a copy, "
                "or remove it and lose the means to verify what older keys have signed"
            ) from error

    @contextlib.contextmanager
    def _folder(self) -> Iterator[None]:
        """Make the folder if need be, and be the only one who writes in it."""
        try:
            if not self._directory.is_dir():
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                _hand_over(self._directory, self._directory.parent)
            handle = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _cannot_write(self._directory, error.strerror) from error
        try:
            if os.fstat(handle).st_mode & _OTHERS_WRITE:
                raise SigningUnavailable(
                    f"others may write in {self._directory}, and could put a key of their own "
                    f"there; chmod 700 {self._directory}"
                )
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _imported(content: Mapping[str, Any]) -> list[OKPKey]:
    return [OKPKey.import_key(data) for data in content["keys"]]


def _public(signer: _Signer) -> dict[str, Any]:
    return {**signer.key.as_dict(private=False), "kid": signer.kid, "use": "sig", "alg": ALGORITHM}


def _mark(path: Path) -> _Mark:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _is(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _served_by(folder: Path) -> int:
    """Return whose the folder's files are to be: what root writes is for the service's user, whose
    folder it is; anybody else's is his own.
    """
    own = os.geteuid()
    try:
        return own if own else folder.stat().st_uid
    except OSError:
        return own


def _hand_over(made: Path | int, folder: Path) -> None:
    owner = _served_by(folder)
    if owner != os.geteuid():  # under systemd not even one's own may be given to oneself
        os.chown(made, owner, -1)


def _write(path: Path, content: Mapping[str, Any], mode: int) -> None:
    """Write a file in one step: it has the old content or the new one, also after a crash."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(json.dumps(content, indent=2).encode() + b"\n")
            opened.flush()
            os.fchmod(opened.fileno(), mode)
            _hand_over(opened.fileno(), path.parent)
            os.fsync(opened.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _no_key(path: Path) -> SigningUnavailable:
    return SigningUnavailable(
        f"{path} is no private Ed25519 key, as JWK or unencrypted PEM; "
        "make one with 'openssl genpkey -algorithm ed25519', or remove the file"
    )


def _cannot_write(directory: Path, why: str | None) -> SigningUnavailable:
    return SigningUnavailable(
        f"the signing key can't be kept in {directory}: {why}; run the enabler as root, or set "
        "keys_directory to a folder of its own user"
    )
