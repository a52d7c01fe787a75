"""Looking at processes that a test has started, or has had started."""

from __future__ import annotations

from pathlib import Path


def lives(pid: int | str) -> bool:
    """Whether a process does; a zombie, whose parent has not looked yet, does not."""
    try:
        stat = Path(f"/proc/{int(pid)}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
