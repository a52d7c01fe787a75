"""Modular scans as a user runs them: real programs, real folders, the machine changing inside."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from typing import Any

import pytest

from ..processes import lives
from .conftest import GUEST_CLIENT, Guest
from .documents import MIGRATED, document, encoded
from .enabler_server import EnablerServer, answering, problem
from .waiting import until

BACK: dict[str, Any] = {"residency.id": "stay-3", "residency.arrived_by": "migration"}


class Plan:
    """A plan of shell lines; each appends its name to ``ran``, and prints which run this is."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._text = ""

    def add(self, name: str, line: str = "", *, dependent: bool = True, more: str = "") -> Plan:
        line = f"echo {name} >>ran; echo {name} $(grep -c '^{name}$' ran); {line or ':'}"
        self._text += (
            f"[[module]]\nname = {json.dumps(name)}\ncommand = {json.dumps(['sh', '-c', line])}\n"
            f"host_dependent = {json.dumps(dependent)}\n{more}\n"
        )
        return self

    def scan(self, *options: str, **more: Any) -> subprocess.CompletedProcess[str]:
        (self._guest.home / "plan.toml").write_text(self._text)
        return self._guest.run(*self.arguments(*options), **more)

    def arguments(self, *options: str) -> list[str]:
        plan = ["--plan", "plan.toml", "--output", "set", "--report", "report.json"]
        (self._guest.home / "plan.toml").write_text(self._text)
        return ["scan", *plan, *options]


@pytest.fixture
def plan(guest: Guest) -> Plan:
    return Plan(guest)


def _ran(guest: Guest) -> list[str]:
    path = guest.home / "ran"
    return path.read_text().split() if path.exists() else []


def _published(guest: Guest, name: str = "set") -> dict[str, str]:
    """The published outputs by name; the manifest must tell the truth of each."""
    folder = guest.home / name
    manifest = json.loads((folder / "manifest.json").read_text())
    found = {}
    for module in manifest["modules"]:
        content = (folder / module["output"]).read_bytes()
        assert module["sha256"] == hashlib.sha256(content).hexdigest()
        assert module["bytes"] == len(content)
        found[module["name"]] = content.decode().strip()
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        *(module["output"] for module in manifest["modules"]),
    }
    return found


def test_quiet_modules_are_published_together(
    guest: Guest, plan: Plan, server: EnablerServer
) -> None:
    for name in ("cpu", "disks", "pci"):
        plan.add(name)
    done = plan.scan()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert _published(guest) == {"cpu": "cpu 1", "disks": "disks 1", "pci": "pci 1"}
    assert len(server.requests) == 4
    report = guest.report
    assert report["verdict"]["outcome"] == "consistent"
    assert [run["module"] for run in report["runs"]] == ["cpu", "disks", "pci"]
    assert all(run["stands"] and run["because"] is None for run in report["runs"])
    assert [(run["before"], run["after"]) for run in report["runs"]] == [(0, 1), (1, 2), (2, 3)]
    assert len(report["reads"]) == 4
    assert report["changes"] == []
    assert report["exit_code"] == 0
    assert [module["stands"] for module in report["modules"]] == [True] * 3
    manifest = (guest.home / "set/manifest.json").read_bytes()
    assert report["output"] == {
        "destination": "set",
        "published": True,
        "sha256": hashlib.sha256(manifest).hexdigest(),
        "bytes": len(manifest),
    }
    told = json.loads(manifest)
    assert told["identity"] == report["after"]["identity"] == document()
    assert told["verdict"] == report["verdict"]
    assert told["plan"] == report["plan"] == "plan.toml"
    assert {module["residency_id"] for module in told["modules"]} == {"stay-1"}
    assert guest.leftovers() == []


