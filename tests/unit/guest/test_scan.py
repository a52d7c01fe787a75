"""Guarded scans as a user runs them: real scanners, real files, a verdict for each."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from .conftest import GUEST_CLIENT, Guest
from .documents import MIGRATED, document, encoded
from .enabler_server import EnablerServer, answering, problem

REPORT_MEMBERS = {
    "report_version",
    "client",
    "attestation",
    "command",
    "enabler",
    "started",
    "finished",
    "verdict",
    "before",
    "after",
    "exit_code",
    "error",
    "interrupted_by",
    "output",
    "kept",
    "attempts",
    "triggers",
}


def test_a_quiet_scan_is_published_on_standard_output(guest: Guest) -> None:
    done = guest.scan("echo found; echo said >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "found\n", "said\n")
    report = guest.report
    assert set(report) == REPORT_MEMBERS
    assert report["verdict"]["outcome"] == "consistent"
    assert report["before"]["identity"] == report["after"]["identity"] == document()
    assert report["output"] == {
        "destination": "-",
        "published": True,
        "sha256": hashlib.sha256(b"found\n").hexdigest(),
        "bytes": 6,
    }
    assert report["command"] == ["sh", "-c", "echo found; echo said >&2"]
    assert report["exit_code"] == 0
    assert len(report["attempts"]) == 1
    assert report["attempts"][0]["scanner"]["exit_code"] == 0
    times = [report["started"], report["before"]["finished"], report["after"]["started"]]
    assert times == sorted(times)
    assert report["finished"] >= report["after"]["finished"]


def test_nothing_is_published_before_the_verdict(guest: Guest) -> None:
    guest.scan("echo found; ls >seen; cat out >>seen", "--output", "out")
    seen = (guest.home / "seen").read_text().split()
    assert "out" not in seen
    assert "found" not in seen
    assert (guest.home / "out").read_text() == "found\n"
    assert guest.leftovers() == []


def test_a_crossed_scan_is_discarded(guest: Guest) -> None:
    (guest.home / "out").write_text("old")
    done = guest.scan(f"echo mixed; {guest.moving()}", "--output", "out")
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr == (
        "guest-client: the VM moved to another host inside the scan: IBM 9040-MR9 78AAAAA, then"
        " IBM 9040-MR9 78BBBBB; the output was discarded; run it again, or use"
        " --repeat-if-migrated\n"
    )
    assert (guest.home / "out").read_text() == "old"
    assert guest.leftovers() == []
    report = guest.report
    assert report["verdict"]["reason"] == "migrated"
    assert report["before"]["identity"] == document()
    assert report["after"]["identity"] == document(MIGRATED)
    assert report["output"]["published"] is False
    assert report["output"]["sha256"] == hashlib.sha256(b"mixed\n").hexdigest()


def test_a_crossed_scan_can_be_kept_aside(guest: Guest) -> None:
    done = guest.scan(f"echo mixed; {guest.moving()}", "--keep-inconsistent", "aside")
    assert (done.returncode, done.stdout) == (75, "")
    assert "the output was kept in aside" in done.stderr
    assert (guest.home / "aside").read_text() == "mixed\n"
    assert guest.report["kept"] == "aside"


def test_a_consistent_scan_leaves_nothing_aside(guest: Guest) -> None:
    guest.scan("echo fine", "--keep-inconsistent", "aside", "--output", "out")
    assert not (guest.home / "aside").exists()
    assert guest.report["kept"] is None


def test_a_crossed_scan_is_repeated(guest: Guest) -> None:
    line = (
        f"{guest.moving(once=True)}; if [ -e second ]; then echo new; else echo mixed; fi; >second"
    )
    done = guest.scan(line, "--repeat-if-migrated", "--output", "out")
    assert done.returncode == 0
    assert "repeating (1 of 3)" in done.stderr
    assert (guest.home / "out").read_text() == "new\n"
    report = guest.report
    assert [a["verdict"]["outcome"] for a in report["attempts"]] == ["inconsistent", "consistent"]
    assert report["before"]["identity"] == document(MIGRATED)
    assert report["verdict"]["outcome"] == "consistent"
    assert report["attempts"][0]["output"]["sha256"] == hashlib.sha256(b"mixed\n").hexdigest()
    assert guest.leftovers() == []


def test_repeats_end(guest: Guest) -> None:
    """Each attempt moves the VM on; the last says that it was one too many."""
    line = (
        "n=$(cat n 2>/dev/null || echo 0); echo $((n + 1)) >n;"
        f' sed "s/stay-[0-9]*/stay-9$n/" {guest.identity} >i; mv i {guest.identity}'
    )
    done = guest.scan(line, "--repeat-if-migrated=2", "--output", "out")
    assert done.returncode == 75
    assert (guest.home / "n").read_text() == "3\n"
    assert "giving up after 3 attempts" in done.stderr
    assert len(guest.report["attempts"]) == 3
    assert not (guest.home / "out").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"residency.id": "stay-3", "residency.arrived_by": "migration"}, "returned"),
        ({"residency.id": "stay-3", "residency.arrived_by": "restore"}, "restored"),
        ({"vm.vcpus": 5}, "resized"),
        ({"vm.uuid": "2222"}, "cloned"),
    ],
)
def test_every_inconsistent_scan_is_repeated(
    guest: Guest, changes: dict[str, Any], reason: str
) -> None:
    done = guest.scan(guest.moving(changes, once=True), "--repeat-if-migrated")
    assert done.returncode == 0
    assert guest.report["attempts"][0]["verdict"]["reason"] == reason


def test_a_migration_in_progress_is_told(guest: Guest) -> None:
    guest.say(document({"migration.state": "outgoing"}))
    done = guest.scan("echo found")
    assert (done.returncode, done.stdout) == (0, "found\n")
    assert "a migration was in progress" in done.stderr
    assert guest.report["verdict"]["migration_in_progress"] is True


# No trusted answer.


def test_without_an_answer_before_nothing_is_started(guest: Guest, server: EnablerServer) -> None:
    server.otherwise = problem(503, "hypervisor-unavailable", "libvirt is gone", Retry_After="1")
    done = guest.scan(">started", "--deadline", "0.3")
    assert done.returncode == 69
    assert done.stderr.count("\n") == 1
    assert "libvirt is gone" in done.stderr
    assert "the scan was not started" in done.stderr
    assert not (guest.home / "started").exists()
    report = guest.report
    assert report["verdict"]["outcome"] == "unverified"
    assert report["after"] is None
    assert report["attempts"][0]["scanner"] is None
    assert report["before"]["failed_tries"]


def test_without_an_answer_after_the_output_is_held_back(
    guest: Guest, server: EnablerServer
) -> None:
    guest.environment["GUEST_CLIENT_DEADLINE"] = "0.5"
    (guest.home / "out").write_text("old")
    done = guest.scan(f"echo new; echo '{{' >{guest.identity}", "--output", "out")
    assert done.returncode == 69
    assert (guest.home / "out").read_text() == "old"
    assert guest.report["verdict"]["outcome"] == "unverified"
    assert guest.report["verdict"]["reason"] == "invalid-identity"


def test_an_unverified_scan_is_not_repeated(guest: Guest, server: EnablerServer) -> None:
    done = guest.scan(
        f"echo >>runs; rm {guest.identity}", "--deadline", "0.3", "--repeat-if-migrated"
    )
    assert done.returncode == 69
    assert (guest.home / "runs").read_text() == "\n"


def test_a_refusal_has_its_own_exit_code(guest: Guest, server: EnablerServer) -> None:
    server.otherwise = problem(403, "caller-unknown", "no VM has this address")
    done = guest.scan(">started")
    assert done.returncode == 77
    assert "no VM has this address" in done.stderr
    assert not (guest.home / "started").exists()
    assert guest.report["verdict"]["reason"] == "refused"


def test_a_blackout_within_the_deadline_is_no_obstacle(guest: Guest, server: EnablerServer) -> None:
    answer = server.otherwise
    server.script = [answer, *([problem(503, "vm-arriving", Retry_After="0")] * 3)]
    done = guest.scan("echo found")
    assert (done.returncode, done.stdout, done.stderr) == (0, "found\n", "")
    assert len(guest.report["after"]["failed_tries"]) == 3


def test_verbose_tells_of_each_failed_try(guest: Guest, server: EnablerServer) -> None:
    server.script = [problem(503, "vm-arriving", "on its way", Retry_After="0")]
    done = guest.scan("true", "--verbose")
    assert done.stderr.count("on its way") == 1


# What the scanner does.


@pytest.mark.parametrize("code", [1, 2, 75, 255])
def test_the_scanners_exit_code_is_passed_on_with_its_output(guest: Guest, code: int) -> None:
    done = guest.scan(f"echo found; exit {code}", "--output", "out")
    assert done.returncode == code
    assert (guest.home / "out").read_text() == "found\n"


def test_the_output_of_a_killed_scanner_is_not_whole(guest: Guest) -> None:
    done = guest.scan("echo half; kill -SEGV $$", "--output", "out")
    assert done.returncode == 128 + 11
    assert "killed by SIGSEGV" in done.stderr
    assert not (guest.home / "out").exists()
    assert guest.report["attempts"][0]["scanner"]["signal"] == "SIGSEGV"


def test_the_scanner_has_our_standard_input(guest: Guest) -> None:
    (guest.home / "in").write_text("from outside")
    with (guest.home / "in").open("rb") as stdin:
        assert guest.scan("cat", stdin=stdin).stdout == "from outside"


def _plain_file(path: Path, content: bytes, mode: int) -> str:
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


def test_a_scanner_that_can_not_be_run_is_found_out_first(
    guest: Guest, server: EnablerServer
) -> None:
    for command, code, says in [
        ("no-such-scanner", 127, "no such program on PATH"),
        ("./no-such-scanner", 127, "no such file"),
        ("", 127, "empty"),
        (str(guest.home), 126, "a directory"),
        (_plain_file(guest.home / "data", b"x", 0o644), 126, "not executable"),
    ]:
        done = guest.scan("", command=[command])
        assert done.returncode == code
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
        assert guest.report["exit_code"] == code
        assert guest.report["attempts"] == []
    assert server.requests == []


@pytest.mark.parametrize(
    ("content", "says"), [(b"\x00\x01", "#! line"), (b"#!/no/such/interpreter\n", "interpreter")]
)
def test_a_scanner_that_the_kernel_refuses(guest: Guest, content: bytes, says: str) -> None:
    command = _plain_file(guest.home / "scanner", content, 0o755)
    done = guest.scan("", command=[command])
    assert done.returncode == 126
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


# Where the output goes.


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_output_has_the_mode_of_the_umask(guest: Guest, umask: int, mode: int) -> None:
    guest.scan("echo found", "--output", "out", umask=umask)
    assert (guest.home / "out").stat().st_mode & 0o7777 == mode


def test_an_existing_output_keeps_its_mode(guest: Guest) -> None:
    _plain_file(guest.home / "out", b"old", 0o640)
    guest.scan("echo found", "--output", "out")
    assert (guest.home / "out").stat().st_mode & 0o7777 == 0o640
    assert (guest.home / "out").read_text() == "found\n"


def test_a_symbolic_link_stays_and_what_it_points_to_is_replaced(guest: Guest) -> None:
    (guest.home / "real").mkdir()
    (guest.home / "out").symlink_to("real/out")
    guest.scan("echo found", "--output", "out")
    assert (guest.home / "out").is_symlink()
    assert (guest.home / "real/out").read_text() == "found\n"


def test_dev_null_stays_dev_null(guest: Guest) -> None:
    done = guest.scan("echo found", "--output", "/dev/null", "--keep-inconsistent", "/dev/null")
    assert (done.returncode, done.stdout) == (0, "")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1"])
def test_standard_output_by_name(guest: Guest, name: str) -> None:
    assert guest.scan("echo found", "--output", name).stdout == "found\n"


def test_standard_output_that_is_a_file_is_appended_to_as_a_shell_would(guest: Guest) -> None:
    with (guest.home / "log").open("ab") as log:
        log.write(b"before\n")
        log.flush()
        guest.scan("echo found", "--output", "/dev/stdout", stdout=log)
    assert (guest.home / "log").read_text() == "before\nfound\n"


def test_a_fifo_is_written_to(guest: Guest) -> None:
    fifo = guest.home / "fifo"
    os.mkfifo(fifo)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_text()))
    reader.start()
    done = guest.scan("echo found", "--output", "fifo")
    reader.join()
    assert (done.returncode, got) == (0, ["found\n"])
    assert fifo.is_fifo()


@pytest.mark.parametrize("flag", ["--output", "--report", "--keep-inconsistent"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        (".", "is a folder"),
        ("no/such/out", "make it first"),
        ("config.toml/out", "Not a directory"),
        ("/proc/out", "can't create /proc/out"),
        ("x" * 300, "File name too long"),
        ("", "empty"),
    ],
)
def test_an_output_that_can_not_be_is_found_out_first(
    guest: Guest, server: EnablerServer, flag: str, name: str, says: str
) -> None:
    done = guest.run("scan", flag, name, "--", "touch", "started")
    assert done.returncode == 73
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (guest.home / "started").exists()
    assert server.requests == []


def test_a_full_device_is_told(guest: Guest) -> None:
    done = guest.scan("echo found", "--output", "/dev/full")
    assert done.returncode == 74
    assert "the disk is full" in done.stderr
    assert done.stderr.count("\n") == 1
    assert guest.report["output"]["published"] is False


def _limited(guest: Guest, blocks: int, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run with a limit on the size of any file, which stands for a disk that fills up."""
    line = f'ulimit -f {blocks}; trap "" XFSZ; exec "$@"'
    return subprocess.run(
        ["sh", "-c", line, "sh", *GUEST_CLIENT, *arguments],
        cwd=guest.home,
        env=guest.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


def test_a_scanner_that_does_not_notice_the_full_disk_is_caught_out(guest: Guest) -> None:
    (guest.home / "out").write_text("old")
    careless = 'trap "" XFSZ; head -c 1000000 /dev/zero; exit 0'
    done = _limited(guest, 100, "scan", "--output", "out", "--", "sh", "-c", careless)
    assert done.returncode == 74
    assert b"file size limit" in done.stderr
    assert (guest.home / "out").read_text() == "old"
    assert guest.leftovers() == []


def test_a_reader_that_went_away_is_told(guest: Guest) -> None:
    process = guest.start("scan", "--report", "report.json", "--", "seq", "300000")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 74
    assert said == "guest-client: can't write the standard output: its reader has gone\n"
    assert guest.report["output"]["published"] is False


@pytest.mark.parametrize("name", [[], ["--output", "/dev/stdout"]])
def test_a_closed_standard_output_is_found_out_first(
    guest: Guest, server: EnablerServer, name: list[str]
) -> None:
    argv = [*GUEST_CLIENT, "scan", *name, "--", "touch", "started"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *argv],
        cwd=guest.home,
        env=guest.environment,
        stderr=subprocess.PIPE,
        check=False,
    )
    assert done.returncode == 73
    assert b"is closed" in done.stderr
    assert server.requests == []


