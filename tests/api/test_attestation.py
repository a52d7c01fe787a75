"""Attestations from the running service, verified with nothing but the keys that it publishes."""

from __future__ import annotations

import json
from typing import Any

import libvirt
from joserfc import jws
from joserfc.jwk import KeySet

from enabler.keys import Keys
from tests.api.running import DEFAULT_VM, Enabler, eventually
from tests.api.test_admin import OTHER, valid

PATH = f"/v1/vms/{DEFAULT_VM}/attestation"
NONCE = "Zl2i1Jq4nZ3mJc8pQy0t5w"
DIGEST = "sha256:" + "ab" * 32


def opened(enabler: Enabler, token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    published = enabler.get("/.well-known/jwks.json")
    valid("KeySetDocument", published.json())
    keys = KeySet.import_key_set(published.json())
    found = jws.deserialize_compact(token, keys, algorithms=["EdDSA"])
    return dict(found.headers()), json.loads(found.payload)


def test_an_attestation_says_what_identity_says_and_what_was_asked(enabler: Enabler) -> None:
    identity = enabler.identity()
    answer = enabler.client.post(PATH, json={"nonce": NONCE, "report_digest": DIGEST})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/jose"
    assert answer.headers["cache-control"] == "no-store"
    header, claims = opened(enabler, answer.text)
    valid("AttestationClaims", claims)
    assert (header["alg"], header["typ"]) == ("EdDSA", "vm-enabler-attestation+jwt")
    assert claims["iss"] == identity["component_id"]
    assert (claims["nonce"], claims["report_digest"]) == (NONCE, DIGEST)
    assert claims["exp"] - claims["iat"] == 400 * 24 * 3600
    for told in (identity, claims["identity"]):
        del told["observed_at"]
    assert claims["identity"] == identity
    again = enabler.client.post(PATH, json={"nonce": NONCE})
    assert opened(enabler, again.text)[1]["jti"] != claims["jti"]
    assert "report_digest" not in opened(enabler, again.text)[1]


NO_REQUESTS = [
    (b"", 400, "bad-request"),
    (b"[]", 400, "bad-request"),
    (b"{}", 400, "bad-request"),
    (b'{"nonce": 5}', 400, "bad-request"),
    (b'{"nonce": "short"}', 400, "bad-request"),
    (b'{"nonce": "a\\nb5678901234567890"}', 400, "bad-request"),
    (json.dumps({"nonce": "n" * 257}).encode(), 400, "bad-request"),
    (json.dumps({"nonce": NONCE, "report_digest": "md5:1"}).encode(), 400, "bad-request"),
    (json.dumps({"nonce": NONCE, "vm": OTHER}).encode(), 400, "bad-request"),
    (b"\xff" * 20, 400, "bad-request"),
    (b'{"nonce": "' + b"n" * 5000, 413, "content-too-large"),
    (b"[" * 4000, 400, "bad-request"),
]


def test_what_is_no_request_is_refused(enabler: Enabler) -> None:
    for body, status, problem in NO_REQUESTS:
        answer = enabler.client.post(PATH, content=body)
        assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{problem}"), body
        valid("ProblemDocument", answer.json())


def test_of_a_vm_that_does_not_run_here_there_is_none(
    enabler: Enabler, hypervisor: libvirt.virConnect
) -> None:
    asked = {"nonce": NONCE}
    assert enabler.client.post(f"/v1/vms/{OTHER}/attestation", json=asked).status_code == 404
    hypervisor.lookupByUUIDString(DEFAULT_VM).destroy()
    # A stay that is no process of this host ends with libvirt's event.
    eventually(lambda: enabler.client.post(PATH, json=asked).status_code == 404)


def test_a_new_key_is_taken_without_a_word(enabler: Enabler) -> None:
    before = enabler.client.post(PATH, json={"nonce": NONCE}).text
    new = Keys(enabler.settings.keys_directory).rotate()
    after = enabler.client.post(PATH, json={"nonce": NONCE}).text
    assert opened(enabler, after)[0]["kid"] == new
    assert opened(enabler, before)[0]["kid"] != new


def test_without_a_key_identity_is_told_and_nothing_attested(enabler: Enabler) -> None:
    key = enabler.settings.keys_directory / "signing.jwk"
    key.chmod(0o644)
    answer = enabler.client.post(PATH, json={"nonce": NONCE})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["type"] == "/problems/signing-unavailable"
    assert str(key) not in answer.text, "where a host keeps its key is none of a guest's business"
    assert enabler.get("/.well-known/jwks.json").status_code == 503
    enabler.identity()
    key.chmod(0o600)
    assert enabler.client.post(PATH, json={"nonce": NONCE}).status_code == 200
