"""Triggers, programs and signals: on disk first, and once for each migration."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from guest_client.errors import StateError
from guest_client.guard import judge
from guest_client.triggers import Trigger, TriggerBox, facts_environment, make_trigger, trigger_key

from .conftest import Guest
from .documents import HOST_A, HOST_B, MIGRATED, document, identity

DETECTED = datetime(2026, 11, 23, 2, 40, tzinfo=UTC)


def _trigger(changes: dict[str, Any] = MIGRATED, program: tuple[str, ...] | None = None) -> Trigger:
    before, after = identity(), identity(changes)
    return make_trigger(judge(before, after), before, after, DETECTED, "test", program)


@pytest.fixture
def box(tmp_path: Path) -> TriggerBox:
    made = TriggerBox(tmp_path / "state")
    made.prepare()
    return made


def test_a_trigger_is_kept_and_read_again(box: TriggerBox) -> None:
    trigger = _trigger(program=("run", "me"))
    assert box.record(trigger)
    assert box.get(trigger.key) == trigger
    assert box.all() == [trigger]
    assert box.get("0" * 32) is None
    assert trigger.pending == (("run", "me"),)


def test_a_migration_is_recorded_once(box: TriggerBox) -> None:
    assert box.record(_trigger())
    assert not box.record(_trigger(program=("other",)))
    assert len(box.all()) == 1
    assert [path.name for path in box.path.iterdir()] == [f"{_trigger().key}.json"]


@pytest.mark.parametrize(
    "changes",
    [{"residency.id": "stay-9"}, {"vm.uuid": "2222"}, {"vm.generation_id": "g9"}],
)
def test_each_place_that_the_vm_came_to_has_its_own_key(changes: dict[str, Any]) -> None:
    assert trigger_key(identity(changes)) != trigger_key(identity())


def test_from_where_it_came_is_no_part_of_the_key() -> None:
    """Two scans that one migration crossed may have begun on different hosts."""
    assert trigger_key(identity(MIGRATED | {"migration.state": "postcopy"})) == trigger_key(
        identity(MIGRATED)
    )


def test_a_program_is_run_once_for_each_command(box: TriggerBox) -> None:
    trigger = _trigger(program=("one",))
    box.record(trigger)
    with box.lock() as held:
        assert held
        box.add_program(trigger.key, ("two",))
        box.add_program(trigger.key, ("one",))
        box.mark_ended(trigger.key, ("one",), {"exit_code": 0})
    found = box.get(trigger.key)
    assert found is not None
    assert found.pending == (("two",),)


def test_the_lock_is_one_clients(box: TriggerBox) -> None:
    with box.lock() as first:
        assert first
        with box.lock(wait=False) as second:
            assert not second
    with box.lock(wait=False) as third:
        assert third


def test_a_trigger_can_be_removed(box: TriggerBox) -> None:
    trigger = _trigger()
    box.record(trigger)
    box.remove(trigger.key)
    box.remove(trigger.key)
    assert box.all() == []


def test_without_a_folder_there_are_no_triggers(tmp_path: Path) -> None:
    assert TriggerBox(tmp_path / "none").all() == []


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"trigger_version": 2}', "\0"])
def test_a_broken_trigger_is_named(box: TriggerBox, content: str) -> None:
    (box.path / "bad.json").write_text(content)
    with pytest.raises(StateError, match=r"bad\.json is no trigger"):
        box.all()


def test_a_state_folder_that_can_not_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="--state-dir"):
        TriggerBox(tmp_path / "file").prepare()


def test_the_environment_has_both_machines() -> None:
    trigger = _trigger(MIGRATED | {"machine.model": None, "vm.name": "a\0b"})
    environment = facts_environment(trigger)
    assert environment["TRIGGER_REASON"] == "migrated"
    assert environment["TRIGGER_OLD_COMPONENT_ID"] == HOST_A
    assert environment["TRIGGER_NEW_COMPONENT_ID"] == HOST_B
    assert environment["TRIGGER_NEW_MODEL"] == ""
    assert environment["TRIGGER_OLD_MODEL"] == "MR9"
    assert environment["TRIGGER_OLD_RESIDENCY_ID"] == "stay-1"
    assert environment["TRIGGER_DETECTED_AT"] == "2026-11-23T02:40:00.000Z"
    assert environment["TRIGGER_VM_NAME"] == "a\\x00b"
    assert all("\0" not in value for value in environment.values())


# As the command does it.


def _box(guest: Guest) -> TriggerBox:
    return TriggerBox(guest.state_dir)


def _program(guest: Guest, line: str) -> str:
    path = guest.home / "program"
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return str(path)


def test_a_migration_records_a_trigger(guest: Guest) -> None:
    done = guest.scan(guest.moving(), "--notify-if-migrated")
    assert done.returncode == 75
    (trigger,) = _box(guest).all()
    assert trigger.reason == "migrated"
    assert trigger.before == document()
    assert trigger.after == document(MIGRATED)
    assert trigger.programs == ()
    assert guest.report["triggers"] == [
        {
            "key": trigger.key,
            "reason": "migrated",
            "recorded": True,
            "notified": None,
            "signalled": None,
        }
    ]


def test_the_program_gets_the_facts_after_they_are_on_disk(guest: Guest) -> None:
    program = _program(
        guest,
        f"cat >facts; ls {guest.state_dir}/triggers/*.json >onDisk;"
        ' echo "$1 $TRIGGER_REASON $TRIGGER_NEW_SERIAL_NUMBER" >environment; echo loud',
    )
    done = guest.scan(
        f"echo mixed; {guest.moving()}",
        "--notify-if-migrated",
        "--notify-program",
        f"{program} 'an argument'",
    )
    assert done.stdout == ""
    assert "loud" in done.stderr
    (trigger,) = _box(guest).all()
    assert json.loads((guest.home / "facts").read_text()) == trigger.facts()
    assert trigger.key in (guest.home / "onDisk").read_text()
    assert (guest.home / "environment").read_text() == "an argument migrated 78BBBBB\n"
    assert trigger.pending == ()
    assert trigger.programs[0].ended is not None
    assert trigger.programs[0].ended["exit_code"] == 0
    assert guest.report["triggers"][0]["notified"]["exit_code"] == 0


def test_each_migration_of_a_repeated_scan_notifies_once(guest: Guest) -> None:
    program = _program(guest, "echo $TRIGGER_NEW_RESIDENCY_ID >>runs")
    back = {"residency.id": "stay-3", "residency.arrived_by": "migration"}
    (guest.home / "1").write_text(json.dumps(document(MIGRATED)))
    (guest.home / "2").write_text(json.dumps(document(back)))
    # There, back, and then a change that is no migration.
    (guest.home / "3").write_text(json.dumps(document(back | {"vm.vcpus": 9})))
    line = f"set -- [123]; [ -e $1 ] && mv $1 {guest.identity}; true"
    done = guest.scan(
        line, "--repeat-if-migrated=5", "--notify-if-migrated", "--notify-program", program
    )
    assert done.returncode == 0
    assert (guest.home / "runs").read_text() == "stay-2\nstay-3\n"
    reasons = [attempt["verdict"]["reason"] for attempt in guest.report["attempts"]]
    assert reasons == ["migrated", "migrated", "resized", None]
    assert len(_box(guest).all()) == 2


def test_two_scans_that_one_migration_crossed_notify_once(guest: Guest) -> None:
    program = _program(guest, "echo run >>runs")
    options = ["--notify-if-migrated", "--notify-program", program]
    wait = ">$0.ready; while [ ! -e go ]; do sleep 0.02; done"
    scans = [guest.start("scan", *options, "--", "sh", "-c", wait, name) for name in ("one", "two")]
    ready = [guest.home / "one.ready", guest.home / "two.ready"]
    while not all(path.exists() for path in ready):
        assert all(scan.poll() is None for scan in scans)
        threading.Event().wait(0.01)
    guest.say(document(MIGRATED))
    (guest.home / "go").touch()
    for scan in scans:
        scan.communicate()
        assert scan.returncode == 75
    assert (guest.home / "runs").read_text() == "run\n"


@pytest.mark.parametrize(
    ("changes", "triggered"),
    [
        ({"residency.id": "stay-3", "residency.arrived_by": "migration"}, ["returned"]),
        ({"vm.uuid": "2222"}, ["cloned"]),
        ({"vm.generation_id": "g9"}, ["reverted"]),
        ({"residency.id": "stay-3", "residency.arrived_by": "restore"}, []),
        ({"vm.vcpus": 5}, []),
    ],
)
def test_which_reasons_trigger(guest: Guest, changes: dict[str, Any], triggered: list[str]) -> None:
    guest.scan(guest.moving(changes), "--notify-if-migrated")
    assert [trigger.reason for trigger in _box(guest).all()] == triggered


def test_without_the_flag_nothing_is_recorded(guest: Guest) -> None:
    guest.scan(guest.moving())
    assert not guest.state_dir.exists()


def test_a_program_that_fails_is_told_and_changes_nothing(guest: Guest) -> None:
    program = _program(guest, "exit 3")
    done = guest.scan(
        guest.moving(once=True),
        "--repeat-if-migrated",
        "--notify-if-migrated",
        "--notify-program",
        program,
    )
    assert done.returncode == 0
    assert "failed with 3" in done.stderr
    assert guest.report["triggers"][0]["notified"]["exit_code"] == 3


def test_a_program_of_the_configuration(guest: Guest) -> None:
    program = _program(guest, "echo run >>runs")
    guest.config.write_text(f'notify_program = ["{program}"]\n')
    guest.scan(guest.moving(), "--notify-if-migrated")
    assert (guest.home / "runs").read_text() == "run\n"


def test_a_program_that_can_not_be_run_is_found_out_first(guest: Guest) -> None:
    done = guest.scan(">started", "--notify-if-migrated", "--notify-program", "/no/such")
    assert done.returncode == 64
    assert "/no/such" in done.stderr
    guest.config.write_text('notify_program = ["/no/such"]\n')
    done = guest.scan(">started", "--notify-if-migrated")
    assert done.returncode == 78
    assert not (guest.home / "started").exists()


def test_a_state_folder_that_can_not_be_written_is_found_out_first(guest: Guest) -> None:
    done = guest.scan(">started", "--notify-if-migrated", "--state-dir", "/proc/nowhere")
    assert done.returncode == 74
    assert "--state-dir" in done.stderr
    assert not (guest.home / "started").exists()
    assert guest.report["error"]


def test_a_client_killed_before_its_program_ended_is_made_up_for(guest: Guest) -> None:
    program = _program(
        guest, "[ -e go ] || echo $$ >orphan; echo begun >>runs; [ -e go ] || exec sleep 600"
    )
    options = ["--notify-if-migrated", "--notify-program", program]
    process = guest.start("scan", *options, "--", "sh", "-c", guest.moving())
    while not (guest.home / "runs").exists():
        assert process.poll() is None
        threading.Event().wait(0.01)
    process.kill()
    process.wait()
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()
    (trigger,) = _box(guest).all()
    assert trigger.pending
    (guest.home / "go").touch()
    # The program outlived its client, and holds no lock of it.
    done = guest.scan("echo found", "--notify-if-migrated")
    assert done.stdout == "found\n"
    assert (guest.home / "runs").read_text() == "begun\nbegun\n"
    assert _box(guest).all()[0].pending == ()
    os.kill(int((guest.home / "orphan").read_text()), signal.SIGKILL)


def test_the_parent_is_signalled(guest: Guest) -> None:
    line = 'trap "echo hung up" HUP; "$@"; echo code $?'
    done = subprocess.run(
        [
            *("sh", "-c", line, "sh"),
            *(sys.executable, "-m", "guest_client"),
            *("scan", "--signal-if-migrated", "HUP", "--", "sh", "-c", guest.moving()),
        ],
        cwd=guest.home,
        env=guest.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["hung up", "code 75"]


def test_a_process_of_choice_is_signalled_once(guest: Guest) -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        done = guest.scan(
            guest.moving(once=True),
            "--repeat-if-migrated",
            "--signal-if-migrated",
            "SIGUSR1",
            "--signal-pid",
            str(other.pid),
        )
        assert other.wait() == -signal.SIGUSR1
    assert done.returncode == 0
    assert guest.report["triggers"][0]["signalled"] == {
        "signal": "SIGUSR1",
        "pid": other.pid,
        "error": None,
    }


def test_a_process_that_ended_meanwhile_is_not_signalled(guest: Guest) -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        process = guest.start(
            *("scan", "--report", "report.json", "--signal-if-migrated", "USR1"),
            *("--signal-pid", str(other.pid)),
            *(
                "--",
                "sh",
                "-c",
                f">ready; while [ ! -e go ]; do sleep 0.02; done; {guest.moving()}",
            ),
        )
        while not (guest.home / "ready").exists():
            assert process.poll() is None
            threading.Event().wait(0.01)
        other.kill()
        other.wait()
        (guest.home / "go").touch()
        _, said = process.communicate()
    assert process.returncode == 75
    assert b"can't send SIGUSR1" in said
    assert guest.report["triggers"][0]["signalled"]["error"]


def test_a_quiet_scan_signals_nobody(guest: Guest) -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        guest.scan("true", "--signal-if-migrated", "TERM", "--signal-pid", str(other.pid))
        assert other.poll() is None
        other.kill()


def test_triggers_are_readable_files(guest: Guest) -> None:
    """Whoever may read the folder may read what is in it, whatever the client's umask."""
    guest.scan(guest.moving(), "--notify-if-migrated", umask=0o022)
    (path,) = (guest.state_dir / "triggers").glob("*.json")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert path.stat().st_uid == os.getuid()
