"""Live migrations between the hosts of the lab, at full speed or held in progress.

    migrate(guest, to=host)                     there in one go
    with start_slow(guest, to=host) as move:    in progress, the guest still on its source
        …                                       for as long as the test needs
        move.finish()                           or move.abort()

A slow migration with `postcopy=True` can also be switched over and then held while the guest
already runs on its new host and its memory still arrives: `move.switch_to_postcopy()`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import libvirt

from tests.lab.errors import LabError, MigrationFailed
from tests.lab.guest import Guest
from tests.lab.host import Host
from tests.lab.processes import wait_until

#: Speeds in MiB/s. libvirt knows no slower than 1; the guest's memory then takes over a minute.
SLOW = 1
FULL = 10_000
# A guest that was switched over waits up to 0.1 s for each page it needs and has not got. So, to be
# held there and still be usable, it takes its memory along before the switch-over, this fast …
_FIRST_PASS = 40
# … and what then still arrives is memory that it has no need of: 64 MiB, this slowly. It is written
# again and again until then, or there would be nothing left to send and the migration would end.
_POSTCOPY = 4
_BALLAST = "while :; do yes ballast | head -c 64M > /run/lab/ballast; done"


class Migration:
    """One live migration (peer to peer, the domain's definition moves along).

    Attributes:
        guest: who moves.
        source: from where.
        target: to where.
    """

    def __init__(
        self, guest: Guest, to: Host, *, speed: int = FULL, postcopy: bool = False
    ) -> None:
        self.guest = guest
        self.source = guest.host
        self.target = to
        if to is self.source:
            raise LabError(f"{guest.name} is on {to.name} already: migrate it to another host")
        self._speed = speed
        self._postcopy = postcopy
        self._error: libvirt.libvirtError | None = None
        # Connections of its own: the call blocks its connection until the migration's end.
        self._mover = self.source.open()
        self._control = self.source.open().lookupByName(guest.name)
        self._thread = threading.Thread(
            target=self._move, name=f"migrate {guest.name}", daemon=True
        )
        self._thread.start()

    def _move(self) -> None:
        flags = (
            libvirt.VIR_MIGRATE_LIVE
            | libvirt.VIR_MIGRATE_PEER2PEER
            | libvirt.VIR_MIGRATE_PERSIST_DEST
            | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
        )
        parameters = {
            libvirt.VIR_MIGRATE_PARAM_URI: f"tcp://{self.target.name}",
            libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: self._speed,
        }
        if self._postcopy:
            flags |= libvirt.VIR_MIGRATE_POSTCOPY
            parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY] = _POSTCOPY
        try:
            domain = self._mover.lookupByName(self.guest.name)
            domain.migrateToURI3(f"qemu+tcp://{self.target.name}/system", parameters, flags)
        except libvirt.libvirtError as error:
            self._error = error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.active:
            self._leave()

    @property
    def active(self) -> bool:
        """Whether libvirt is still at it."""
        return self._thread.is_alive()

    @property
    def switched(self) -> bool:
        """Whether the guest runs on the target."""
        return self.guest.runs_on(self.target)

    def wait_in_progress(self, seconds: float = 30) -> Self:
        """Wait until memory is being copied (the guest still runs on the source)."""
        return self._wait_for(lambda: self._job("memory_processed") > 0, seconds)

    def wait_switched(self, seconds: float = 60) -> Self:
        """Wait until the guest runs on the target; the source may still know it."""
        return self._wait_for(lambda: self.switched, seconds, ended_is_fine=True)

    def wait(self, seconds: float = 120) -> None:
        """Wait for the end.

        Raises:
            MigrationFailed: libvirt gave up, or it takes longer than `seconds`.
        """
        self._thread.join(seconds)
        if self.active:
            raise MigrationFailed(f"the migration of {self.guest.name} does not come to its end")
        self._raise_error()

    def finish(self, seconds: float = 120) -> None:
        """Let a slow migration go on at full speed, and wait for its end."""
        end = time.monotonic() + seconds
        while self.active and time.monotonic() < end:
            # Again and again: QEMU forgets a speed that is set while it switches to post-copy.
            self._full_speed()
            self._thread.join(1)
        self.wait(0)

    def abort(self, seconds: float = 30) -> None:
        """Cancel it: the guest stays on its source.

        Raises:
            LabError: too late, it has completed.
        """
        with contextlib.suppress(libvirt.libvirtError):
            self._control.abortJob()
        self._thread.join(seconds)
        if self.active:
            raise LabError(f"the migration of {self.guest.name} does not let itself be aborted")
        if self._error is None:
            raise LabError(f"too late to abort: {self.guest.name} is on {self.target.name}")

    def switch_to_postcopy(self, seconds: float = 60, *, hold: bool = True) -> Self:
        """Run the guest on the target now; the rest of its memory follows.

        With `hold` that takes some 15 seconds, unless `finish` is called. The guest's first
        command on its new host then takes some seconds.
        """
        if hold:
            writer = self.guest.spawn(["sh", "-c", _BALLAST])
            self._control.migrateSetMaxSpeed(_FIRST_PASS)
            self._wait_for(lambda: self._job("memory_iteration") > 1, seconds)
            self._control.migrateSetMaxSpeed(SLOW)
            writer.kill(group=True)
        self._control.migrateStartPostCopy(0)
        return self.wait_switched(seconds)

    def _leave(self) -> None:
        """End what a test left under way: back where it was, or through if it can't go back."""
        with contextlib.suppress(libvirt.libvirtError):
            self._full_speed() if self._postcopy and self.switched else self._control.abortJob()
        self._thread.join(120)

    def _full_speed(self) -> None:
        flags = [0, libvirt.VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY] if self._postcopy else [0]
        for flag in flags:
            # It may have come to its end by itself.
            with contextlib.suppress(libvirt.libvirtError):
                self._control.migrateSetMaxSpeed(FULL, flag)

    def _job(self, field: str) -> int:
        """One of libvirt's figures of the migration under way; 0 when there is none."""
        try:
            return int(self._control.jobStats().get(field, 0))
        except libvirt.libvirtError:
            return 0

    def _wait_for(
        self, condition: Callable[[], bool], seconds: float, *, ended_is_fine: bool = False
    ) -> Self:
        met = wait_until(lambda: condition() or not self.active, seconds)
        self._raise_error()
        if not met or not (self.active or ended_is_fine):
            what = "ended before it could be held" if met else f"got no further in {seconds:g} s"
            raise MigrationFailed(f"the migration of {self.guest.name} {what}")
        return self

    def _raise_error(self) -> None:
        if self._error is not None:
            raise MigrationFailed(
                f"{self.guest.name} from {self.source.name} to {self.target.name}: {self._error}"
            )


def migrate(guest: Guest, to: Host, *, postcopy: bool = False, seconds: float = 120) -> None:
    """Migrate a guest live, and wait for the end.

    Raises:
        MigrationFailed: libvirt did not do it.
    """
    if not postcopy:
        Migration(guest, to).wait(seconds)
        return
    with Migration(guest, to, speed=_FIRST_PASS, postcopy=True).wait_in_progress() as move:
        move.switch_to_postcopy(seconds, hold=False).finish(seconds)


def start_slow(guest: Guest, to: Host, *, postcopy: bool = False) -> Migration:
    """Start a migration and return while it is in progress, before its switch-over.

    It stays in progress for over a minute. As a context manager it is aborted at the end of
    the block, unless it has ended by then. `postcopy` allows `switch_to_postcopy`.
    """
    return Migration(guest, to, speed=SLOW, postcopy=postcopy).wait_in_progress()
