"""The command line: what is printed, and one clear line for each wrong use."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from guest_client.config import KEYS

from .conftest import GUEST_CLIENT, Guest
from .documents import HOST_A, document
from .enabler_server import EnablerServer, answering, problem


def test_identity_for_people(guest: Guest) -> None:
    done = guest.run("identity")
    assert (done.returncode, done.stderr) == (0, "")
    rows = dict(line.split("  ", 1) for line in done.stdout.replace(" \n", "\n").splitlines())
    shown = {name.strip(): value.strip() for name, value in rows.items()}
    assert "78AAAAA" in done.stdout
    assert HOST_A in done.stdout
    assert "2 sockets, 24 cores, 192 threads, 1.0 TiB" in done.stdout
    assert "4 vCPUs, 8.0 GiB" in done.stdout
    assert "stay-1 since 2026-11-23T02:37:29.304Z (by start)" in done.stdout
    assert shown["manufacturer"] == "IBM"


def test_identity_as_json_is_the_document(guest: Guest, server: EnablerServer) -> None:
    guest.say(document() | {"new_member": 1})
    done = guest.run("identity", "--json")
    assert json.loads(done.stdout) == document() | {"new_member": 1}


def test_what_is_not_known_is_said_so_and_terminal_codes_are_not_passed_on(guest: Guest) -> None:
    guest.say(document({"machine.model": None, "vm.name": "\x1b[2Jx\ny"}))
    done = guest.run("identity")
    assert "not known" in done.stdout
    assert "\x1b" not in done.stdout
    assert r"\x1b[2Jx\ny" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["nonsense"], "nonsense"),
        (["scan"], "put the scanner after --"),
        (["scan", "lshw"], "unrecognized arguments: lshw"),
        (["scan", "--"], "nothing follows the --"),
        (["scan", "--no-such-flag", "--", "true"], "--no-such-flag"),
        (["scan", "--outpu", "x", "--", "true"], "--outpu"),
        (["scan", "--output", "--", "true"], "--output"),
        (["scan", "--deadline", "0", "--", "true"], "more than 0"),
        (["scan", "--deadline", "soon", "--", "true"], "a number of seconds, not 'soon'"),
        (["scan", "--wait-if-migrating", "-1", "--", "true"], "--wait-if-migrating"),
        (["scan", "--enabler", "169.254.77.1", "--", "true"], "write it as http://"),
        (["scan", "--enabler", "http://[fe80::77:1]:1", "--", "true"], "needs its interface"),
        (["scan", "--repeat-if-migrated=0", "--", "true"], "1 to 1000"),
        (["scan", "--repeat-if-migrated=many", "--", "true"], "1 to 1000"),
        (["scan", "--signal-if-migrated", "SIGNOPE", "--", "true"], "is no signal"),
        (["scan", "--signal-if-migrated", "999", "--", "true"], "999"),
        (["scan", "--signal-pid", "1", "--", "true"], "--signal-if-migrated"),
        (
            ["scan", "--signal-if-migrated", "HUP", "--signal-pid", "0", "--", "true"],
            "no process number",
        ),
        (
            ["scan", "--signal-if-migrated", "HUP", "--signal-pid", "4194304", "--", "true"],
            "no such process",
        ),
        (["scan", "--notify-program", "x", "--", "true"], "--notify-if-migrated"),
        (["scan", "--state-dir", "here", "--", "true"], "a full path"),
        (["plans", "nonsense"], "there is no ready-made plan"),
        (["plans", "--", "true"], "no command after --"),
        (["identity", "extra"], "extra"),
        (["identity", "--", "lshw"], "no command after --"),
        (["doctor", "--deadline", "x"], "a number of seconds"),
    ],
)
def test_wrong_use_is_one_line_and_64(
    guest: Guest, server: EnablerServer, arguments: list[str], says: str
) -> None:
    done = guest.run(*arguments)
    assert done.returncode == 64
    assert says in done.stderr
    assert done.stderr.startswith("guest-client: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert server.requests == []


@pytest.mark.parametrize("command", [["identity"], ["scan", "--", "touch", "started"]])
@pytest.mark.parametrize("content", ["enabler = [", "enablr = 'x'", "deadline = 'x'"])
def test_a_wrong_configuration_is_one_line_and_78(
    guest: Guest, command: list[str], content: str
) -> None:
    guest.config.write_text(content)
    done = guest.run(*command)
    assert done.returncode == 78
    assert str(guest.config) in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (guest.home / "started").exists()


def test_the_configuration_file_by_flag(guest: Guest, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("unknown = 1")
    assert guest.run("identity", "--config", str(other)).returncode == 78
    assert guest.run("identity", "--config", "/no/such/file").returncode == 78


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"hello", "text/plain"),
        (b"hello", "application/json"),
        (b" " * 10_000_000, "application/json"),
    ],
)
def test_a_lying_enabler_is_one_line_and_69(
    guest: Guest, server: EnablerServer, body: bytes, kind: str
) -> None:
    server.otherwise = answering(body, kind=kind)
    done = guest.run("identity")
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_redirect_is_one_line_and_69(guest: Guest, server: EnablerServer) -> None:
    server.otherwise = answering(b"", 307, Location=server.url)
    done = guest.run("identity")
    assert done.returncode == 69
    assert "sends us on" in done.stderr
    assert len(server.requests) == 1


def test_an_unreachable_enabler_is_one_line_and_69(guest: Guest) -> None:
    done = guest.run("identity", "--enabler", "http://127.0.0.1:9", "--deadline", "0.2")
    assert done.returncode == 69
    assert "Connection refused" in done.stderr
    assert "guest-client doctor" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_refusal_is_77(guest: Guest, server: EnablerServer) -> None:
    server.otherwise = problem(403, "caller-unknown")
    assert guest.run("identity").returncode == 77


def test_a_reader_of_the_identity_that_went_away(guest: Guest) -> None:
    with Path("/dev/full").open("wb") as full:
        done = guest.run("identity", stdout=full)
    assert done.returncode == 74
    assert done.stderr == "guest-client: can't write the standard output: No space left on device\n"


@pytest.mark.parametrize("arguments", [["--help"], ["scan", "--help"], ["doctor", "--help"]])
def test_help_names_the_exit_codes_and_defaults(guest: Guest, arguments: list[str]) -> None:
    done = guest.run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    if arguments != ["doctor", "--help"]:
        assert "75" in done.stdout
    if arguments[0] != "--help":
        assert "169.254.77.1:8777" in done.stdout


def test_every_key_that_a_scan_heeds_has_its_flag(guest: Guest) -> None:
    shown = guest.run("scan", "--help").stdout
    agents_own = {"agent_id_file", "watch_interval", "program", "destination"}
    for name in {key.name for key in KEYS} - agents_own:
        assert f"--{name.replace('_', '-')}" in shown


def test_the_version(guest: Guest) -> None:
    done = guest.run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("guest-client ")


def test_everything_after_the_dashes_is_the_scanners(guest: Guest) -> None:
    done = guest.run("scan", "--", "echo", "--output", "x", "--", "-h")
    assert (done.returncode, done.stdout) == (0, "--output x -- -h\n")


def test_python_errors_do_not_reach_people(guest: Guest) -> None:
    """An argument that is no UTF-8 goes to the scanner, and into the report, as it is."""
    done = subprocess.run(
        [*GUEST_CLIENT, "scan", "--report", "report.json", "--", "printf", "%s", b"\xff\xfe"],
        cwd=guest.home,
        env=guest.environment,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\xff\xfe", b"")
    assert guest.report["command"][-1] == "\udcff\udcfe"
