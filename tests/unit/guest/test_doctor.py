from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta
from typing import Any

import pytest

from guest_client.doctor import Status, _clock

from .conftest import Guest
from .documents import document, identity
from .enabler_server import EnablerServer, problem


def _findings(guest: Guest, *options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = guest.run("doctor", "--json", *options)
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert told["ok"] == (done.returncode == 0)
    return done.returncode, {finding["check"]: finding for finding in told["findings"]}


def test_all_is_well(guest: Guest) -> None:
    code, findings = _findings(guest)
    assert code == 0
    assert {finding["status"] for finding in findings.values()} == {"ok"}
    assert set(findings) == {
        "client",
        "configuration",
        "spool folder",
        "state folder",
        "token",
        "way to enabler",
        "connection",
        "identity",
        "clock",
    }
    assert "78AAAAA" in findings["identity"]["found"]
    assert "from our address 127.0.0.1" in findings["way to enabler"]["found"]
    assert "enabler by GUEST_CLIENT_ENABLER" in findings["configuration"]["found"]


def test_people_read_lines(guest: Guest, server: EnablerServer) -> None:
    server.otherwise = problem(403, "caller-unknown", "unknown address")
    done = guest.run("doctor")
    assert done.returncode == 77
    assert "ok       connection" in done.stdout
    assert "failed   identity" in done.stdout
    assert "-> ask on the host: `enabler doctor`" in done.stdout


def test_a_broken_configuration(guest: Guest) -> None:
    guest.config.write_text("enabelr = 1")
    code, findings = _findings(guest)
    assert code == 78
    assert "did you mean enabler" in findings["configuration"]["found"]
    assert "notify_program" in findings["configuration"]["mend"]


def test_nobody_listens(guest: Guest) -> None:
    code, findings = _findings(guest, "--enabler", "http://127.0.0.1:9")
    assert code == 69
    assert findings["way to enabler"]["status"] == "ok"
    assert findings["connection"]["status"] == "failed"
    assert "Connection refused" in findings["connection"]["found"]
    assert "systemctl status enabler" in findings["connection"]["mend"]
    assert "identity" not in findings


def test_an_interface_that_is_not_there(guest: Guest) -> None:
    code, findings = _findings(guest, "--enabler", "http://[fe80::77:1%25nope0]:8777")
    assert code == 69
    assert findings["way to enabler"]["status"] == "failed"
    assert "nope0" in findings["way to enabler"]["mend"]
    assert "connection" not in findings


@pytest.mark.parametrize(("name", "says"), [("none", "No such file"), ("config.toml", "no socket")])
def test_a_unix_socket_that_is_none(guest: Guest, name: str, says: str) -> None:
    code, findings = _findings(guest, "--enabler", f"unix:{guest.home}/{name}")
    assert code == 69
    assert says in findings["way to enabler"]["found"]


def test_an_enabler_that_can_not_answer(guest: Guest, server: EnablerServer) -> None:
    server.otherwise = problem(503, "hypervisor-unavailable", "libvirt hangs", Retry_After="0")
    code, findings = _findings(guest, "--deadline", "0.5")
    assert code == 69
    assert "libvirt hangs" in findings["identity"]["found"]


def test_what_makes_verdicts_weaker_is_a_warning(guest: Guest) -> None:
    guest.say(document({"vm.generation_id": None, "migration.state": "outgoing"}))
    code, findings = _findings(guest)
    assert code == 0
    assert findings["generation"]["status"] == "warning"
    assert findings["migration"]["status"] == "warning"


def test_a_state_folder_that_can_not_be(guest: Guest) -> None:
    (guest.home / "file").write_text("")
    guest.environment["GUEST_CLIENT_STATE_DIR"] = str(guest.home / "file" / "state")
    code, findings = _findings(guest)
    assert code == 0
    assert findings["state folder"]["status"] == "warning"


@pytest.mark.parametrize(("program", "code"), [("true", 0), ("/no/such", 78)])
def test_the_notify_program(guest: Guest, program: str, code: int) -> None:
    guest.config.write_text(f'notify_program = ["{program}"]')
    found, findings = _findings(guest)
    assert found == code
    assert findings["notify program"]["status"] == ("failed" if code else "ok")


def test_the_doctor_changes_nothing(guest: Guest) -> None:
    before = sorted(path.name for path in guest.home.iterdir())
    _findings(guest)
    assert sorted(path.name for path in guest.home.iterdir()) == before


@pytest.mark.parametrize(
    ("behind", "status"), [(-3600, Status.OK), (0, Status.OK), (1, Status.OK), (90, Status.WARNING)]
)
def test_a_clock_that_is_behind(behind: int, status: Status) -> None:
    observed = datetime.fromisoformat("2026-11-23T02:40:00.120+00:00")
    assert _clock(identity(), observed - timedelta(seconds=behind)).status is status


_ROUTES = """
set -e
ip link add enabler0 type bridge; ip link add other0 type bridge
ip link set enabler0 up; ip link set other0 up
ip addr add 169.254.77.2/16 dev enabler0; ip addr add 192.0.2.2/24 dev other0
ip route add default via 192.0.2.1 dev other0
exec "$@"
"""
_ASK = """
from guest_client.doctor import _ipv4_device, _way_to
from guest_client.endpoint import parse_endpoint
print(_ipv4_device("169.254.77.1"), _ipv4_device("198.51.100.1"), _ipv4_device("192.0.2.9"))
print(_way_to(parse_endpoint("http://169.254.77.1:8777")).found)
import subprocess
subprocess.run(["ip", "addr", "flush", "dev", "enabler0"], check=True)
for finding in [_way_to(parse_endpoint("http://169.254.77.1:8777"))]:
    print(finding.status, finding.found)
"""


def test_the_interface_to_the_enabler_is_the_one_that_the_kernel_would_take() -> None:
    """In a network namespace of its own, so that no packet leaves."""
    unshare = ["unshare", "--user", "--map-root-user", "--net"]
    done = subprocess.run(
        [*unshare, "sh", "-c", _ROUTES, "sh", sys.executable, "-c", _ASK],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "enabler0 other0 other0",
        "http://169.254.77.1:8777 is reached through enabler0 from our address 169.254.77.2",
        "warning http://169.254.77.1:8777 is reached through other0 from our address 192.0.2.2,"
        " which is not link-local: the enabler's bridge may be elsewhere",
    ]
