"""The whole lab: hosts, guests, and their coming and going."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

import libvirt

from tests.lab import migration, network, state
from tests.lab.cache import CACHE
from tests.lab.errors import GuestUnreachable, LabBusy, LabError
from tests.lab.events import Event
from tests.lab.guest import Guest
from tests.lab.host import ENABLER, Host
from tests.lab.images import Images, build_images
from tests.lab.migration import Migration
from tests.lab.progress import Progress
from tests.lab.smbios import MACHINES, Machine

MAX_GUESTS = 16

# What libvirtd learns about QEMU takes seconds; it is kept between labs. libvirt itself finds out
# when it no longer holds (another QEMU, another kernel, …).
_LEARNT = CACHE / "libvirt-capabilities"
_PROGRAMS = (
    *("ip", "unshare", "nsenter", "libvirtd", "virsh", "qemu-system-x86_64", "dmidecode"),
    *("mmdebstrap", "mke2fs", "cpio", "depmod", "modprobe", "dpkg"),
)

_Thing = TypeVar("_Thing")


class Lab:
    """Hosts and guests on this machine; a context manager that leaves nothing behind.

    Args:
        hosts: how many hosts (host-a, host-b, …).
        guests: how many guests (vm1, vm2, …); all start on host-a.
        enabler: whether each host runs `enabler serve`.
        machines: what the hosts are, one each; None is a host without SMBIOS. As a rule
            host-a and host-b are the same model, and host-c is another.
        progress: where to report the long steps.
    """

    def __init__(
        self,
        hosts: int = 2,
        guests: int = 1,
        *,
        enabler: bool = True,
        machines: Sequence[Machine | None] = MACHINES,
        progress: Progress | None = None,
    ) -> None:
        if not 1 <= hosts <= len(machines):
            raise LabError(f"a lab has 1 to {len(machines)} hosts, not {hosts}")
        if not 0 <= guests <= MAX_GUESTS:
            raise LabError(f"a lab has 0 to {MAX_GUESTS} guests, not {guests}")
        self.hosts: list[Host] = [Host.numbered(n, machines[n]) for n in range(hosts)]
        self.guests: list[Guest] = [Guest.numbered(index, self.hosts) for index in range(guests)]
        self.with_enabler = enabler
        self.progress = progress or Progress()
        self._lock = state.LabLock()
        self._images: Images | None = None

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    @classmethod
    def attach(cls) -> Self:
        """Join the lab that is up on this machine, whoever brought it up.

        Raises:
            LabError: none is up.
        """
        record = state.recorded()
        if record is None:
            raise LabError("no lab is up: `python -m tests.lab up` brings one up")
        return cls(len(record.hosts), len(record.guests), enabler=record.with_enabler)

    # -- up and down --------------------------------------------------------------------

    def up(self, *, stay: bool = False) -> None:
        """Bring everything up; what an earlier lab left behind is removed first.

        Args:
            stay: the lab is to outlive this process (until somebody's `down`).

        Raises:
            LabBusy: another process uses the lab, or one is up that was meant to stay.
            LabError: something did not come up; what was up by then is down again.
        """
        state.require_root()
        _require_programs(enabler=self.with_enabler)
        self._lock.acquire("lab up")
        try:
            self._clear_the_place()
        except LabError:
            self._lock.release()  # what is there is not ours to take down
            raise
        try:
            self._bring_up(stay=stay)
        except BaseException:
            self.down()
            raise
        if stay:
            self._lock.release()

    def down(self) -> None:
        """Take everything down. Nothing is left: no process, namespace, mount or link."""
        for guest in self.guests:
            guest.agent.close()
        self._keep_what_libvirt_learnt()
        state.clean_up()
        self._lock.release()

    def _clear_the_place(self) -> None:
        record = state.recorded()
        if record is not None and record.stays:
            raise LabBusy(
                f"a lab is up already (brought up by pid {record.owner}): use it, or take it "
                "down with `python -m tests.lab down`"
            )
        if state.clean_up():
            self.progress.say("removed what an earlier lab had left behind")

    def _bring_up(self, *, stay: bool) -> None:
        record = state.LabRecord(
            hosts=[host.name for host in self.hosts],
            guests=[guest.name for guest in self.guests],
            with_enabler=self.with_enabler,
            owner=os.getpid(),
            made_netns_mount=not network.namespace_directory_is_mounted(),
        )
        record.save()
        with ThreadPoolExecutor(1) as pool:
            images = pool.submit(build_images, self.progress) if self.guests else None
            network.make_switch([host.name for host in self.hosts])
            for host in self.hosts:
                self._up_host(host)
            if images is not None:
                self._images = images.result()
        for guest in self.guests:
            assert self._images is not None
            guest.define(self.hosts[0], self._images)
            guest.start(self.hosts[0])
        if self.with_enabler:
            self._up_enablers()
        for guest in self.guests:
            self._wait_for_guest(guest)
        if stay:
            record.stays = True
            record.save()
        self.progress.say("the lab is up")

    def _up_host(self, host: Host) -> None:
        if _LEARNT.is_dir():
            place = host.directory / "var-cache-libvirt" / "qemu" / "capabilities"
            shutil.copytree(_LEARNT, place)
        host.up(self.hosts)
        machine = host.machine
        named = f"{machine.product}, serial {machine.serial}" if machine else "no SMBIOS"
        self.progress.say(f"{host.name} is up ({named})")

    def _up_enablers(self) -> None:
        for host in self.hosts:
            host.enabler.start(wait=False)
        for host in self.hosts:
            host.enabler.wait_ready()
            self.progress.say(f"{host.name}: its enabler is ready")

    def _wait_for_guest(self, guest: Guest) -> None:
        try:
            guest.wait_ready()
        except GuestUnreachable as error:
            log = guest.console_log
            end = log.read_text(errors="replace")[-2000:] if log.exists() else "(nothing)"
            raise LabError(f"{error}; the end of {log}:\n{end}") from None
        self.progress.say(f"{guest.name} has booted")

    def _keep_what_libvirt_learnt(self) -> None:
        learnt = self.hosts[0].directory / "var-cache-libvirt" / "qemu" / "capabilities"
        if learnt.is_dir() and any(learnt.iterdir()):
            shutil.rmtree(_LEARNT, ignore_errors=True)
            shutil.copytree(learnt, _LEARNT)

    # -- using it -----------------------------------------------------------------------

    def host(self, name: str) -> Host:
        """The host of that name ("host-a", or "a" for short).

        Raises:
            LabError: there is none.
        """
        return _named(
            name, {**{h.name: h for h in self.hosts}, **{h.name[5:]: h for h in self.hosts}}
        )

    def guest(self, name: str) -> Guest:
        """The guest of that name.

        Raises:
            LabError: there is none.
        """
        return _named(name, {guest.name: guest for guest in self.guests})

    def other_host(self, guest: Guest) -> Host:
        """A host that the guest is not on: the next one after its own."""
        index = self.hosts.index(guest.host)
        return self.hosts[(index + 1) % len(self.hosts)]

    def migrate(self, guest: Guest, to: Host | None = None, *, postcopy: bool = False) -> Host:
        """Migrate a guest live (to the next host, unless told where); returns where it is now."""
        target = to or self.other_host(guest)
        migration.migrate(guest, target, postcopy=postcopy)
        return target

    def start_slow(
        self, guest: Guest, to: Host | None = None, *, postcopy: bool = False
    ) -> Migration:
        """Begin a migration that stays in progress; see `migration.start_slow`."""
        return migration.start_slow(guest, to or self.other_host(guest), postcopy=postcopy)

    def events(self, guest: Guest | None = None) -> list[Event]:
        """libvirt's own account of what happened, of all hosts, by time."""
        everything = [event for host in self.hosts for event in host.events()]
        wanted = [e for e in everything if guest is None or e.domain == guest.name]
        return sorted(wanted, key=lambda event: event.time)

    def images(self) -> Images:
        """What guests boot from."""
        if self._images is None:
            self._images = build_images(self.progress)
        return self._images

    def settle(self) -> None:
        """Put everything back as it was after `up`: services run, all guests on the first host.

        For the start of a test, whatever the last one did. A guest that is well and in its
        place is left alone; one that can't be put back is started anew.
        """
        for host in self.hosts:
            host.plug_in()
            for service in (host.libvirtd, host.enabler, host.recorder):
                service.thaw()
            host.libvirtd.start()
            host.recorder.start()
            if self.with_enabler:
                host.enabler.start()
        for guest in self.guests:
            self._put_back(guest)

    def _put_back(self, guest: Guest) -> None:
        home = self.hosts[0]
        for host in self.hosts:
            _abort_job(host, guest)
        try:
            if guest.domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                guest.resume()
            if guest.resized:
                raise LabError("it was resized")
            if guest.host is not home:
                migration.migrate(guest, home)
            guest.wait_ready(20)
        except (LabError, libvirt.libvirtError) as error:
            self.progress.say(f"starting {guest.name} anew ({error})")
            guest.undefine()
            guest.define(home, self.images())
            guest.start(home)
            guest.wait_ready()


def take_down(*, force: bool = False) -> bool:
    """Take down the lab of this machine, or what is left of one; True when there was one.

    Raises:
        LabBusy: a process uses the lab; with `force` it is taken down under that process.
    """
    state.require_root()
    lock = state.LabLock()
    if not force:
        lock.acquire("lab down")
    try:
        if state.recorded() is not None:
            Lab.attach().down()
            return True
        return state.clean_up()
    finally:
        lock.release()


def _abort_job(host: Host, guest: Guest) -> None:
    domain = host.domain(guest.name)
    if domain is None:
        return
    try:
        if domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
            domain.abortJob()
    except libvirt.libvirtError:
        return  # not running, or ended between the two questions


def _require_programs(*, enabler: bool) -> None:
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        raise LabError(
            f"missing on this machine: {', '.join(missing)}; install what "
            "tests/lab/packages.txt lists"
        )
    if enabler and not ENABLER.exists():
        raise LabError(
            f"{ENABLER} does not exist: install the project into this Python's environment "
            f"(`{sys.executable} -m pip install -e .[host,dev]`), or leave the enablers off "
            "(--no-enabler)"
        )


def _named(name: str, those: dict[str, _Thing]) -> _Thing:
    if name not in those:
        raise LabError(f"there is no {name} in this lab: it has {', '.join(sorted(those))}")
    return those[name]
