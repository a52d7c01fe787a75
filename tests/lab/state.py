"""What the lab has written down on disk, so that any later process can clean up or join in.

/run/vm-enabler-lab.lock       held (flock) by the process that brings a lab up or uses one
/run/vm-enabler-lab/
  lab.json                     hosts, guests, who brought it up, whether it is to stay
  hosts/<letter>/…             one host's files (host.py)
  guests/<name>.console.log    the guests' serial consoles
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from tests.lab import network
from tests.lab.cache import CACHE, remove_tree
from tests.lab.errors import LabBusy, LabError
from tests.lab.processes import Process

ROOT = Path("/run/vm-enabler-lab")
LOCK = Path("/run/vm-enabler-lab.lock")
LAST_LOGS = CACHE / "last-logs"

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(slots=True)
class LabRecord:
    """The lab as it was asked for."""

    hosts: list[str]
    guests: list[str]
    with_enabler: bool
    owner: int
    since: float = field(default_factory=time.time)
    boot: str = field(default_factory=_BOOT_ID.read_text)
    #: Complete, and to stay up after the process that brought it up has ended.
    stays: bool = False
    #: Nobody had used `ip netns` on this machine before: its mount is ours to remove.
    made_netns_mount: bool = False

    def save(self) -> None:
        """Write it down, in one rename."""
        ROOT.mkdir(exist_ok=True)
        new = ROOT / "lab.json.new"
        new.write_text(json.dumps(asdict(self), indent=1))
        new.rename(ROOT / "lab.json")


def recorded() -> LabRecord | None:
    """What is written down, if anything."""
    try:
        return LabRecord(**json.loads((ROOT / "lab.json").read_text()))
    except (FileNotFoundError, TypeError):  # TypeError: another version of the lab wrote it
        return None


class LabLock:
    """The right to bring up, use or take down the lab of this machine.

    The kernel lets go of it when the process ends, however it ends.
    """

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    def acquire(self, purpose: str) -> None:
        """Take it, or say who has it.

        Raises:
            LabBusy: another process has it.
        """
        file = LOCK.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise LabBusy(
                f"the lab of this machine is in use by {holder}: wait for it, or end it first"
            ) from None
        file.truncate(0)
        file.write(f"pid {os.getpid()} ({purpose})")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Let go of it."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None


def require_root() -> None:
    """The lab makes namespaces and mounts, so it needs root.

    Raises:
        LabError: not root.
    """
    if os.geteuid() != 0:
        raise LabError("the lab needs root (namespaces, bridges, libvirtd): run it with sudo")


def clean_up() -> bool:
    """Remove whatever a lab has left on this machine; True when there was something.

    Safe at any time after a crash, whatever the lab was doing when it ended: it goes by what
    is written down and by the lab's namespaces, and both are looked at anew.
    """
    record = recorded()
    found = record is not None or ROOT.exists() or bool(network.namespaces())
    same_boot = record is not None and record.boot == _BOOT_ID.read_text()
    if same_boot:
        _end_recorded_processes()
    ours = record is not None and record.made_netns_mount and same_boot
    network.remove_namespaces(unmount_directory=ours)
    if ROOT.exists():
        _keep_logs()
        remove_tree(ROOT)
    return found


def _end_recorded_processes() -> None:
    """Ask the enablers to end, kill the rest."""
    everything = {
        path: Process(**json.loads(path.read_text()))
        for path in ROOT.glob("hosts/*/processes/*.json")
    }
    enablers = [process for path, process in everything.items() if path.stem == "enabler"]
    for process in enablers:
        process.signal(signal.SIGCONT)
        process.signal(signal.SIGTERM)
    for process in enablers:
        process.wait(3)
    for process in everything.values():
        process.signal(signal.SIGKILL)
    for process in everything.values():
        process.wait(5)


def _keep_logs() -> None:
    """Move the logs to the cache: the place to look after a failure."""
    shutil.rmtree(LAST_LOGS, ignore_errors=True)
    for log in [*ROOT.glob("hosts/*/log/*"), *ROOT.glob("guests/*.log")]:
        target = LAST_LOGS / log.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(log, target)
