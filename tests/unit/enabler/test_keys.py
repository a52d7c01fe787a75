"""The signing key: made, kept, given, replaced, and refused when others could know it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from joserfc import jws
from joserfc.jwk import OKPKey

from enabler.cli import main
from enabler.errors import SigningUnavailable
from enabler.keys import Keys


def verified(token: str, keys: Keys) -> dict[str, object]:
    header = jws.extract_compact(token.encode()).headers()
    [public] = [key for key in keys.public() if key["kid"] == header["kid"]]
    found = jws.deserialize_compact(token, OKPKey.import_key(public), algorithms=["EdDSA"])
    assert header["alg"] == "EdDSA"
    claims: dict[str, object] = json.loads(found.payload)
    return claims


def test_a_key_is_made_at_first_need_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "keys"
    keys = Keys(folder)
    assert not folder.exists()
    assert verified(keys.sign("thing", {"says": "so"}), keys) == {"says": "so"}
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}
    assert modes == {"keys": 0o700, "signing.jwk": 0o600, "jwks.json": 0o644}
    assert "d" not in keys.public()[0]
    assert keys.kid() == Keys(folder).kid()


def test_a_running_service_takes_a_new_key_and_old_signatures_stay_good(tmp_path: Path) -> None:
    running = Keys(tmp_path / "keys")
    before = running.sign("thing", {"n": 1})
    new = Keys(tmp_path / "keys").rotate()
    after = running.sign("thing", {"n": 2})
    assert running.kid() == new
    assert running.public()[0]["kid"] == new
    assert verified(before, running) == {"n": 1}
    assert verified(after, running) == {"n": 2}


def test_a_given_key_and_its_successor(tmp_path: Path) -> None:
    pem, jwk = tmp_path / "key.pem", tmp_path / "other.jwk"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", pem], check=True)
    pem.chmod(0o600)
    keys = Keys(tmp_path / "keys", pem)
    before = keys.sign("thing", {"n": 1})
    with pytest.raises(SigningUnavailable, match="given by signing_key"):
        keys.rotate()
    jwk.write_text(json.dumps(OKPKey.generate_key("Ed25519").as_dict(private=True)))
    jwk.chmod(0o600)
    jwk.rename(pem)
    assert verified(keys.sign("thing", {"n": 2}), keys) == {"n": 2}
    assert verified(before, keys) == {"n": 1}
    assert len(keys.public()) == 2
    assert not (tmp_path / "keys" / "signing.jwk").exists()


def test_a_key_speaks_for_one_host(tmp_path: Path) -> None:
    mine = Keys(tmp_path / "keys")
    mine.component_id = "sha256:" + "a" * 64
    mine.sign("thing", {})
    assert mine.public()[0]["component_id"] == mine.component_id
    copied = Keys(tmp_path / "keys")
    copied.component_id = "sha256:" + "b" * 64
    with pytest.raises(SigningUnavailable, match="a copied disk"):
        copied.sign("thing", {})
    new = Keys(tmp_path / "keys").rotate()  # as the command does, which does not know its host
    copied.sign("thing", {})
    assert [(key["kid"] == new, key["component_id"]) for key in copied.public()] == [
        (True, copied.component_id),
        (False, mine.component_id),
    ]


def _loose(path: Path) -> None:
    path.chmod(0o640)


def _foreign(path: Path) -> None:
    os.chown(path, 65534, 65534)


def _public_alone(path: Path) -> None:
    key = json.loads(path.read_text())
    del key["d"]
    path.write_text(json.dumps(key))


def _another_curve(path: Path) -> None:
    path.write_text(json.dumps(OKPKey.generate_key("X25519").as_dict(private=True)))


def _mangled(path: Path) -> None:
    path.write_text("{")


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_loose, "mode 0640"),
        (_foreign, "belongs to user 65534"),
        (_public_alone, "no private Ed25519 key"),
        (_another_curve, "no private Ed25519 key"),
        (_mangled, "no private Ed25519 key"),
        (_a_folder, "can't be read"),
    ],
)
def test_a_key_that_can_t_be_used_is_refused_and_can_be_mended(
    harm: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    keys, path = Keys(tmp_path), tmp_path / "signing.jwk"
    tmp_path.chmod(0o700)
    keys.sign("thing", {})
    good = path.read_bytes()
    harm(path)
    with pytest.raises(SigningUnavailable, match=says):
        keys.sign("thing", {})
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(good)
    path.chmod(0o600)
    keys.sign("thing", {})


def test_no_key_is_made_where_others_may_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(SigningUnavailable, match="chmod 700"):
        Keys(tmp_path).kid()


def test_what_root_rotates_stays_the_services(tmp_path: Path) -> None:
    service = 65534
    os.chown(tmp_path, service, service)
    keys = Keys(tmp_path / "keys")
    keys.rotate()
    keys.rotate()
    assert keys.kid()
    made = [tmp_path / "keys", *(tmp_path / "keys").iterdir()]
    assert {path.stat().st_uid for path in made} == {service}


def test_the_command_shows_exports_and_rotates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENABLER_KEYS_DIRECTORY", str(tmp_path / "keys"))
    assert main(["keys", "export"]) == 0
    [first] = json.loads(capsys.readouterr().out)["keys"]
    assert main(["keys", "rotate"]) == 0
    assert "is now" in capsys.readouterr().out
    assert main(["keys", "list"]) == 0
    head, now, old = capsys.readouterr().out.splitlines()
    assert (head.split()[-1], now.split()[-1], old.split()[-1]) == ("USE", "signs", "verifies")
    assert old.startswith(first["kid"])
    (tmp_path / "keys" / "signing.jwk").chmod(0o644)
    assert main(["keys", "list"]) == 78
    assert "chmod 600" in capsys.readouterr().err
