"""What an admin installs: users.py, certificates.sh, and files that nats-server takes."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import nkeys
import pytest

from tests.fleet.cluster import DEPLOY, Cluster

HOST = "aaaaaaaa-0000-4000-8000-000000000001"


def users(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(DEPLOY / "users.py"), "--directory", str(folder), *arguments]
    return subprocess.run(program, capture_output=True, text=True, check=False)


def new_key(folder: Path, name: str) -> str:
    return users(folder, "key", str(folder / name)).stdout.strip()


def checked(folder: Path) -> str:
    """What nats-server says of the configuration in there; nothing is started."""
    done = subprocess.run(
        ["nats-server", "-t", "-c", str(folder / "nats-server.conf")],
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert (done.returncode == 0) == ("is valid" in said), said
    return said


def test_nats_server_takes_the_files_as_they_are(tmp_path: Path) -> None:
    for name in ("nats-server.conf", "node.conf"):
        shutil.copy(DEPLOY / name, tmp_path)
    certificates = [str(DEPLOY / "certificates.sh"), str(tmp_path / "tls"), "node,10.0.0.1"]
    subprocess.run(certificates, check=True, capture_output=True)
    node = tmp_path / "node.conf"
    node.write_text(node.read_text().replace("/etc/nats/tls", str(tmp_path / "tls")))
    for role, name in (("host", HOST), ("reader", "r"), ("operator", "o"), ("system", "s")):
        done = users(tmp_path, "add", role, name, new_key(tmp_path, f"{name}.nk"))
        assert done.returncode == 0, done.stderr
    assert "is valid" in checked(tmp_path)
    node.write_text(node.read_text() + "node_of_no_use: 1\n")
    assert "unknown field" in checked(tmp_path)


def test_the_nodes_of_the_cluster_have_valid_files(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "cluster")
    for node in cluster.nodes:
        assert "is valid" in checked(node.directory)


def test_a_key_is_what_nats_takes_for_one_and_its_file_private(tmp_path: Path) -> None:
    public = new_key(tmp_path, "host.nk")
    file = tmp_path / "host.nk"
    assert nkeys.from_seed(file.read_bytes().strip()).public_key.decode() == public
    assert file.stat().st_mode & 0o777 == 0o600
    again = users(tmp_path, "key", str(file))
    assert again.returncode == 1
    assert "is there already" in again.stderr


def test_users_come_and_go_and_a_key_is_rotated(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("# the pilot's\n\n")
    old, new = new_key(tmp_path, "old"), new_key(tmp_path, "new")
    for key in (old, old, new):
        assert users(tmp_path, "add", "host", HOST.upper(), key).returncode == 0
    conf = tmp_path / "users.conf"
    assert conf.read_text().count(old) == conf.read_text().count(new) == 1
    assert users(tmp_path, "remove", HOST, old).returncode == 0
    assert old not in conf.read_text()
    assert f'"enabler.{HOST}.*.*"' in conf.read_text()
    assert (tmp_path / "users").read_text() == f"# the pilot's\n\nhost {HOST} {new}\n"
    assert users(tmp_path, "remove", HOST.upper()).returncode == 0
    assert HOST not in conf.read_text()


@pytest.mark.parametrize(
    ("role", "name", "key", "said"),
    [
        ("host", "host-a", "", "is no UUID"),
        ("reader", "a.b", "", "is no name"),
        ("reader", "a", "seed", "the secret half"),
        ("reader", "a", "UABC", "mistyped"),
        ("reader", "a", "taken", "somebody else's"),
    ],
)
def test_what_can_not_be_a_user_is_refused(
    tmp_path: Path, role: str, name: str, key: str, said: str
) -> None:
    public = new_key(tmp_path, "key")
    users(
        tmp_path, "add", "reader", "first", new_key(tmp_path, "first") if key != "taken" else public
    )
    before = (tmp_path / "users.conf").read_text()
    given = {"": public, "taken": public, "seed": (tmp_path / "key").read_text().strip()}
    done = users(tmp_path, "add", role, name, given.get(key, key))
    assert done.returncode == 1
    assert said in done.stderr
    assert (tmp_path / "users.conf").read_text() == before


def test_a_line_that_is_no_user_is_named(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("host someone\n")
    done = users(tmp_path, "render")
    assert done.returncode == 1
    assert "users, line 1" in done.stderr


def test_certificates_name_their_node_and_a_ca_is_used_again(tmp_path: Path) -> None:
    script = str(DEPLOY / "certificates.sh")
    for node in ("nats-1,127.0.0.1,::1", "nats-2,n2.example.com"):
        subprocess.run([script, str(tmp_path), node], check=True, capture_output=True)
    for name in ("nats-1", "nats-2"):
        command = ["openssl", "verify", "-CAfile", "ca.pem", "-purpose", "sslserver", f"{name}.pem"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        ssl.create_default_context().load_cert_chain(
            tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        )
        assert (tmp_path / f"{name}.key").stat().st_mode & 0o77 == 0
    shown = subprocess.run(
        ["openssl", "x509", "-in", "nats-1.pem", "-noout", "-ext", "subjectAltName"],
        cwd=tmp_path, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    named = {part.strip() for part in shown.splitlines()[1].split(",")}
    assert named == {"DNS:nats-1", "IP Address:127.0.0.1", "IP Address:0:0:0:0:0:0:0:1"}
