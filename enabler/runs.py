"""Which run of a VM this is: the hypervisor's process, told apart from every other there ever was.

Libvirt's domain ID is a counter that a restarted libvirtd can begin anew, so it can't tell two
stays apart. The process that runs the VM can: its number and start time (``proc_pid_stat(5)``,
field 22) under one boot of the host (``/proc/sys/kernel/random/boot_id``) are never given twice. A
*pidfd* on it (``pidfd_open(2)``) then says, without asking libvirt, whether that run is still
going: an answer about a run that is over is never given, however late libvirt's events are.
"""

from __future__ import annotations

import contextlib
import os
import select
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

WITH_PROCESS = frozenset({"QEMU", "LXC"})
"""The drivers, as `virConnectGetType` names them, that keep ``NAME.pid`` and ``NAME.xml`` of each
running domain: of QEMU, or of ``libvirt_lxc``, which lives as long as its container does."""

PID_FILES = Path("/run/libvirt/qemu")
"""Where libvirt's QEMU driver keeps them."""

_LXC_PID_FILES = Path("/run/libvirt/lxc")


class Run:
    """One run of a VM.

    ``key`` is the same for whoever asks again, and no other run's on any host.
    """

    def __init__(self, key: str, began: datetime | None = None, pidfd: int | None = None) -> None:
        self.key = key
        self.began = began
        self._pidfd = pidfd
        self._poll: select.poll | None = None
        if pidfd is not None:
            self._poll = select.poll()
            self._poll.register(pidfd, select.POLLIN)

    def alive(self) -> bool:
        """Return False if the run is over for certain. One system call, about a microsecond."""
        return self._poll is None or not self._poll.poll(0)

    def close(self) -> None:
        """Give the process handle back."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd, self._poll = None, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            self.close()


class StatusFile:
    """The file in which libvirt's driver keeps a domain's live state, rewritten at each change of
    it.

    A change that libvirt sends no event for (vCPUs hot-plugged, say) shows here, at the cost of a
    ``stat``. A file that can't be seen is taken for unchanged: the regular look at every VM
    remains.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = self._now()

    def unchanged(self) -> bool:
        """Return False if libvirt has rewritten the file since this object was made."""
        return self._now() == self._written

    def _now(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns


class Runs:
    """Finds the run of a domain on this host.

    ``root`` is the host's file system (another one in tests), ``pid_files`` libvirt's folder in it.
    """

    def __init__(self, root: Path = Path("/"), pid_files: Path = PID_FILES) -> None:
        self._proc = root / "proc"
        self.pid_files = pid_files
        self._pid_files = root / pid_files.relative_to("/")
        self._boot = (self._proc / "sys/kernel/random/boot_id").read_text().strip()

    @classmethod
    def of_uri(cls, uri: str) -> Self:
        """Return what finds the runs of a libvirt URI's domains: a session's are kept in its user's
        folder.
        """
        parts = urlsplit(uri)
        if parts.scheme.partition("+")[0] == "lxc":
            return cls(pid_files=_LXC_PID_FILES)
        if parts.path != "/session":
            return cls()
        base = os.environ.get("XDG_RUNTIME_DIR")
        folder = Path(base) if base else Path.home() / ".cache"
        return cls(pid_files=folder / "libvirt/qemu/run")

    def of_process(self, name: str) -> Run | None:
        """Return the run of the domain ``name``, or None if its process is gone.

        Raises `OSError` if libvirt's pid file is not there or can't be read by this user.
        """
        try:
            pid = int((self._pid_files / f"{name}.pid").read_text())
        except ValueError:
            return None  # being written, or being taken away
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        # After the handle is held the number can't be given to another process.
        start = self._start_ticks(pid)
        if start is None:
            os.close(pidfd)
            return None
        return Run(f"{self._boot}/{pid}/{start}", self._began(start), pidfd)

    def status_file(self, name: str) -> StatusFile:
        """Return libvirt's status file of the domain ``name`` as it is now."""
        return StatusFile(self._pid_files / f"{name}.xml")

    def of_domain_id(self, domain_id: int) -> Run:
        """Return a run known by libvirt's domain ID alone, for drivers that keep no process we can
        see.

        Weaker: after a restart of such a driver a number can come back.
        """
        return Run(f"{self._boot}/domain/{domain_id}")

    def _start_ticks(self, pid: int) -> int | None:
        try:
            stat = (self._proc / str(pid) / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The command's name, in brackets, may hold blanks and brackets: fields count from the last
        # one.
        fields = stat[stat.rindex(")") + 2 :].split()
        state, start = fields[0], int(fields[19])
        return None if state in "ZX" else start

    def _began(self, start_ticks: int) -> datetime:
        boot = next(
            int(line.split()[1])
            for line in (self._proc / "stat").read_text().splitlines()
            if line.startswith("btime ")
        )
        return datetime.fromtimestamp(boot, UTC) + timedelta(
            seconds=start_ticks / os.sysconf("SC_CLK_TCK")
        )
