"""The token that is shown, and the TLS that is believed: against real servers on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from guest_client.channel import Channel
from guest_client.discovery import candidates, own_cid
from guest_client.endpoint import LINK_LOCAL, Endpoint, parse_endpoint
from guest_client.errors import ConfigurationError, NoAnswer, TokenUnusable, UntrustedAnswer
from guest_client.token import TokenFile

from .conftest import Guest
from .enabler_server import EnablerServer, problem

TOKEN = "vme_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


def with_token(url: str, path: Path, *, required: bool = True) -> Endpoint:
    return replace(parse_endpoint(url), token_file=TokenFile(path, required))


def test_the_token_goes_with_every_request(server: EnablerServer, token_file: Path) -> None:
    with Channel(with_token(server.url, token_file)) as channel:
        channel.read(5).trusted()
        # A new one is used from the moment it is there.
        token_file.write_text("vme_new")
        channel.read(5).trusted()
    shown = [headers.get("Authorization") for *_, headers in server.requests]
    assert shown == [f"Bearer {TOKEN}", "Bearer vme_new"]


def test_without_a_token_nothing_is_shown(server: EnablerServer, tmp_path: Path) -> None:
    with Channel(with_token(server.url, tmp_path / "none", required=False)) as channel:
        assert channel.read(5).trusted()
    assert "Authorization" not in server.requests[0][2]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o777])
def test_a_token_that_others_may_use_is_not(
    server: EnablerServer, token_file: Path, mode: int
) -> None:
    token_file.chmod(mode)
    with Channel(with_token(server.url, token_file, required=False)) as channel:
        read = channel.read(5)
    with pytest.raises(TokenUnusable, match="chmod 600"):
        read.trusted()
    assert server.requests == []


@pytest.mark.parametrize(
    "content", ["", "\n", "two words", "two\nlines", "caf\u00e9", "x" * 5000, "a\0b"]
)
def test_what_is_no_token(token_file: Path, content: str) -> None:
    token_file.write_text(content)
    with pytest.raises(TokenUnusable, match="one line") as refused:
        TokenFile(token_file).read()
    assert not content.strip() or content not in str(refused.value)


def test_a_token_file_that_is_none(tmp_path: Path, token_file: Path) -> None:
    with pytest.raises(TokenUnusable, match="enabler enroll"):
        TokenFile(tmp_path / "none").read()
    with pytest.raises(TokenUnusable, match="is no file"):
        TokenFile(tmp_path).read()
    os.mkfifo(tmp_path / "pipe", 0o600)  # to wait for a writer would be to wait for ever
    with pytest.raises(TokenUnusable, match="is no file"):
        TokenFile(tmp_path / "pipe").read()
    if os.geteuid() == 0:
        os.chown(token_file, 12345, 0)
        with pytest.raises(TokenUnusable, match="belongs to user 12345"):
            TokenFile(token_file).read()


def test_a_user_other_than_root_asks_without(token_file: Path) -> None:
    """Whether a scan of theirs is served is the enabler's to say."""
    if os.geteuid() != 0:
        token_file.chmod(0)
        assert TokenFile(token_file, required=False).read() is None
        return
    asked = """
import os, sys
from pathlib import Path
from guest_client.token import TokenFile
fd = os.open(Path(sys.argv[1]).parent, os.O_PATH)  # the way there is for root alone
os.fchdir(fd)
os.setuid(12345)
print(TokenFile(Path(sys.argv[1]).name, required=False).read())
"""
    command = [sys.executable, "-c", asked, str(token_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "None\n", done.stderr


def test_the_command_with_a_token(guest: Guest, server: EnablerServer, token_file: Path) -> None:
    assert guest.run("identity", "--token-file", str(token_file)).returncode == 0
    assert server.requests[-1][2]["Authorization"] == f"Bearer {TOKEN}"
    guest.environment["GUEST_CLIENT_TOKEN_FILE"] = str(token_file)
    doctor = guest.run("doctor")
    assert doctor.returncode == 0
    assert "for its owner alone" in doctor.stdout
    token_file.chmod(0o644)
    for command in (["identity"], ["scan", "--", "true"]):
        done = guest.run(*command)
        assert done.returncode == 78
        assert "chmod 600" in done.stderr
    assert guest.run("doctor").returncode == 78
    for done in (doctor, guest.run("doctor")):
        assert TOKEN not in done.stdout + done.stderr


def test_a_refused_token(guest: Guest, server: EnablerServer, token_file: Path) -> None:
    server.otherwise = problem(401, "token-refused", "not yours", WWW_Authenticate="Bearer")
    guest.environment["GUEST_CLIENT_TOKEN_FILE"] = str(token_file)
    done = guest.scan("echo hi")
    assert done.returncode == 77
    assert "token-refused: not yours" in done.stderr
    assert TOKEN not in done.stderr + str(guest.report)
    assert len(server.requests) == 1  # final


def certificate(folder: Path, names: str) -> tuple[Path, Path]:
    """A self-signed certificate, its own CA, and its key."""
    made, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "2"),
            *("-subj", "/CN=enabler", "-addext", f"subjectAltName={names}"),
            *("-keyout", str(key), "-out", str(made)),
        ],
        check=True,
        capture_output=True,
    )
    return made, key