def test_with_all_descriptors_closed_the_output_still_gets_where_it_should(guest: Guest) -> None:
    argv = [*GUEST_CLIENT, "scan", "--output", "out", "--", "sh", "-c", "echo found; echo e >&2"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *argv],
        cwd=guest.home,
        env=guest.environment,
        check=False,
    )
    assert done.returncode == 0
    assert (guest.home / "out").read_text() == "found\n"


def test_a_big_output_is_not_held_in_memory(guest: Guest) -> None:
    """By a limit on the client's memory; what it had used at most, as the kernel counts it, would
    also have what the tests had when they started it."""
    size = 160 << 20
    scan = ["scan", "--report", "report.json", "--output", "out"]
    scanner = ["--", "head", "-c", str(size), "/dev/zero"]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -d 98304; exec "$@"', "sh", *GUEST_CLIENT, *scan, *scanner],
        cwd=guest.home,
        env=guest.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (guest.home / "out").stat().st_size == size
    assert guest.report["output"]["bytes"] == size


def test_the_report_is_written_in_one_step_and_by_name(guest: Guest) -> None:
    done = guest.run("scan", "--report", "-", "--output", "out", "--", "echo", "found")
    assert json.loads(done.stdout)["output"]["published"] is True


def test_a_report_that_can_not_be_written_is_told(guest: Guest) -> None:
    done = guest.run("scan", "--report", "/dev/full", "--output", "out", "--", "echo", "found")
    assert done.returncode == 74
    assert "the report is missing" in done.stderr
    assert (guest.home / "out").read_text() == "found\n"


