"""Every row of DESIGN's table, as a real migration or a real fault inside a real guarded scan.

In each, `guest-client scan` guards lshw in the guest; the scan is held in its middle (`GatedScan`)
while the thing happens to the VM, its host, libvirtd or the enabler.
"""

from __future__ import annotations

import gc
import json

import httpx
import libvirt
import pytest

from tests.lab.guest import Guest
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.migration import Migration, migrate
from tests.lab.processes import wait_until
from tests.lab.scans import GatedScan, Scanned, scan

pytestmark = pytest.mark.lab

SHORT = ("--deadline", "6")
"""For reads that are to find no trusted answer."""


def begun(guest: Guest, *options: str) -> GatedScan:
    gated = GatedScan(guest, *options)
    gated.wait_begun()
    return gated


def consistent_on(host: Host, scanned: Scanned) -> None:
    """The scan stood, its output was published whole, and it names the right machine."""
    assert scanned.verdicts()[-1] == ("consistent", None)
    assert scanned.code == 0
    assert scanned.output is not None
    assert json.loads(scanned.output)
    assert host.machine is not None
    assert scanned.serials() == (host.machine.serial, host.machine.serial)


def inconsistent(reason: str, scanned: Scanned) -> None:
    assert scanned.verdicts() == [("inconsistent", reason)]
    assert scanned.code == 75
    assert scanned.output is None


def unverified(scanned: Scanned) -> None:
    assert scanned.outcome == "unverified"
    assert scanned.code == 69
    assert scanned.output is None


def request_waits(host: Host) -> bool:
    """Whether the frozen enabler's kernel holds something that it has not read yet."""
    sockets = host.run("ss", "-Hatn", "sport = :8777").stdout.splitlines()
    return any(int(line.split()[1]) > 0 for line in sockets)


def residency(host: Host, guest: Guest) -> dict[str, str]:
    answer = host.admin_get(f"/v1/vms/{guest.uuid}/identity")
    assert answer.status_code == 200, answer.text
    found: dict[str, str] = answer.json()["residency"]
    return found


def test_a_quiet_scan(guest: Guest, a: Host) -> None:
    consistent_on(a, scan(guest))


def test_a_migration_inside_the_scan(guest: Guest, a: Host, b: Host) -> None:
    gated = begun(guest)
    migrate(guest, b)
    scanned = gated.finish()
    inconsistent("migrated", scanned)
    assert a.machine is not None
    assert b.machine is not None
    assert scanned.serials() == (a.machine.serial, b.machine.serial)


def test_a_crossed_scan_is_repeated_on_the_new_host(guest: Guest, b: Host) -> None:
    gated = begun(guest, "--repeat-if-migrated")
    migrate(guest, b)
    scanned = gated.finish()
    assert scanned.verdicts() == [("inconsistent", "migrated"), ("consistent", None)]
    consistent_on(b, scanned)


def test_repeats_that_are_crossed_too_end_with_75(guest: Guest, a: Host, b: Host) -> None:
    gated = begun(guest, "--repeat-if-migrated=1")
    migrate(guest, b)
    gated.open_gate(1)
    gated.wait_begun(2)
    migrate(guest, a)
    scanned = gated.finish()
    assert scanned.verdicts() == [("inconsistent", "migrated")] * 2
    assert scanned.code == 75
    assert scanned.output is None


def test_there_and_back_inside_the_scan(guest: Guest, a: Host, b: Host) -> None:
    gated = begun(guest)
    migrate(guest, b)
    migrate(guest, a)
    scanned = gated.finish()
    inconsistent("returned", scanned)
    assert a.machine is not None
    assert scanned.serials() == (a.machine.serial, a.machine.serial)