def test_five_modules_crossed_in_the_fourth(
    guest: Guest, plan: Plan, server: EnablerServer
) -> None:
    plan.add("cpu").add("packages", dependent=False).add("disks")
    plan.add("processes", guest.moving(once=True), dependent=False).add("pci")
    done = plan.scan("--repeat-if-migrated")
    assert done.returncode == 0
    assert done.stderr == (
        "guest-client: the VM moved to another host inside the scan: IBM 9040-MR9 78AAAAA, then"
        " IBM 9040-MR9 78BBBBB; running again (1 of 3): cpu (machine-changed),"
        " disks (machine-changed), processes (crossed); packages stands\n"
    )
    assert _ran(guest) == [
        *("cpu", "packages", "disks", "processes"),
        *("cpu", "disks", "processes", "pci"),
    ]
    assert _published(guest) == {
        "cpu": "cpu 2",
        "packages": "packages 1",
        "disks": "disks 2",
        "processes": "processes 2",
        "pci": "pci 1",
    }
    assert len(server.requests) == 9
    report = guest.report
    assert [(run["module"], run["because"], run["stands"]) for run in report["runs"]] == [
        ("cpu", None, False),
        ("packages", None, True),
        ("disks", None, False),
        ("processes", None, False),
        ("cpu", "machine-changed", True),
        ("disks", "machine-changed", True),
        ("processes", "crossed", True),
        ("pci", None, True),
    ]
    (change,) = report["changes"]
    assert (change["before"], change["after"], change["during"]) == (3, 4, "processes")
    assert change["verdict"]["reason"] == "migrated"
    assert change["repeat"] == 1
    assert [run["verdict"]["outcome"] for run in report["runs"]] == [
        *["consistent"] * 3,
        "inconsistent",
        *["consistent"] * 4,
    ]
    manifest = json.loads((guest.home / "set/manifest.json").read_text())
    assert manifest["identity"] == document(MIGRATED)
    assert {m["name"]: (m["residency_id"], m["runs"]) for m in manifest["modules"]} == {
        "cpu": ("stay-2", 2),
        "packages": ("stay-1", 1),
        "disks": ("stay-2", 2),
        "processes": ("stay-2", 2),
        "pci": ("stay-2", 1),
    }
    assert guest.leftovers() == []


def test_without_repeats_a_crossed_set_is_not_published(guest: Guest, plan: Plan) -> None:
    plan.add("cpu").add("disks", guest.moving()).add("pci")
    done = plan.scan()
    assert done.returncode == 75
    assert done.stderr.count("\n") == 1
    assert "nothing was published; run it again, or use --repeat-if-migrated" in done.stderr
    assert _ran(guest) == ["cpu", "disks"]
    assert not (guest.home / "set").exists()
    report = guest.report
    assert report["verdict"]["reason"] == "migrated"
    assert report["changes"][0]["repeat"] is None
    assert [module["stands"] for module in report["modules"]] == [False] * 3
    assert report["modules"][2]["runs"] == 0
    assert report["modules"][2]["verdict"] is None


def test_an_earlier_set_stays_until_there_is_a_better_one(guest: Guest, plan: Plan) -> None:
    plan.add("cpu", "[ ! -e moving ] || sh moving")
    assert plan.scan().returncode == 0
    (guest.home / "moving").write_text(guest.moving())
    assert plan.scan().returncode == 75
    assert _published(guest) == {"cpu": "cpu 1"}
    assert plan.scan().returncode == 0
    assert _published(guest) == {"cpu": "cpu 3"}
    assert guest.leftovers() == []


def test_repeats_end(guest: Guest, plan: Plan) -> None:
    line = f'sed "s/stay-[0-9]*/stay-9$(wc -l <ran)/" {guest.identity} >i; mv i {guest.identity}'
    plan.add("packages", dependent=False).add("cpu", line)
    done = plan.scan("--repeat-if-migrated=2")
    assert done.returncode == 75
    assert _ran(guest) == ["packages", "cpu", "cpu", "cpu"]
    assert "running again (2 of 2): cpu (crossed); packages stands" in done.stderr
    assert "giving up after repeating 2 times" in done.stderr
    assert [change["repeat"] for change in guest.report["changes"]] == [1, 2, None]


@pytest.mark.parametrize(
    ("changes", "reason", "ran"),
    [
        (BACK, "returned", ["cpu", "packages", "last", "cpu", "last"]),
        ({"vm.vcpus": 5}, "resized", ["cpu", "packages", "last", "cpu", "last"]),
        (
            {"vm.generation_id": "g9"},
            "reverted",
            ["cpu", "packages", "last", "cpu", "packages", "last"],
        ),
        ({"vm.uuid": "2222"}, "cloned", ["cpu", "packages", "last", "cpu", "packages", "last"]),
    ],
)
def test_each_kind_of_change_repeats_what_it_made_untrue(
    guest: Guest, plan: Plan, changes: dict[str, Any], reason: str, ran: list[str]
) -> None:
    plan.add("cpu").add("packages", dependent=False)
    plan.add("last", guest.moving(changes, once=True), dependent=False)
    assert plan.scan("--repeat-if-migrated").returncode == 0
    assert guest.report["changes"][0]["verdict"]["reason"] == reason
    assert _ran(guest) == ran