def test_two_outputs_at_one_place_are_refused(guest: Guest) -> None:
    (guest.home / "link").symlink_to("out")
    for options in (
        ["--output", "out", "--report", "./out"],
        ["--output", "out", "--keep-inconsistent", "link"],
        ["--report", "-"],
    ):
        done = guest.run("scan", *options, "--", "true")
        assert done.returncode == 64
        assert "both go to" in done.stderr


# Waiting for a migration's end.


def test_a_scan_waits_for_the_end_of_a_migration(guest: Guest, server: EnablerServer) -> None:
    outgoing = answering(encoded({"migration.state": "outgoing"}))
    server.script = [outgoing, outgoing]
    done = guest.scan("echo found", "--wait-if-migrating", "60")
    assert (done.returncode, done.stdout) == (0, "found\n")
    assert "waiting up to 60 s" in done.stderr
    assert len(server.requests) == 4
    assert guest.report["attempts"][0]["waited_for_migration"] > 0
    assert guest.report["verdict"]["migration_in_progress"] is False


def test_a_scan_does_not_start_while_a_migration_lasts(guest: Guest) -> None:
    guest.say(document({"migration.state": "outgoing"}))
    done = guest.scan(">started", "--wait-if-migrating", "0.6")
    assert done.returncode == 75
    assert "still in progress after 0.6 s" in done.stderr
    assert not (guest.home / "started").exists()
    assert guest.report["verdict"]["reason"] == "migrating"
