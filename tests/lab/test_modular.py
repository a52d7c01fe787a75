"""A scan of five modules, crossed in its fourth by a real migration."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.lab.guest import Guest
from tests.lab.host import Host
from tests.lab.migration import migrate
from tests.lab.processes import wait_until

pytestmark = pytest.mark.lab

FOLDER = "/run/modular"
PLAN = f"""
[[module]]
name = "hardware"
command = ["lshw", "-quiet", "-json", "-class", "system"]
host_dependent = true

[[module]]
name = "packages"
command = ["dpkg-query", "-W"]
host_dependent = false

[[module]]
name = "cpu"
command = ["lscpu", "--json"]
host_dependent = true

[[module]]
name = "processes"
command = ["{FOLDER}/gated"]
host_dependent = false

[[module]]
name = "smbios"
command = ["dmidecode", "-t", "system"]
host_dependent = true
"""
GATED = f"""#!/bin/sh
echo x >> {FOLDER}/begun
while [ ! -e {FOLDER}/gate ]; do /bin/busybox usleep 50000; done
ps ax
"""


def test_only_what_the_migration_made_untrue_runs_again(
    guest: Guest, a: Host, b: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    guest.run(["rm", "-rf", FOLDER])
    guest.write_file(f"{FOLDER}/plan.toml", PLAN)
    guest.write_file(f"{FOLDER}/gated", GATED, mode=0o755)
    job = guest.spawn(
        [
            *("guest-client", "scan", "--plan", f"{FOLDER}/plan.toml", "--repeat-if-migrated"),
            *("--output", f"{FOLDER}/set", "--report", f"{FOLDER}/report"),
        ]
    )
    assert wait_until(lambda: begun(guest) or job.poll() is not None, 90)
    migrate(guest, b)
    guest.write_file(f"{FOLDER}/gate", "")
    done = job.wait(180)
    assert done.returncode == 0, done.stderr
    manifest = load(guest, f"{FOLDER}/set/manifest.json")
    report = load(guest, f"{FOLDER}/report")
    with capsys.disabled():
        print(f"\nfive modules, crossed in the fourth:\n{done.stderr}")
    ran = [(run["module"], run["verdict"]["outcome"]) for run in report["runs"]]
    first = ["hardware", "packages", "cpu"]
    assert ran[:4] == [*((name, "consistent") for name in first), ("processes", "inconsistent")]
    again = {name for name, outcome in ran[4:] if outcome == "consistent"}
    assert again == {"hardware", "cpu", "processes", "smbios"}
    assert len(ran) == 8
    # The set is one machine's, the new one's.
    assert b.machine is not None
    assert manifest["identity"]["machine"]["serial_number"] == b.machine.serial
    assert {module["name"] for module in manifest["modules"]} == {*first, "processes", "smbios"}


def begun(guest: Guest) -> bool:
    try:
        return bool(guest.read_file(f"{FOLDER}/begun"))
    except FileNotFoundError:
        return False


def load(guest: Guest, path: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(guest.read_file(path))
    return content