@pytest.fixture
def secure(server: EnablerServer, tmp_path: Path) -> tuple[str, Path]:
    """Its URL, and its CA."""
    made, key = certificate(tmp_path, "IP:127.0.0.1")
    server.use_tls(made, key)
    return server.url, made


def test_tls(secure: tuple[str, Path], server: EnablerServer, token_file: Path) -> None:
    url, ca_file = secure
    assert url.startswith("https://")
    with Channel(replace(with_token(url, token_file), ca_file=ca_file)) as channel:
        for _ in range(2):
            channel.read(5).trusted()
    assert len({peer for peer, *_ in server.requests}) == 1  # the connection is kept
    assert server.requests[0][2]["Authorization"] == f"Bearer {TOKEN}"


def test_tls_is_verified(secure: tuple[str, Path], server: EnablerServer, tmp_path: Path) -> None:
    url, ca_file = secure
    other = tmp_path / "other"
    other.mkdir()
    for endpoint in (
        parse_endpoint(url),  # what the system trusts
        replace(parse_endpoint(url), ca_file=certificate(other, "IP:127.0.0.1")[0]),
        replace(parse_endpoint(url.replace("127.0.0.1", "localhost")), ca_file=ca_file),
    ):
        with Channel(endpoint) as channel:
            read = channel.read(5)
        with pytest.raises(UntrustedAnswer, match="--ca-file"):
            read.trusted()
        assert read.failures == ()  # final: it was not asked again
    assert server.requests == []


def test_a_ca_file_that_is_none(guest: Guest, tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for path in (tmp_path / "none.pem", empty):
        with pytest.raises(ConfigurationError, match="can't be used"):
            Channel(replace(parse_endpoint("https://127.0.0.1:1"), ca_file=path))
    done = guest.run("identity", "--enabler", "https://127.0.0.1:1", "--ca-file", str(empty))
    assert done.returncode == 78


def test_a_server_that_begins_tls_and_says_no_more() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with Channel(f"https://127.0.0.1:{silent.getsockname()[1]}") as channel:
            read = channel.read(0.5)
    with pytest.raises(NoAnswer, match="no TLS in time"):
        read.trusted()


def test_plain_http_where_tls_is_spoken(secure: tuple[str, Path]) -> None:
    url, _ = secure
    with Channel(url.replace("https:", "http:")) as channel:
        assert channel.read(0.5).identity is None


def test_discovery_without_vsock_is_the_link_local_address() -> None:
    """The lab shows it with vsock. A machine that the tests run on may have one, being a VM."""
    found = [str(endpoint) for endpoint in candidates(parse_endpoint("auto"))]
    assert found == (["vsock://2:8777"] if own_cid() is not None else []) + [LINK_LOCAL]
    assert candidates(parse_endpoint("http://a:1")) == (parse_endpoint("http://a:1"),)
