"""Tells when a file has come into a folder, so that nobody has to keep looking.

The kernel's inotify(7), called through the C library: Python has no module for it. Where it can't
be had there is none, and the agent looks now and then instead.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

_IN_CREATE = 0x100
_IN_MOVED_TO = 0x80
_IN_ONLYDIR = 0x01000000


class FolderWatch:
    """Watches one folder. ``fd`` can be read when something has come; ``None``: no watch."""

    def __init__(self, folder: Path) -> None:
        self.fd: int | None = None
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            fd = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        except (OSError, AttributeError):
            return
        if fd < 0:
            return
        mask = ctypes.c_uint32(_IN_CREATE | _IN_MOVED_TO | _IN_ONLYDIR)
        if libc.inotify_add_watch(fd, os.fsencode(folder), mask) < 0:
            os.close(fd)
            return
        self.fd = fd

    def take(self) -> None:
        """Take what has been told; the folder itself says the rest."""
        if self.fd is not None:
            with suppress(BlockingIOError):
                while os.read(self.fd, 65536):
                    pass

    def close(self) -> None:
        """Watch no longer."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