def test_a_migration_in_progress_that_is_not_switched_over(
    lab: Lab, guest: Guest, a: Host, b: Host
) -> None:
    gated = begun(guest)
    with lab.start_slow(guest, b) as move:
        scanned = gated.finish()
        assert move.active
        consistent_on(a, scanned)
        assert scanned.report["verdict"]["migration_in_progress"] is True
        # Whoever would rather not start then, does not.
        waiting = GatedScan(guest, "--wait-if-migrating", "1").result()
        assert waiting.code == 75
        assert waiting.output is None
        move.finish()
    consistent_on(b, scan(guest, "--wait-if-migrating", "20"))


def test_a_migration_aborted_inside_the_scan(lab: Lab, guest: Guest, a: Host, b: Host) -> None:
    before = residency(a, guest)
    gated = begun(guest)
    with lab.start_slow(guest, b) as move:
        move.abort()
    consistent_on(a, gated.finish())
    assert residency(a, guest) == before
    assert wait_until(lambda: b.admin_get("/v1/vms").json() == {"vms": []}, 10)


def test_postcopy_inside_the_scan(lab: Lab, guest: Guest, b: Host) -> None:
    gated = begun(guest)
    with lab.start_slow(guest, b, postcopy=True) as move:
        move.switch_to_postcopy()
        scanned = gated.finish()
        inconsistent("migrated", scanned)
        assert scanned.report["after"]["identity"]["migration"] == {"state": "postcopy"}
        move.finish()
    consistent_on(b, scan(guest))


def test_a_migration_just_before_and_just_after(guest: Guest, a: Host, b: Host) -> None:
    migrate(guest, b)
    gated = begun(guest)
    scanned = gated.finish()
    migrate(guest, a)
    consistent_on(b, scanned)


def test_no_enabler_on_the_destination(guest: Guest, b: Host) -> None:
    b.enabler.stop()
    gated = begun(guest, *SHORT)
    migrate(guest, b)
    unverified(gated.finish())


def test_paused_and_resumed(guest: Guest, a: Host) -> None:
    before = residency(a, guest)
    gated = begun(guest)
    guest.suspend()
    assert residency(a, guest) == before
    guest.resume()
    consistent_on(a, gated.finish())


def test_saved_and_restored_on_the_same_host(guest: Guest, a: Host) -> None:
    before = residency(a, guest)
    gated = begun(guest)
    path = guest.save()
    assert a.admin_get(f"/v1/vms/{guest.uuid}/identity").status_code == 404
    guest.restore(a, path)
    inconsistent("restored", gated.finish())
    after = residency(a, guest)
    assert after["id"] != before["id"]
    assert after["arrived_by"] == "restore"


def test_reverted_to_a_snapshot(guest: Guest, a: Host) -> None:
    # A snapshot of a running VM is kept in a disk that can hold one.
    disk = a.directory / "snapshots.qcow2"
    a.run("qemu-img", "create", "-q", "-f", "qcow2", str(disk), "64M")
    guest.domain.attachDevice(
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
        f"<source file='{disk}'/><target dev='vdc' bus='virtio'/></disk>"
    )
    gated = begun(guest)
    snapshot = guest.domain.snapshotCreateXML(
        "<domainsnapshot><name>middle</name></domainsnapshot>"
    )
    try:
        guest.domain.revertToSnapshot(snapshot)
        inconsistent("reverted", gated.finish())
    finally:
        # A domain with a snapshot can't be migrated: the next test has a new guest.
        snapshot.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
        guest.destroy()


def test_rebooted(guest: Guest, a: Host) -> None:
    before = residency(a, guest)
    gated = begun(guest)
    guest.reboot()
    # The scan died with the old boot and left nothing; the VM never moved.
    with pytest.raises(FileNotFoundError):
        guest.read_file(f"{gated.folder}/output")
    assert residency(a, guest) == before
    consistent_on(a, scan(guest))


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_libvirtd_restarted_inside_the_scan(guest: Guest, a: Host, kill: bool) -> None:
    before = residency(a, guest)
    gated = begun(guest)
    a.restart_libvirtd(kill=kill)
    consistent_on(a, gated.finish())
    assert residency(a, guest) == before