# No trusted answer.


def test_without_an_answer_before_nothing_is_run(
    guest: Guest, plan: Plan, server: EnablerServer
) -> None:
    server.otherwise = problem(403, "caller-unknown")
    done = plan.add("cpu").scan()
    assert done.returncode == 77
    assert "the scan was not started" in done.stderr
    assert _ran(guest) == []
    assert guest.report["reads"][0]["identity"] is None
    assert guest.report["verdict"]["outcome"] == "unverified"


def test_without_an_answer_between_nothing_is_published_nor_run(guest: Guest, plan: Plan) -> None:
    plan.add("cpu").add("disks", f"rm {guest.identity}").add("pci")
    done = plan.scan("--deadline", "0.3", "--repeat-if-migrated")
    assert done.returncode == 69
    assert "nothing was published" in done.stderr
    assert _ran(guest) == ["cpu", "disks"]
    assert not (guest.home / "set").exists()
    assert guest.report["runs"][1]["verdict"]["outcome"] == "unverified"


# Programs that fail.


@pytest.mark.parametrize(
    ("line", "code", "says"), [("exit 3", 3, "ended with 3"), ("kill -SEGV $$", 139, "SIGSEGV")]
)
def test_a_module_that_fails_ends_the_set(
    guest: Guest, plan: Plan, line: str, code: int, says: str
) -> None:
    done = plan.add("cpu").add("disks", line).add("pci").scan()
    assert done.returncode == code
    assert done.stderr == (
        f"guest-client: the disks module's program, sh, {done.stderr.split('sh, ')[1]}"
    )
    assert says in done.stderr
    assert "nothing was published" in done.stderr
    assert _ran(guest) == ["cpu", "disks"]
    assert not (guest.home / "set").exists()
    assert says in guest.report["error"]


def test_exit_codes_that_are_ok(guest: Guest, plan: Plan) -> None:
    done = plan.add("cpu", "exit 3", more="ok_exit_codes = [3]").scan()
    assert done.returncode == 0
    manifest = json.loads((guest.home / "set/manifest.json").read_text())
    assert manifest["modules"][0]["exit_code"] == 3


def test_a_module_that_fails_because_it_was_crossed_is_run_again(guest: Guest, plan: Plan) -> None:
    line = f"[ -e moved ] && exit 0; {guest.moving(once=True)}; exit 3"
    assert plan.add("cpu", line).scan("--repeat-if-migrated").returncode == 0
    assert _published(guest) == {"cpu": "cpu 2"}


def test_a_program_that_is_not_there_is_found_out_first(
    guest: Guest, plan: Plan, server: EnablerServer
) -> None:
    done = guest.run("scan", "--module", "a=touch ran", "--module", "b=no-such", "--output", "set")
    assert done.returncode == 127
    assert "the b module's program no-such can't be found" in done.stderr
    assert server.requests == []
    assert not (guest.home / "ran").exists()


