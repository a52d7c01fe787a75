"""The lab itself: are its hosts and guests what the other tests take them for?"""

from __future__ import annotations

import contextlib
import signal
import time
import uuid
from xml.etree import ElementTree

import pytest

from tests.lab.errors import GuestCommandFailed, GuestTimeout, JobLost, LabError, MigrationFailed
from tests.lab.events import arrivals
from tests.lab.guest import Guest
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.migration import Migration, migrate, start_slow
from tests.lab.network import BRIDGE, BRIDGE_ADDRESS, BRIDGE_MAC
from tests.lab.processes import wait_until

pytestmark = pytest.mark.lab


def sysinfo(host: Host, entry: str) -> str | None:
    tree = ElementTree.fromstring(host.connection.getSysinfo())
    return tree.findtext(f"./system/entry[@name='{entry}']")


class Counting:
    """A command in the guest that counts up until it is told to stop: nothing may be missing."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._gate = f"/run/counting-{uuid.uuid4().hex[:8]}"
        script = (
            f"n=0; until [ -e {self._gate} ]; do n=$((n+1)); echo $n; sleep 0.2; done; echo end"
        )
        self._job = guest.spawn(["sh", "-c", script])
        assert wait_until(lambda: "1\n" in self._job.output_so_far(), 30, 0.1)

    def stop(self) -> None:
        """End it, and check that it counted all the way through."""
        assert self._job.poll() is None
        self._guest.write_file(self._gate, "")
        *numbers, end = self._job.wait().stdout.split()
        assert end == "end"
        assert numbers == [str(number) for number in range(1, len(numbers) + 1)]


# -- hosts --------------------------------------------------------------------------------


def test_each_host_has_its_own_smbios(a: Host, b: Host) -> None:
    assert a.machine is not None
    assert b.machine is not None
    for host, machine in ((a, a.machine), (b, b.machine)):
        assert sysinfo(host, "manufacturer") == machine.manufacturer
        assert sysinfo(host, "product") == machine.product
        assert sysinfo(host, "serial") == machine.serial
        assert sysinfo(host, "uuid") == machine.uuid
    assert a.machine.product == b.machine.product
    assert a.machine.serial != b.machine.serial
    assert a.machine.uuid != b.machine.uuid


@pytest.mark.parametrize(
    "path", ["/etc/machine-id", "/proc/sys/kernel/random/boot_id", "/etc/hostname"]
)
def test_what_tells_hosts_apart_differs(a: Host, b: Host, path: str) -> None:
    assert a.run("cat", path).stdout != b.run("cat", path).stdout


def test_hosts_know_each_other_by_name(a: Host, b: Host) -> None:
    assert a.connection.getHostname() == a.name
    resolved = a.run("getent", "hosts", b.name).stdout.split()
    assert resolved[0] in b.run("ip", "-brief", "address").stdout


def test_the_bridge_is_the_same_on_every_host(a: Host, b: Host) -> None:
    for host in (a, b):
        shown = host.run("ip", "address", "show", BRIDGE).stdout
        assert BRIDGE_MAC in shown
        assert f"{BRIDGE_ADDRESS}/16" in shown
        assert "fe80::77:1/64" in shown
        assert "tentative" not in shown


def test_an_unplugged_host_is_unreachable_and_comes_back(guest: Guest, a: Host, b: Host) -> None:
    b.unplug()
    move = Migration(guest, b)
    with pytest.raises(MigrationFailed):  # libvirt has given up, or is still trying to connect
        move.wait(30)
    assert guest.host is a
    b.plug_in()
    with contextlib.suppress(MigrationFailed):  # who was still trying gets through now
        move.wait()
    if guest.host is a:
        migrate(guest, b)
    assert guest.host is b


# -- commands in a guest ------------------------------------------------------------------


def test_a_command_gives_back_what_it_did(guest: Guest) -> None:
    done = guest.run(
        ["sh", "-c", 'cat; echo "$WORD $PWD" >&2; exit 3'],
        input=b"in\0put",
        env={"WORD": "word"},
        cwd="/tmp",
    )
    assert (done.returncode, done.stdout_bytes, done.stderr) == (3, b"in\0put", "word /tmp\n")


def test_a_command_that_is_not_there_is_127_as_in_a_shell(guest: Guest) -> None:
    assert guest.run(["no-such-program"]).returncode == 127
    with pytest.raises(GuestCommandFailed, match="no-such-program"):
        guest.run(["no-such-program"], check=True)


def test_the_guest_has_what_scans_need(guest: Guest) -> None:
    for program in ("python3", "lshw", "dmidecode", "curl", "guest-client"):
        assert guest.run(["which", program]).returncode == 0, program
    guest.run(["python3", "-c", "import guest_client, httpx"], check=True)


def test_big_outputs_and_files_come_back_whole(guest: Guest) -> None:
    content = bytes(range(256)) * 8000  # more than any single answer of the agent carries
    guest.write_file("/root/some/where/big", content, mode=0o600)
    assert guest.read_file("/root/some/where/big") == content
    assert guest.run(["cat", "/root/some/where/big"]).stdout_bytes == content
    assert guest.run(["stat", "-c", "%a", "/root/some/where/big"]).stdout == "600\n"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        guest.read_file("/root/nowhere")


def test_signals_reach_a_job_as_they_would_from_a_terminal(guest: Guest) -> None:
    script = "\n".join(
        [
            *("import time", "print('up', flush=True)"),
            *("try: time.sleep(60)", "except KeyboardInterrupt: print('^C')"),
        ]
    )
    job = guest.spawn(["python3", "-c", script])
    assert wait_until(lambda: "up" in job.output_so_far(), 30)
    assert job.poll() is None
    job.kill(signal.SIGINT)
    assert job.wait(30).stdout == "up\n^C\n"
    job = guest.spawn(["sleep", "60"])
    job.kill()
    assert job.wait(30).returncode == -signal.SIGKILL


def test_a_command_that_takes_too_long_is_ended(guest: Guest) -> None:
    with pytest.raises(GuestTimeout):
        guest.run(["sh", "-c", "sleep 61.61; true"], timeout=1)
    assert wait_until(lambda: guest.run(["pgrep", "-f", "sleep 61.6[1]"]).returncode == 1, 10)


def test_commands_run_while_libvirtd_is_frozen(guest: Guest, a: Host) -> None:
    a.libvirtd.freeze()
    try:
        assert guest.run(["echo", "here"]).stdout == "here\n"
    finally:
        a.libvirtd.thaw()


# -- the guest's life ---------------------------------------------------------------------


def test_a_reboot_is_seen_and_loses_what_ran(guest: Guest) -> None:
    job = guest.spawn(["sleep", "600"])
    before = guest.boot_id()
    guest.reboot()
    assert guest.boot_id() != before
    with pytest.raises(JobLost):
        job.wait(10)


def test_save_and_restore_keep_what_ran(guest: Guest, a: Host) -> None:
    counting = Counting(guest)
    boot = guest.boot_id()
    generation = guest.genid
    path = guest.save()
    assert not guest.active
    guest.restore(a, path)
    assert guest.boot_id() == boot
    counting.stop()
    # Libvirt's doing, and what the VM generation ID is for.
    assert guest.genid != generation


def test_a_suspended_guest_is_still_on_its_host(guest: Guest, a: Host) -> None:
    guest.suspend()
    assert guest.host is a
    assert not guest.runs_on(a)
    guest.resume()
    assert guest.run(["true"]).returncode == 0


# -- migrations ---------------------------------------------------------------------------


def test_there_and_back(lab: Lab, guest: Guest, a: Host, b: Host) -> None:
    boot, generation = guest.boot_id(), guest.genid
    known = len(arrivals(lab.events(guest), guest.name))
    for host in (b, a):
        lab.migrate(guest, host)
        assert guest.host is host
        assert (guest.boot_id(), guest.genid) == (boot, generation)
    assert wait_until(lambda: len(arrivals(lab.events(guest), guest.name)) == known + 2, 10)
    moves = arrivals(lab.events(guest), guest.name)[known:]
    assert [event.host for event in moves] == [b.name, a.name]


def test_commands_do_not_notice_migrations(lab: Lab, guest: Guest, a: Host) -> None:
    counting = Counting(guest)
    lab.migrate(guest)
    lab.migrate(guest)
    counting.stop()
    assert guest.host is a


def test_files_arrive_whole_across_a_migration(guest: Guest, b: Host) -> None:
    content = bytes(range(251)) * 20_000
    with start_slow(guest, b) as move:
        guest.write_file("/root/crossing", content)
        move.finish()
    assert guest.read_file("/root/crossing") == content
    assert guest.host is b


def test_a_slow_migration_stays_in_progress_and_can_be_finished(
    guest: Guest, a: Host, b: Host
) -> None:
    with start_slow(guest, b) as move:
        assert move.active
        assert guest.host is a
        assert b.domain(guest.name) is not None  # arriving, and not there yet
        assert guest.run(["true"]).returncode == 0
        move.finish()
    assert guest.host is b
    assert a.domain(guest.name) is None


def test_an_aborted_migration_leaves_the_guest_where_it_was(
    lab: Lab, guest: Guest, a: Host, b: Host
) -> None:
    known = len(arrivals(lab.events(guest), guest.name))
    with start_slow(guest, b) as move:
        move.abort()
    assert guest.host is a
    assert guest.run(["true"]).returncode == 0
    assert wait_until(lambda: b.domain(guest.name) is None, 10)
    assert len(arrivals(lab.events(guest), guest.name)) == known
    with start_slow(guest, b):
        pass  # left under way: it is aborted too
    assert guest.host is a


def test_post_copy(lab: Lab, guest: Guest, a: Host, b: Host) -> None:
    known = len(arrivals(lab.events(guest), guest.name))
    lab.migrate(guest, b, postcopy=True)
    assert guest.host is b
    assert guest.run(["true"]).returncode == 0
    assert wait_until(lambda: a.domain(guest.name) is None, 10)
    moves = arrivals(lab.events(guest), guest.name)[known:]
    assert [(event.host, event.detail) for event in moves] == [(b.name, "Resumed Post-copy")]


def test_post_copy_can_be_held_with_the_guest_on_its_new_host(
    guest: Guest, a: Host, b: Host
) -> None:
    with start_slow(guest, b, postcopy=True) as move:
        assert guest.host is a
        move.switch_to_postcopy()
        assert guest.host is b
        assert guest.run(["true"]).returncode == 0
        assert move.active  # its memory still arrives
        assert not guest.runs_on(a)
        move.finish()
    assert guest.host is b


def test_migrating_to_where_it_is_is_refused(guest: Guest, a: Host) -> None:
    with pytest.raises(LabError, match="already"):
        migrate(guest, a)


# -- libvirt's own account ----------------------------------------------------------------


def test_events_are_recorded_again_after_a_restart_of_libvirtd(
    lab: Lab, guest: Guest, a: Host, b: Host
) -> None:
    counting = Counting(guest)
    for kill in (False, True):
        a.restart_libvirtd(kill=kill)
    known = len(arrivals(lab.events(guest), guest.name))
    lab.migrate(guest, b)
    lab.migrate(guest, a)
    assert wait_until(lambda: len(arrivals(lab.events(guest), guest.name)) == known + 2, 10)
    counting.stop()


def test_settle_puts_everything_back(lab: Lab, guest: Guest, a: Host, b: Host) -> None:
    lab.migrate(guest, b)
    guest.suspend()
    b.libvirtd.freeze()
    a.enabler.kill()
    a.libvirtd.kill()
    lab.settle()
    assert guest.host is a
    assert guest.run(["true"]).returncode == 0
    assert a.enabler.running
    guest.set_vcpus(2)
    assert guest.resized
    lab.settle()
    assert not guest.resized
    guest.destroy()
    lab.settle()
    assert guest.host is a
    assert time.time() - float(guest.run(["date", "+%s"]).stdout) < 60
