"""A start that can't succeed: one line that says what to do, the right exit code, no traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

IDENTITY = {"ENABLER_MACHINE__SERIAL_NUMBER": "SN-1", "ENABLER_MACHINE__MANUFACTURER": "Acme"}
TEST = ("--libvirt-uri", "test:///default")


def enabler(
    *arguments: str, environment: dict[str, str] | None = None, before: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, sys.executable, "-m", "enabler", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | (IDENTITY if environment is None else environment),
    )


def fails(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    if code != 64:  # wrong usage shows the usage as well
        assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--nonsense"], ["--nonsense", "--help"]),
        (["nonsense"], ["nonsense"]),
        ([], ["COMMAND"]),
    ],
)
def test_wrong_usage(arguments: list[str], words: list[str]) -> None:
    fails(enabler(*arguments), 64, *words)


@pytest.mark.parametrize(
    ("uri", "code", "word"),
    [
        ("nonsense:///system", 69, "qemu:///system"),
        ("qemu+tcp://elsewhere/system", 78, "elsewhere"),
        ("none", 78, "qemu:///system"),
        ("qemu+unix:///system?socket=/nonexistent", 69, "libvirtd"),
    ],
)
def test_a_libvirt_uri_that_leads_nowhere(uri: str, code: int, word: str, tmp_path: Path) -> None:
    listen = f"unix:{tmp_path}/admin.sock"
    fails(enabler("serve", "--libvirt-uri", uri, "--listen", listen), code, word)
    assert list(tmp_path.iterdir()) == []


def test_no_permission_on_the_libvirt_socket(tmp_path: Path) -> None:
    path = tmp_path / "libvirt-sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o600)
        os.chown(path, 65534, 65534)
        uri = f"qemu+unix:///system?socket={path}"
        # Root without its power over other users' files.
        powerless = (
            "setpriv",
            "--bounding-set",
            "-dac_override,-dac_read_search",
            "--inh-caps",
            "-all",
        )
        done = enabler("identity", "--libvirt-uri", uri, before=powerless)
    fails(done, 77, "libvirt")


def test_no_identity() -> None:
    done = enabler("identity", *TEST, environment={})
    fails(done, 78, "serial_number", "/etc/enabler/enabler.toml")


def test_a_fillers_identity() -> None:
    filler = {"ENABLER_MACHINE__SERIAL_NUMBER": "To be filled by O.E.M."}
    fails(enabler("identity", *TEST, environment=filler), 78, "serial_number")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("listen = [", ["not TOML"]),
        ("libvirt_url = 'x'", ["libvirt_url", "libvirt_uri"]),
        ("[machine]\nserial = 'x'", ["machine.serial", "serial_number"]),
        ("listen = 7", ["listen"]),
        ("listen = []", ["listen"]),
        ("listen = ['https://1.2.3.4:1']", ["tls_certificate", "tls_key"]),
        ("listen = ['http://1.2.3.4:99999']", ["65535"]),
        ("listen = ['http://[fe80::1]:8777']", ["%25enabler0"]),
        ("listen = ['unix:relative.sock']", ["absolute"]),
        ("log_level = 'loud'", ["log_level"]),
        ("admin_mode = '999'", ["admin_mode"]),
    ],
)
def test_a_broken_configuration(content: str, words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "enabler.toml"
    file.write_text(content)
    fails(enabler("serve", "--config", str(file), *TEST), 78, *words)


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    fails(enabler("serve", "--config", str(tmp_path / "none.toml")), 78, "none.toml")


def test_an_unknown_key_in_the_environment() -> None:
    done = enabler("identity", *TEST, environment=IDENTITY | {"ENABLER_LISTN": "x"})
    fails(done, 78, "listn", "listen")


def test_a_flag_outweighs_the_environment_and_that_the_file(tmp_path: Path) -> None:
    file = tmp_path / "enabler.toml"
    file.write_text(
        "libvirt_uri = 'file:///'\n[machine]\nserial_number = 'FILE'\nmodel = 'Rack 1'\n"
    )
    environment = IDENTITY | {"ENABLER_LIBVIRT_URI": "environment:///"}
    done = enabler("identity", "--config", str(file), *TEST, environment=environment)
    assert done.returncode == 0, done.stderr
    assert "SN-1" in done.stdout
    assert "Rack 1  (configuration)" in done.stdout


def test_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"http://127.0.0.1:{taken.getsockname()[1]}"
        fails(enabler("serve", *TEST, "--listen", listen), 69, "another program has port")


def test_an_address_that_no_interface_has() -> None:
    fails(enabler("serve", *TEST, "--listen", "http://169.254.99.99:1"), 69, "no interface")
    listen = "http://[fe80::77:1%25nonexistent0]:8777"
    fails(enabler("serve", *TEST, "--listen", listen), 69, "nonexistent0")


def test_a_socket_path_that_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    fails(enabler("serve", *TEST, "--listen", f"unix:{file}"), 69, "no socket")
    assert file.read_text() == "precious"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "sock"))
        other.listen()
        done = enabler("serve", *TEST, "--listen", f"unix:{tmp_path}/sock")
        fails(done, 69, "another enabler")


def test_a_socket_path_that_may_not_be_written(tmp_path: Path) -> None:
    done = enabler("serve", *TEST, "--listen", "unix:/proc/admin.sock")
    fails(done, 69, "/proc/admin.sock")


def test_asking_a_service_that_does_not_run(tmp_path: Path) -> None:
    fails(enabler("vms", "--listen", f"unix:{tmp_path}/none.sock"), 69, "none.sock")