def test_a_module_that_does_not_notice_the_full_disk_is_caught_out(
    guest: Guest, plan: Plan
) -> None:
    plan.add("cpu").add("big", 'trap "" XFSZ; head -c 1000000 /dev/zero; exit 0')
    done = subprocess.run(
        [
            "sh",
            "-c",
            'ulimit -f 100; trap "" XFSZ; exec "$@"',
            "sh",
            *GUEST_CLIENT,
            *plan.arguments(),
        ],
        cwd=guest.home,
        env=guest.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 74
    assert b"file size limit" in done.stderr
    assert not (guest.home / "set").exists()
    assert guest.leftovers() == []


def test_an_output_that_is_still_written_to_is_not_what_was_judged(
    guest: Guest, plan: Plan
) -> None:
    """What a module of the old host left behind must not get into the set."""
    plan.add("packages", "(until [ -e go ]; do sleep 0.01; done; echo late; >gone) &")
    plan.add("cpu", ">go; until [ -e gone ]; do sleep 0.01; done")
    done = plan.scan()
    assert done.returncode == 74
    assert "packages.out was changed after the packages module's program had ended" in done.stderr
    assert not (guest.home / "set").exists()


def test_modules_have_an_empty_standard_input(guest: Guest) -> None:
    (guest.home / "in").write_text("from outside")
    with (guest.home / "in").open("rb") as stdin:
        guest.run("scan", "--module", "a=cat", "--output", "set", stdin=stdin)
    assert (guest.home / "set/a.out").read_text() == ""


# Options that single scans have, too.


def test_a_migration_triggers_once_however_many_modules_it_made_untrue(
    guest: Guest, plan: Plan
) -> None:
    plan.add("cpu").add("disks", guest.moving(once=True))
    done = plan.scan(
        "--repeat-if-migrated",
        "--notify-if-migrated",
        "--notify-program",
        'sh -c "echo $TRIGGER_REASON >>notified"',
        "--signal-if-migrated",
        "WINCH",
        "--signal-pid",
        str(os.getpid()),
    )
    assert done.returncode == 0
    (trigger,) = guest.report["triggers"]
    assert trigger["reason"] == "migrated"
    assert trigger["recorded"]
    assert trigger["notified"]["exit_code"] == 0
    assert trigger["signalled"]["error"] is None
    assert (guest.home / "notified").read_text() == "migrated\n"


def test_modules_wait_for_the_end_of_a_migration(
    guest: Guest, plan: Plan, server: EnablerServer
) -> None:
    """It begins while the first module runs, and switches over while we wait: none is crossed."""
    outgoing = answering(encoded({"migration.state": "outgoing"}))
    here, there = answering(encoded()), answering(encoded(MIGRATED))
    server.script = [here, outgoing, outgoing, there]
    guest.say(document(MIGRATED))
    plan.add("packages", dependent=False).add("cpu")
    done = plan.scan("--wait-if-migrating", "60")
    assert done.returncode == 0
    assert "waiting up to 60 s" in done.stderr
    assert "nothing that was run is untrue by it; packages stands" in done.stderr
    assert _ran(guest) == ["packages", "cpu"]
    report = guest.report
    assert report["changes"][0]["during"] is None
    assert report["changes"][0]["repeat"] is None
    assert report["runs"][1]["waited_for_migration"] > 0
    assert json.loads((guest.home / "set/manifest.json").read_text())["identity"] == document(
        MIGRATED
    )


def test_modules_that_wait_in_vain_are_not_run(
    guest: Guest, plan: Plan, server: EnablerServer
) -> None:
    guest.say(document({"migration.state": "outgoing"}))
    done = plan.add("cpu").scan("--wait-if-migrating", "0.6")
    assert done.returncode == 75
    assert "still in progress after 0.6 s" in done.stderr
    assert _ran(guest) == []
    assert guest.report["verdict"]["reason"] == "migrating"


def test_modules_that_wait_in_vain_after_the_first_are_not_published(
    guest: Guest, plan: Plan, server: EnablerServer
) -> None:
    server.script = [answering(encoded())]
    guest.say(document({"migration.state": "outgoing"}))
    done = plan.add("cpu").add("disks").scan("--wait-if-migrating", "0.6")
    assert done.returncode == 75
    assert "nothing was published" in done.stderr
    assert _ran(guest) == ["cpu"]
    assert not (guest.home / "set").exists()


def test_a_migration_in_progress_is_told(guest: Guest, plan: Plan) -> None:
    guest.say(document({"migration.state": "outgoing"}))
    done = plan.add("cpu").scan()
    assert done.returncode == 0
    assert "a migration was in progress" in done.stderr
    assert guest.report["verdict"]["migration_in_progress"] is True


def test_what_is_not_published_can_be_kept_aside(guest: Guest, plan: Plan) -> None:
    plan.add("cpu").add("disks", guest.moving()).add("pci")
    done = plan.scan("--keep-inconsistent", "aside")
    assert done.returncode == 75
    assert "what there is was kept in aside" in done.stderr
    assert _published(guest, "aside") == {"cpu": "cpu 1", "disks": "disks 1"}
    manifest = json.loads((guest.home / "aside/manifest.json").read_text())
    assert manifest["verdict"]["outcome"] == "inconsistent"
    assert [module["stands"] for module in manifest["modules"]] == [False, False]
    assert guest.report["kept"] == "aside"
    assert not (guest.home / "set").exists()
    assert guest.leftovers() == []


def test_a_set_that_is_published_leaves_nothing_aside(guest: Guest, plan: Plan) -> None:
    plan.add("cpu").scan("--keep-inconsistent", "aside")
    assert not (guest.home / "aside").exists()
    assert guest.report["kept"] is None


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_set_and_leaves_nothing(guest: Guest, plan: Plan, signum: int) -> None:
    plan.add("cpu").add("slow", "echo $$ >pid; >ready; exec sleep 600")
    process = guest.start(*plan.arguments())
    until((guest.home / "ready").exists)
    process.send_signal(signum)
    _, said = process.communicate()
    assert process.returncode == 128 + signum
    assert b"the output was discarded" in said
    assert not lives((guest.home / "pid").read_text())
    assert not (guest.home / "set").exists()
    assert guest.leftovers() == []
    report = guest.report
    assert report["interrupted_by"] == signal.Signals(signum).name
    assert [run["module"] for run in report["runs"]] == ["cpu", "slow"]
    assert report["runs"][1]["verdict"] is None


# The command line.


def test_modules_of_the_command_line(guest: Guest) -> None:
    done = guest.run(
        *("scan", "--output", "set", "--report", "report.json", "--repeat-if-migrated"),
        *("--module", "cpu=sh -c 'echo \"$HOME $1\"' sh '; ls *'"),
        *("--module", "packages=echo packages", "--host-independent", "packages"),
        *("--module", f"last=sh -c {_quoted(guest.moving(once=True))}"),
    )
    assert done.returncode == 0
    assert (guest.home / "set/cpu.out").read_text().endswith(" ; ls *\n")
    report = guest.report
    assert [run["module"] for run in report["runs"]] == ["cpu", "packages", "last", "cpu", "last"]
    assert [module["host_dependent"] for module in report["modules"]] == [True, False, True]
    assert report["plan"] is None


def _quoted(line: str) -> str:
    return "'" + line.replace("'", "'\\''") + "'"


def test_a_ready_made_plan_takes_what_is_installed_and_says_what_is_not(guest: Guest) -> None:
    tools = guest.home / "bin"
    tools.mkdir()
    for name in ("lshw", "apk"):
        (tools / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tools / name).chmod(0o755)
    guest.environment["PATH"] = str(tools)
    done = guest.run(
        *("scan", "--plan", "inventory", "--output", "set", "--report", "report.json"),
        *("--module", "mine=lshw mine"),
    )
    assert done.returncode == 0
    assert done.stderr == (
        "guest-client: not installed here, and left out: dmidecode (dmidecode), lscpu (lscpu),"
        " dpkg (dpkg-query), rpm (rpm), osquery-system (osqueryi), osquery-platform (osqueryi),"
        " osquery-pci (osqueryi), osquery-os (osqueryi), osquery-users (osqueryi),"
        " osquery-services (osqueryi), facter (facter), syft (syft)\n"
    )
    assert _published(guest) == {
        "lshw": "lshw -json -quiet",
        "apk": "apk list --installed",
        "mine": "lshw mine",
    }
    assert (guest.home / "set/lshw.json").exists()
    left_out = guest.report["left_out"]
    assert [left["name"] for left in left_out][:2] == ["dmidecode", "lscpu"]
    assert "no such program on PATH" in left_out[0]["why"]
    manifest = json.loads((guest.home / "set/manifest.json").read_text())
    assert manifest["left_out"] == left_out
    assert manifest["plan"] == "inventory"


def test_a_module_that_does_not_work_here_can_be_left_out(guest: Guest, plan: Plan) -> None:
    plan.add("cpu").add("broken", "exit 1")
    done = plan.scan()
    assert done.returncode == 1
    assert done.stderr.endswith("nothing was published; mend it, or --leave-out broken\n")
    done = plan.scan("--leave-out", "broken")
    assert (done.returncode, done.stderr) == (0, "")
    assert _published(guest) == {"cpu": "cpu 2"}
    (left,) = guest.report["left_out"]
    assert (left["name"], left["why"]) == ("broken", "--leave-out")


def test_a_plan_of_which_nothing_is_installed(guest: Guest) -> None:
    guest.environment["PATH"] = str(guest.home)
    done = guest.run("scan", "--plan", "packages", "--output", "set")
    assert done.returncode == 127
    assert "install one of dpkg-query, rpm, apk" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--plan", "hardware", "--output", "set", "--", "lshw"], 64, "leave out either"),
        (["--module", "a=true", "--", "lshw"], 64, "leave out either"),
        (["--plan", "hardware"], 64, "name it with --output DIR"),
        (["--module", "a=true"], 64, "name it with --output DIR"),
        (["--module", "a", "--output", "set"], 64, "should be NAME=COMMAND"),
        (["--module", "a b=true", "--output", "set"], 64, "is no module's name"),
        (["--module", "a=true", "--module", "a=false", "--output", "set"], 64, "two modules"),
        (["--host-independent", "a", "--output", "set"], 64, "there is no module to be run"),
        (["--leave-out", "a", "--output", "set"], 64, "there is no module to be run"),
        (
            ["--plan", "facts", "--host-independent", "a", "--output", "set"],
            64,
            "there is no --module of that name",
        ),
        (["--leave-out", "a", "--module", "b=true", "--output", "set"], 64, "--leave-out a"),
        (["--leave-out", "a", "--", "true"], 64, "leave out either"),
        (["--plan", "hardwear", "--output", "set"], 64, "did you mean hardware?"),
        (["--plan", "", "--output", "set"], 64, "there is no ready-made plan"),
        (["--plan", "./none.toml", "--output", "set"], 78, "there is no plan ./none.toml"),
        (["--plan", "config.toml", "--output", "set"], 78, "there is no [[module]] in it"),
        (["--module", "a=true", "--output", "-"], 73, "goes to a folder"),
        (["--module", "a=true", "--output", "config.toml"], 73, "is a file"),
        (["--module", "a=true", "--output", "/"], 73, "something is mounted there"),
        (["--module", "a=true", "--output", "."], 73, "the folder that we are in"),
        (["--module", "a=true", "--output", "bin"], 73, "which no set of modules put there"),
        (["--module", "a=true", "--output", "none/set"], 73, "make it first"),
        (
            ["--module", "a=true", "--output", "set", "--keep-inconsistent", "./set"],
            64,
            "both go to",
        ),
        (["--module", "a=true", "--output", "set", "--report", "empty"], 73, "is a folder"),
        (
            ["--module", "a=true", "--output", "empty", "--report", "empty/report.json"],
            64,
            "--report goes into the folder that --output replaces",
        ),
        (
            ["--module", "a=true", "--output", "set", "--keep-inconsistent", "bin"],
            73,
            "which no set of modules put there",
        ),
    ],
)
def test_wrong_use_is_one_line_and_nothing_is_run(
    guest: Guest, server: EnablerServer, arguments: list[str], code: int, says: str
) -> None:
    (guest.home / "bin").mkdir()
    (guest.home / "bin/diary").write_text("mine")
    (guest.home / "empty").mkdir()
    done = guest.run("scan", *arguments)
    assert done.returncode == code
    assert says in done.stderr
    assert done.stderr.startswith("guest-client: ")
    assert done.stderr.count("\n") == 1
    assert server.requests == []
    assert guest.leftovers() == []


