"""The Debian packages: installed by dpkg into a real userland, used, upgraded, purged."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from tests.packages.building import deb
from tests.packages.chroot import Chroot

HOST_UNITS = ("enabler.service", "enabler.socket")
GUEST_UNITS = (
    "guest-client-agent.service",
    "guest-client-migrated.target",
    "guest-client-scan.service",
    "guest-client-scan.timer",
)
TRIGGER = """
set -e
export GUEST_CLIENT_DEADLINE=1
"$@" agent run --once
"$@" agent trigger --phase migrated --reason test
"$@" agent run --once
"$@" agent history
"""


def test_lintian_has_no_error(built: Path) -> None:
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error", *built.glob("*.deb")],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout


def verify(debian: Chroot, units: tuple[str, ...]) -> None:
    # The manual pages are in the packages, and not in this small userland.
    paths = [f"/lib/systemd/system/{unit}" for unit in units]
    assert debian.run("systemd-analyze", "verify", "--man=no", *paths).stdout == ""


def exposure(debian: Chroot, unit: str) -> float:
    shown = debian.run("systemd-analyze", "security", "--offline=true", unit).stdout
    print(shown)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", shown)
    assert found is not None
    return float(found[1])


def test_the_hosts_package(built: Path, debian: Chroot) -> None:
    before, package = debian.content(), deb(built, "vm-enabler")
    assert "enabler doctor" in debian.install(package)
    verify(debian, HOST_UNITS)
    assert debian.run("systemctl", "is-enabled", *HOST_UNITS).stdout.split() == ["enabled"] * 2
    verify(debian, ("enabler-ui.service",))
    assert debian.run("systemctl", "is-enabled", "enabler-ui", check=False).stdout == "disabled\n"
    assert max(exposure(debian, unit) for unit in ("enabler.service", "enabler-ui.service")) < 2
    assert "libvirt" in debian.run("id", "-nG", "enabler").stdout.split()
    # It runs with Debian's own Python and libvirt.
    assert debian.run("enabler", "--version").stdout.startswith("enabler ")
    uri = ("--libvirt-uri", "test:///default")
    checked = debian.run("enabler", "doctor", "--json", *uri, check=False).stdout
    status = {check["name"]: check["status"] for check in json.loads(checked)["checks"]}
    assert [status[name] for name in ("Python", "libvirt", "capacity")] == ["ok"] * 3
    tried = debian.run("enabler", "network", "--dry-run", *uri).stdout
    assert "network enabler0: would be defined\n" in tried
    # An upgrade keeps the settings, and so does a removal.
    settings = debian.root / "etc" / "enabler" / "enabler.toml"
    settings.write_text('log_level = "debug"\n')
    debian.install(package)
    debian.run("dpkg", "--remove", "vm-enabler")
    assert settings.read_text() == 'log_level = "debug"\n'
    debian.run("dpkg", "--purge", "vm-enabler")
    assert debian.content() == before


def test_the_guests_package(built: Path, debian: Chroot) -> None:
    before = debian.content()
    assert "guest-client doctor" in debian.install(deb(built, "vm-enabler-guest"))
    verify(debian, GUEST_UNITS)
    enabled = debian.run("systemctl", "is-enabled", *GUEST_UNITS, check=False).stdout
    assert enabled.split() == ["enabled", "static", "indirect", "disabled"]
    assert "hardware" in debian.run("guest-client", "plans").stdout
    done = debian.run("guest-client", "identity", "--deadline", "1", check=False)
    assert done.returncode == 69, "there is no enabler, and httpx to find that out by"
    # The agent's own program is the client, as it was installed.
    debian.run("guest-client", "agent-id", "regenerate")
    agent_id = debian.run("guest-client", "agent-id", "show").stdout
    debian.run("sh", "-c", TRIGGER, "trigger", "guest-client")
    assert debian.run("guest-client", "agent-id", "show").stdout != agent_id
    debian.run("dpkg", "--purge", "vm-enabler-guest")
    assert debian.content() == before
