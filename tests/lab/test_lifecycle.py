"""The lab leaves nothing behind, however it ends, and can always be brought up again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab import network, state
from tests.lab.cache import REPOSITORY
from tests.lab.commands import execute
from tests.lab.errors import LabBusy, LabError
from tests.lab.lab import Lab, take_down
from tests.lab.processes import start_time, wait_until
from tests.lab.progress import Progress
from tests.lab.state import LabLock

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("no_lab")]

_KINDS = ("net", "mnt", "uts")


@dataclass(frozen=True)
class Machine:
    """What a lab could leave behind on the machine that it ran on."""

    mounts: frozenset[str]
    namespaces: frozenset[str]
    links: frozenset[str]

    @staticmethod
    def now() -> Machine:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        return Machine(
            frozenset(line.split()[4] for line in mounts),
            frozenset(network.namespaces()),
            frozenset(path.name for path in Path("/sys/class/net").iterdir()),
        )


def namespaces_of(pid: int) -> set[str]:
    try:
        return {str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in _KINDS}
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        # It has ended, or is one that even root may not look at: none that root has started.
        return set()


def living() -> list[int]:
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if start_time(pid) is not None]


def lab_pids() -> list[int]:
    """Processes in any of the lab's network namespaces."""
    return [
        int(pid)
        for namespace in network.namespaces()
        for pid in execute(["ip", "netns", "pids", namespace]).split()
    ]


@pytest.fixture
def nothing_left() -> Iterator[set[str]]:
    """The machine after the test is as it was before. Yields a set for namespaces to watch:
    at the end no process may be in any of them."""
    before = Machine.now()
    watched: set[str] = set()
    yield watched
    after = Machine.now()
    assert not after.mounts - before.mounts
    assert not after.namespaces - before.namespaces
    assert not after.links - before.links
    assert not state.ROOT.exists()
    left = [pid for pid in living() if namespaces_of(pid) & watched]
    assert not left


def watch(watched: set[str]) -> None:
    """Watch the namespaces that the lab's processes are in now."""
    own = namespaces_of(os.getpid())
    for pid in lab_pids():
        watched |= namespaces_of(pid) - own


def small_lab(*, hosts: int = 2, guests: int = 1) -> Lab:
    return Lab(hosts, guests, enabler=False, progress=Progress(quiet=True))


def lab_cli(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.lab", *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def is_under_way(stage: str) -> bool:
    """How far an `up` in another process has come."""
    if stage == "hosts":
        return (state.ROOT / "hosts" / "host-a" / "processes" / "libvirtd.json").exists()
    if stage == "guest":
        return any((state.ROOT / "hosts").glob("*/run/lab-guests/*.agent"))
    return (record := state.recorded()) is not None and record.stays


def test_down_leaves_nothing(nothing_left: set[str]) -> None:
    with small_lab(guests=2) as lab:
        watch(nothing_left)
        assert len(nothing_left) >= 2 * len(_KINDS)
        lab.migrate(lab.guests[0])
        assert lab.guests[0].host is not lab.guests[1].host


def test_three_hosts(nothing_left: set[str]) -> None:
    with small_lab(hosts=3) as lab:
        watch(nothing_left)
        (guest,) = lab.guests
        machines = [host.machine for host in lab.hosts]
        assert len({machine.serial for machine in machines if machine}) == 3
        visited = [lab.migrate(guest).name for _ in lab.hosts]
        assert visited == ["host-b", "host-c", "host-a"]


def test_a_host_without_smbios(nothing_left: set[str]) -> None:
    machineless = Lab(1, 0, enabler=False, machines=[None], progress=Progress(quiet=True))
    with machineless as lab:
        watch(nothing_left)
        host = lab.hosts[0]
        assert host.connection.getHostname() == "host-a"
        assert host.run("dmidecode", check=False).returncode != 0


def test_down_after_an_error_in_the_block(nothing_left: set[str]) -> None:
    def use() -> None:
        with small_lab(guests=0):
            watch(nothing_left)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()


@pytest.mark.parametrize("stage", ["hosts", "guest"])
def test_interrupted_up_takes_itself_down(nothing_left: set[str], stage: str) -> None:
    process = lab_cli("up", "--no-enabler")
    assert wait_until(lambda: is_under_way(stage), 120)
    watch(nothing_left)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Traceback" not in said


@pytest.mark.parametrize("stage", ["hosts", "guest", "complete"])
def test_killed_up_is_cleaned_up_by_down(nothing_left: set[str], stage: str) -> None:
    process = lab_cli("up", "--no-enabler")
    assert wait_until(lambda: is_under_way(stage), 120)
    watch(nothing_left)
    process.kill()
    process.communicate(timeout=120)
    watch(nothing_left)
    assert take_down()


def test_up_after_a_killed_up(nothing_left: set[str]) -> None:
    process = lab_cli("up", "--no-enabler")
    assert wait_until(lambda: is_under_way("guest"), 120)
    watch(nothing_left)
    process.kill()
    process.communicate(timeout=120)
    with small_lab() as lab:
        watch(nothing_left)
        assert lab.guests[0].run(["echo", "here"]).stdout == "here\n"


def test_up_after_the_records_are_lost(nothing_left: set[str]) -> None:
    """The namespaces alone tell what is the lab's."""
    before = network.namespace_directory_is_mounted()
    lab = small_lab(guests=0)
    lab.up()
    watch(nothing_left)
    (state.ROOT / "lab.json").unlink()
    lab.down()
    assert not network.namespaces()
    if not before:
        # Nobody knows any more who made this mount; `ip netns` would have left it too.
        subprocess.run(["umount", "/run/netns"], check=True)
        Path("/run/netns").rmdir()


def test_a_lab_that_stays_is_joined_refused_and_taken_down(nothing_left: set[str]) -> None:
    process = lab_cli("up", "--no-enabler")
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    watch(nothing_left)
    with pytest.raises(LabBusy, match="up already"):
        small_lab().up()
    lab = Lab.attach()
    assert lab.guests[0].run(["echo", "still here"]).stdout == "still here\n"
    for command, expected in (
        (("run", "vm1", "--", "sh", "-c", "echo in $(hostname); exit 5"), (5, "in vm1\n")),
        (("on", "host-b", "--", "hostname"), (0, "host-b\n")),
    ):
        process = lab_cli(*command)
        said, _ = process.communicate(timeout=60)
        assert (process.returncode, said) == expected
    said, _ = lab_cli("migrate").communicate(timeout=120)
    assert "from host-a to host-b" in said
    said, _ = lab_cli("status").communicate(timeout=60)
    assert "vm1: running" in said
    said, _ = lab_cli("down").communicate(timeout=60)
    assert said == "the lab is down\n"


def test_only_one_at_a_time() -> None:
    lock = LabLock()
    lock.acquire("a test")
    try:
        with pytest.raises(LabBusy, match=rf"pid {os.getpid()} \(a test\)"):
            small_lab().up()
        said, _ = lab_cli("down").communicate(timeout=60)
        assert "in use by" in said
    finally:
        lock.release()


def test_nothing_to_attach_to() -> None:
    with pytest.raises(LabError, match="no lab is up"):
        Lab.attach()
    process = lab_cli("status")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.startswith("lab: no lab is up")