def test_the_plans_are_listed(guest: Guest) -> None:
    tools = guest.home / "bin"
    tools.mkdir()
    (tools / "rpm").write_text("")
    (tools / "rpm").chmod(0o755)
    guest.environment["PATH"] = str(tools)
    done = guest.run("plans")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "packages: Installed packages: dpkg, rpm, apk" in lines
    (rpm,) = {line for line in lines if line.startswith("  rpm ")}
    assert "installed" in rpm
    assert "of the VM" in rpm
    listed = json.loads(guest.run("plans", "--json").stdout)["plans"]
    assert [plan["name"] for plan in listed][:2] == ["facts", "hardware"]
    installed = {m["name"]: m["installed"] for plan in listed for m in plan["modules"]}
    assert [name for name, here in installed.items() if here] == ["rpm"]


def test_a_ready_made_plan_is_printed_to_make_ones_own_of_it(guest: Guest) -> None:
    done = guest.run("plans", "packages")
    assert done.returncode == 0
    (guest.home / "mine.toml").write_text(done.stdout)
    listed = json.loads(guest.run("plans", "packages", "--json").stdout)["plans"]
    assert [plan["name"] for plan in listed] == ["packages"]
    done = guest.run("plans", "./mine.toml")
    assert done.returncode == 64
    assert done.stderr.count("\n") == 1
