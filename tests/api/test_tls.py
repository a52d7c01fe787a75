"""TLS on the guest listener: a real handshake by curl, a certificate that is replaced."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.api.network import DEFAULT_MAC, HOST, PORT, Network, network, run_in, serving
from tests.api.running import DEFAULT_VM, eventually


def certificate(folder: Path, name: str) -> Path:
    """A self-signed certificate and its key, as NAME.pem and NAME.key; returns the first."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[tuple[Network, subprocess.Popen[bytes]]]:
    replace(tmp_path, certificate(tmp_path, "first"))
    environment = {
        "ENABLER_TLS_CERTIFICATE": str(tmp_path / "used.pem"),
        "ENABLER_TLS_KEY": str(tmp_path / "used.key"),
        "ENABLER_LIMITS__REQUEST_SECONDS": "1",
        "ENABLER_LIMITS__CONNECTIONS_PER_CALLER": "3",
    }
    with (
        network("vment", [DEFAULT_MAC], scheme="https") as net,
        serving(net, tmp_path / "log", environment=environment) as process,
    ):
        yield net, process


def replace(folder: Path, certificate: Path) -> None:
    (folder / "used.pem").write_bytes(certificate.read_bytes())
    (folder / "used.key").write_bytes(certificate.with_suffix(".key").read_bytes())


def test_a_guest_is_answered_and_the_certificate_can_be_replaced(
    secured: tuple[Network, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    net, process = secured

    def trusts(name: str) -> bool:
        try:
            status, own = net.curl("/v1/identity", "--cacert", str(tmp_path / f"{name}.pem"))
        except subprocess.CalledProcessError:
            return False
        return status == 200 and own["vm"]["uuid"] == DEFAULT_VM  # type: ignore[index]

    assert trusts("first")
    second = certificate(tmp_path, "second")
    assert not trusts("second")
    replace(tmp_path, second)
    process.send_signal(signal.SIGHUP)
    eventually(lambda: trusts("second"))
    assert not trusts("first")
    # A broken one is refused, and the one before stays.
    (tmp_path / "used.key").write_text("no key")
    process.send_signal(signal.SIGHUP)
    eventually(lambda: "stays in use" in (tmp_path / "log").read_text())
    assert trusts("second")


def test_what_is_no_tls_or_an_old_one_is_refused(
    secured: tuple[Network, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    net, _ = secured
    for options in (["--tls-max", "1.1"], ["--http0.9"]):
        url = f"{'http' if '--http0.9' in options else 'https'}://{HOST}:{PORT}/healthz"
        curl = run_in(net.guest, "curl", "-sS", "--insecure", *options, url)
        assert subprocess.run(curl, capture_output=True).returncode != 0


_SILENT = """
import socket, sys
held = [socket.create_connection((sys.argv[1], int(sys.argv[2]))) for _ in range(6)]
print("held", flush=True)
for connection in held:
    try:
        while connection.recv(100):
            pass
    except ConnectionResetError:
        pass
print("ended", flush=True)
"""


def test_connections_without_a_handshake_count_and_are_ended(
    secured: tuple[Network, subprocess.Popen[bytes]],
) -> None:
    net, _ = secured
    command = run_in(net.guest, "python3", "-c", _SILENT, HOST, str(PORT))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as silent:
        assert silent.stdout is not None
        assert silent.stdout.readline() == "held\n"
        assert silent.stdout.readline() == "ended\n"
    eventually(net.is_ready)
