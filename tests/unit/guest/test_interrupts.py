"""Ctrl-C and its kin, at every stage: scanner and client end together, and nothing is half done."""

from __future__ import annotations

import os
import pty
import signal
import subprocess

import pytest

from ..processes import lives
from .conftest import GUEST_CLIENT, Guest
from .enabler_server import EnablerServer, problem
from .waiting import until

# A shell that has a child of its own: both must end.
SCANNER = (
    "echo half; sleep 600 & echo $! >child; echo $$ >scanner.new; mv scanner.new scanner; wait"
)


def _start(guest: Guest, *options: str) -> subprocess.Popen[bytes]:
    (guest.home / "out").write_text("old")
    arguments = ["scan", "--report", "report.json", "--output", "out", *options]
    return guest.start(*arguments, "--", "sh", "-c", SCANNER)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_client_and_scanner_and_what_it_started(guest: Guest, signum: int) -> None:
    process = _start(guest, "--keep-inconsistent", "aside")
    until((guest.home / "scanner").exists)
    process.send_signal(signum)
    _, said = process.communicate()
    assert process.returncode == 128 + signum
    name = signal.Signals(signum).name
    assert said.decode() == f"guest-client: ended by {name}; the output was discarded\n"
    assert not lives((guest.home / "scanner").read_text())
    until(lambda: not lives((guest.home / "child").read_text()))
    assert (guest.home / "out").read_text() == "old"
    assert not (guest.home / "aside").exists()
    assert guest.leftovers() == []
    report = guest.report
    assert report["interrupted_by"] == name
    assert report["exit_code"] == 128 + signum
    assert report["verdict"] is None
    assert report["before"]["identity"] is not None
    assert report["attempts"][0]["scanner"]["finished"]


def test_a_scanner_that_ends_well_when_asked_is_interrupted_all_the_same(guest: Guest) -> None:
    tidy = 'trap "exit 0" TERM; echo half; >ready; while :; do sleep 0.02; done'
    process = guest.start("scan", "--output", "out", "--", "sh", "-c", tidy)
    until((guest.home / "ready").exists)
    process.terminate()
    process.communicate()
    assert process.returncode == 143
    assert not (guest.home / "out").exists()


def test_a_scanner_that_does_not_heed_is_killed(guest: Guest) -> None:
    deaf = 'trap "" INT TERM HUP; echo $$ >scanner.new; mv scanner.new scanner; sleep 600 & wait'
    process = guest.start("scan", "--", "sh", "-c", deaf)
    until((guest.home / "scanner").exists)
    process.terminate()
    process.communicate()
    assert process.returncode == 143
    assert not lives((guest.home / "scanner").read_text())


def test_a_signal_during_the_reads_ends_them(guest: Guest, server: EnablerServer) -> None:
    server.otherwise = problem(503, "hypervisor-unavailable")
    process = guest.start("scan", "--report", "report.json", "--", "touch", "started")
    until(lambda: bool(server.requests))
    process.terminate()
    process.communicate()
    assert process.returncode == 143
    assert guest.report["interrupted_by"] == "SIGTERM"
    assert not (guest.home / "started").exists()


def test_a_signal_to_identity_ends_it_quietly(guest: Guest, server: EnablerServer) -> None:
    server.otherwise = problem(503, "hypervisor-unavailable")
    process = guest.start("identity")
    until(lambda: bool(server.requests))
    process.send_signal(signal.SIGINT)
    out, said = process.communicate()
    assert (process.returncode, out, said) == (130, b"", b"")


def test_what_was_ignored_at_the_start_stays_ignored(guest: Guest) -> None:
    """As with nohup: neither client nor scanner ends by a hang-up."""
    line = 'trap "" HUP; exec "$@"'
    scanner = ">ready; while [ ! -e go ]; do sleep 0.02; done; echo whole"
    process = subprocess.Popen(
        ["sh", "-c", line, "sh", *GUEST_CLIENT, "scan", "--", "sh", "-c", scanner],
        cwd=guest.home,
        env=guest.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    until((guest.home / "ready").exists)
    process.send_signal(signal.SIGHUP)
    (guest.home / "go").touch()
    out, _ = process.communicate()
    assert (process.returncode, out) == (0, b"whole\n")


class Terminal:
    """A client on a terminal of its own, as its session's leader and foreground."""

    def __init__(self, guest: Guest, *arguments: str) -> None:
        self.keyboard, screen = pty.openpty()
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *GUEST_CLIENT, *arguments],
            cwd=guest.home,
            env=guest.environment,
            stdin=screen,
            stdout=screen,
            stderr=screen,
        )
        os.close(screen)

    def shown(self) -> bytes:
        """All that is shown until the client ends."""
        shown = bytearray()
        try:
            while piece := os.read(self.keyboard, 4096):
                shown += piece
        except OSError:  # the last one who had the terminal has gone
            pass
        os.close(self.keyboard)
        self.process.wait()
        return bytes(shown)


def test_ctrl_c_on_a_terminal(guest: Guest) -> None:
    report = guest.home / "report.json"
    terminal = Terminal(guest, "scan", "--report", str(report), "--", "sh", "-c", SCANNER)
    until((guest.home / "scanner").exists)
    os.write(terminal.keyboard, b"\x03")
    shown = terminal.shown()
    assert terminal.process.returncode == 130
    assert b"ended by SIGINT" in shown
    assert b"half" not in shown
    assert b"Traceback" not in shown
    assert not lives((guest.home / "scanner").read_text())
    # sh starts its background jobs deaf to Ctrl-C, so its child needs our help to end.
    assert guest.report["interrupted_by"] == "SIGINT"
    os.kill(int((guest.home / "child").read_text()), signal.SIGKILL)


def test_on_a_terminal_the_scanner_gets_one_ctrl_c_and_time_to_tidy_up(guest: Guest) -> None:
    tidy = (
        'trap "echo x >>ints; [ -e done ] || sleep 0.3; >done; exit 1" INT;'
        " >ready; while :; do sleep 0.02; done"
    )
    terminal = Terminal(guest, "scan", "--", "sh", "-c", tidy)
    until((guest.home / "ready").exists)
    os.write(terminal.keyboard, b"\x03")
    terminal.shown()
    assert terminal.process.returncode == 130
    assert (guest.home / "done").exists()
    assert (guest.home / "ints").read_text() == "x\n"


def test_on_a_terminal_the_scanner_may_read_from_it(guest: Guest) -> None:
    terminal = Terminal(guest, "scan", "--", "sh", "-c", "echo >ready; read line; echo got $line")
    until((guest.home / "ready").exists)
    os.write(terminal.keyboard, b"secret\n")
    shown = terminal.shown()
    assert terminal.process.returncode == 0
    assert b"got secret" in shown


def test_on_a_terminal_a_vain_wait_is_explained(guest: Guest, server: EnablerServer) -> None:
    server.script = [problem(503, "vm-arriving", "on its way", Retry_After="0")] * 2
    terminal = Terminal(guest, "identity", "--json")
    shown = terminal.shown()
    assert terminal.process.returncode == 0
    assert shown.count(b"no answer yet (503 vm-arriving: on its way); trying for 20 s") == 1