def test_the_enabler_killed_and_restarted_inside_the_scan(guest: Guest, a: Host) -> None:
    before = residency(a, guest)
    gated = begun(guest)
    a.enabler.kill()
    a.enabler.start()
    consistent_on(a, gated.finish())
    assert residency(a, guest) == before


def test_there_and_back_while_the_enabler_is_down(guest: Guest, a: Host, b: Host) -> None:
    gated = begun(guest)
    a.enabler.kill()
    migrate(guest, b)
    migrate(guest, a)
    a.enabler.start()
    inconsistent("returned", gated.finish())


def test_there_and_back_while_the_enabler_is_frozen(guest: Guest, a: Host, b: Host) -> None:
    """It wakes up with its old answer ready, and the request and libvirt's events all at once."""
    gated = begun(guest)
    a.enabler.freeze()
    migrate(guest, b)
    migrate(guest, a)
    gated.open_gate()
    assert wait_until(lambda: request_waits(a), 60)
    a.enabler.thaw()
    inconsistent("returned", gated.result())


def test_libvirtd_hung(guest: Guest, a: Host) -> None:
    gated = begun(guest, *SHORT)
    gc.collect()  # a connection that is let go of says goodbye, and would wait for the frozen one
    a.libvirtd.freeze()
    try:
        assert wait_until(lambda: a.admin_get("/readyz").status_code == 503, 20)
        answer = a.admin_get(f"/v1/vms/{guest.uuid}/identity")
        assert answer.status_code == 503
        assert answer.json()["type"] == "/problems/hypervisor-unavailable"
        unverified(gated.finish())
    finally:
        a.libvirtd.thaw()
    assert wait_until(lambda: a.admin_get("/readyz").status_code == 200, 30)
    consistent_on(a, scan(guest))


def test_libvirtd_stopped(guest: Guest, a: Host) -> None:
    gated = begun(guest, *SHORT)
    a.libvirtd.stop()
    assert wait_until(lambda: a.admin_get("/readyz").status_code == 503, 20)
    unverified(gated.finish())
    a.libvirtd.start()
    assert wait_until(lambda: a.admin_get("/readyz").status_code == 200, 30)


def test_resized_inside_the_scan(guest: Guest) -> None:
    gated = begun(guest)
    guest.set_vcpus(2)
    # Libvirt sends no event for this one; it must be seen all the same, at once.
    inconsistent("resized", gated.finish())


def test_the_source_says_nothing_of_a_vm_that_left(guest: Guest, a: Host, b: Host) -> None:
    migrate(guest, b)
    assert a.admin_get(f"/v1/vms/{guest.uuid}/identity").status_code in (404, 503)
    assert residency(b, guest)["arrived_by"] == "migration"


def test_two_hosts_never_call_the_vm_resident_at_once(guest: Guest, a: Host, b: Host) -> None:
    """Both are asked all through a migration, the destination first."""
    seen: list[tuple[bool, bool]] = []
    path = f"/v1/vms/{guest.uuid}/identity"
    clients = [
        httpx.Client(transport=httpx.HTTPTransport(uds=str(host.admin_socket))) for host in (a, b)
    ]

    def here(client: httpx.Client) -> bool:
        return client.get(f"http://enabler{path}").status_code == 200

    with clients[0], clients[1]:
        move = Migration(guest, b)
        while move.active:
            # In this order "here" twice is an overlap; in the other, perhaps a move between.
            on_destination = here(clients[1])
            seen.append((here(clients[0]), on_destination))
        move.wait()
    assert (True, True) not in seen
    assert len(seen) > 1


def test_the_guest_asks_with_curl(guest: Guest, a: Host, b: Host) -> None:
    """What the README shows: no client needed, the same address on every host."""
    for host in (a, b):
        if host is b:
            migrate(guest, b)
        for url in ("http://169.254.77.1:8777", "http://[fe80::77:1%25eth0]:8777"):
            done = guest.run(["curl", "-sSg", f"{url}/v1/identity"], check=True)
            assert host.machine is not None
            assert json.loads(done.stdout)["machine"]["serial_number"] == host.machine.serial
