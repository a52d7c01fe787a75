"""Programs as the agent runs them: real processes, ended however they try not to be."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import stat
import sys
import uuid
from pathlib import Path

import pytest

from guest_client.agent.facts import environment, facts
from guest_client.agent.leftovers import end_leftovers
from guest_client.agent.model import NewTrigger, Outcome, Result
from guest_client.agent.phases import Phase
from guest_client.agent.programs import KEPT_OUTPUT, run_program
from guest_client.agent.settings import Program
from guest_client.guard import judge
from guest_client.times import utc_now
from guest_client.triggers import facts_environment, make_trigger

from ..guest.documents import MIGRATED, identity
from ..processes import lives
from .conftest import Fifo, until

BEFORE, AFTER = identity(), identity(MIGRATED)
SCANS = make_trigger(judge(BEFORE, AFTER), BEFORE, AFTER, utc_now(), "scan")
TRIGGER = NewTrigger(
    SCANS.key, Phase.MIGRATED, SCANS.reason, SCANS.changes, SCANS.sentence, SCANS.detected_at,
    SCANS.source, SCANS.before, SCANS.after,
)  # fmt: skip
WITHOUT = NewTrigger("k", Phase.MIGRATED, "manual", (), "by hand", "t", "hand", None, None)
NOBODY = "nobody"


def run(
    line: str,
    *,
    timeout: float = 60.0,
    user: str | None = None,
    stop_when: Fifo | None = None,
    run_id: str = "run-1",
    trigger: NewTrigger = TRIGGER,
    command: tuple[str, ...] | None = None,
) -> Result:
    """Run a line of shell as a program, and stop the agent when there is a word in a pipe."""
    program = Program("p", command or ("/bin/sh", "-c", line), timeout=timeout, user=user)

    async def go() -> Result:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        waiting = None
        if stop_when is not None:
            waiting = loop.run_in_executor(None, stop_when.line)
            waiting.add_done_callback(lambda _: stop.set())
        return await run_program(
            program,
            facts(trigger, "p", 1),
            environment(os.environ, trigger, "p", 1, run_id),
            stop,
            grace=0.2,
        )

    return asyncio.run(go())


def test_it_gets_the_facts_twice_and_its_output_is_kept(tmp_path: Path) -> None:
    result = run(f"cat > {tmp_path}/facts; env > {tmp_path}/env; pwd; echo to stderr >&2")
    assert result == Result(Outcome.OK, exit_code=0, output="/\nto stderr\n")
    said = json.loads((tmp_path / "facts").read_text())
    assert said["before"] == BEFORE.as_dict()
    assert said["after"] == AFTER.as_dict()
    assert (said["reason"], said["phase"], said["program"], said["try"]) == (
        "migrated", "migrated", "p", 1,
    )  # fmt: skip
    variables = dict(
        line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line
    )
    assert variables["TRIGGER_OLD_COMPONENT_ID"] == BEFORE.component_id
    assert variables["TRIGGER_NEW_SERIAL_NUMBER"] == "78BBBBB"
    assert variables["TRIGGER_TRY"] == "1"


def test_the_environment_is_that_of_a_scans_notify_program_and_more() -> None:
    scans, ours = facts_environment(SCANS), environment({}, TRIGGER, "p", 1, "r")
    assert scans.items() <= ours.items()
    assert {"TRIGGER_PHASE", "TRIGGER_PROGRAM", "TRIGGER_TRY", "TRIGGER_RUN"} <= ours.keys()


def test_a_trigger_without_identities_has_empty_facts() -> None:
    ours = environment({}, WITHOUT, "p", 1, "r")
    assert ours.keys() == environment({}, TRIGGER, "p", 1, "r").keys()
    assert ours["TRIGGER_NEW_SERIAL_NUMBER"] == ""
    assert run("exit 0", trigger=WITHOUT).outcome is Outcome.OK


def test_the_service_managers_own_variables_are_not_passed_on() -> None:
    inherited = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1", "PATH": "/bin"}
    ours = environment(inherited, TRIGGER, "p", 1, "r")
    assert "NOTIFY_SOCKET" not in ours
    assert "WATCHDOG_USEC" not in ours
    assert ours["PATH"] == "/bin"


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("exit 3", Result(Outcome.FAILED, 3, None, "exit code 3")),
        ("kill -9 $$", Result(Outcome.FAILED, None, "SIGKILL", "killed by SIGKILL")),
        ("kill -40 $$", Result(Outcome.FAILED, None, "signal 40", "killed by signal 40")),
    ],
)
def test_how_it_ended_is_told(line: str, wanted: Result) -> None:
    assert run(line) == wanted


@pytest.mark.parametrize(
    ("command", "user", "why"),
    [
        (("/no/such/program",), None, "can't be found"),
        (("/etc/passwd",), None, "may not be run"),
        (("/bin/true",), "no-such-user", "no user no-such-user"),
        (("/bin/echo", "a\0b"), None, "null byte"),
    ],
)
def test_what_cant_be_started_is_told(command: tuple[str, ...], user: str | None, why: str) -> None:
    result = run("", command=command, user=user)
    assert result.outcome is Outcome.UNSTARTED
    assert why in (result.problem or "")


def test_a_text_without_a_first_line_is_no_program(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("exit 0\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    assert "#! line" in (run("", command=(str(script),)).problem or "")


def test_a_timeout_ends_the_whole_group_whatever_it_ignores(tmp_path: Path) -> None:
    line = (
        "trap '' TERM; (trap '' TERM; echo $BASHPID; exec sleep 600) & "
        "sh -c 'echo $$; sleep 600' & echo $$; sleep 600; sleep 600"
    )
    result = run(line, timeout=0.5, command=("/bin/bash", "-c", line))
    assert result.outcome is Outcome.TIMEOUT
    assert result.signal == "SIGKILL"
    assert "longer than 0.5 s" in (result.problem or "")
    pids = [int(pid) for pid in result.output.split()]
    assert len(pids) == 3
    until(lambda: not any(lives(pid) for pid in pids))


def test_a_program_that_heeds_the_warning_ends_by_itself() -> None:
    result = run("trap 'echo bye; exit 7' TERM; sleep 600 & wait", timeout=0.5)
    assert (result.outcome, result.exit_code, result.output) == (Outcome.TIMEOUT, 7, "bye\n")


def test_when_the_agent_stops_the_program_does(fifo: Fifo) -> None:
    result = run(f"echo up > {fifo.path}; sleep 600", stop_when=fifo)
    assert result.outcome is Outcome.INTERRUPTED
    assert result.signal == "SIGTERM"


def test_what_it_leaves_behind_neither_holds_it_up_nor_is_ended(fifo: Fifo, tmp_path: Path) -> None:
    line = f"echo began; (read word < {fifo.path}; echo $word > {tmp_path}/left) & exit 0"
    result = run(line)  # although the one left behind has its output open
    assert result == Result(Outcome.OK, 0, output="began\n")
    fifo.say("lived")
    until(lambda: (tmp_path / "left").exists() and (tmp_path / "left").read_text() == "lived\n")


def test_of_a_torrent_of_output_the_end_is_kept() -> None:
    result = run(f"{sys.executable} -c \"print('x' * 10_000_000); print('the end')\"")
    assert result.output.endswith("x\nthe end\n")
    assert result.output.startswith(f"[{10_000_009 - KEPT_OUTPUT} bytes before this]\n")
    assert len(result.output) < KEPT_OUTPUT + 100


def test_output_that_is_no_text_is_kept_as_far_as_it_is() -> None:
    assert run("printf 'a\\377b'").output == "a\N{REPLACEMENT CHARACTER}b"


def test_as_another_user_it_has_that_users_rights_alone() -> None:
    account = pwd.getpwnam(NOBODY)
    result = run("id -u; id -g; id -G; echo $HOME $USER; id -un > /dev/full || :", user=NOBODY)
    uid, gid, groups, home, *_ = result.output.splitlines()
    assert (int(uid), int(gid)) == (account.pw_uid, account.pw_gid)
    assert {int(group) for group in groups.split()} == set(os.getgrouplist(NOBODY, account.pw_gid))
    assert home == f"{account.pw_dir} {NOBODY}"


def test_a_run_cut_off_has_its_leftovers_ended(tmp_path: Path) -> None:
    run_id = str(uuid.uuid4())
    ready = Fifo(tmp_path / "ready")
    # setsid: not even in the group any more; the second ignores the request to end.
    result = run(
        f"setsid sh -c 'echo $$ > {ready.path}; sleep 600' > /dev/null 2>&1 & "
        f"setsid sh -c 'trap \"\" TERM; echo $$ > {ready.path}; while :; do sleep 600; done'"
        " > /dev/null 2>&1 &",
        run_id=run_id,
    )
    assert result.outcome is Outcome.OK
    pids = [int(ready.line()), int(ready.line())]
    assert end_leftovers([str(uuid.uuid4())], grace=0.2) == 0
    assert all(lives(pid) for pid in pids)
    assert end_leftovers([run_id], grace=0.2) >= 2
    assert not any(lives(pid) for pid in pids)
    assert end_leftovers([run_id]) == 0
    ready.close()
