"""Where an output goes, and where it waits until the verdict allows it to go there.

A scan's output is spooled: to a file beside its destination, so that publishing is one rename, or
to the temporary folder when the destination is a stream. Nothing is seen at the destination before,
and nothing is ever half there.

    destination                     published by
    ------------------------------  -------------------------------------------------------------
    a file, or a new one            a rename; an existing file's mode is kept, a new one gets the
                                    mode that the umask gives
    a symbolic link to such         the same, to what it points to; the link stays
    ``-``, /dev/stdout              copying to the standard output
    a FIFO, /dev/null, a device     copying
    a folder, or in none            refused at once
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
import tempfile
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from guest_client.errors import OutputError, OutputWriteError
from guest_client.text import printable

_PIECE = 1 << 20
STDOUT_NAMES = frozenset({"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"})


@dataclass(frozen=True)
class Digest:
    """What an output is known by: its SHA-256, 64 hex digits, and its size in bytes."""

    sha256: str
    size: int


class Spool:
    """A file that holds an output until its fate is known; ``path`` is ``None`` without a name."""

    def __init__(self, stream: BinaryIO, path: Path | None, mode: int) -> None:
        self.stream = stream
        self.path = path
        self.mode = mode

    def digest(self) -> Digest:
        """Digest what has been written so far, by whomever."""
        self.stream.seek(0)
        digest = hashlib.sha256()
        size = 0
        while piece := self.stream.read(_PIECE):
            digest.update(piece)
            size += len(piece)
        return Digest(digest.hexdigest(), size)

    def prove_room(self) -> None:
        """Raise :class:`OutputWriteError` if the disk is full.

        A program that does not look at what its writes return ends well on a full disk, with its
        output cut short. One byte more than that would not have found room either.
        """
        try:
            end = self.stream.seek(0, os.SEEK_END)
            self.stream.write(b"\0")
            self.stream.flush()
            self.stream.truncate(end)
            self.stream.seek(0)
            os.fsync(self.stream.fileno())
        except OSError as error:
            raise write_error("the scanner's output", error) from error

    def discard(self) -> None:
        """Remove it, if it still has a name, and close it."""
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink()
            self.path = None
        self.close()

    def close(self) -> None:
        """Close it. What could not be written, :meth:`prove_room` has told."""
        with suppress(OSError):
            self.stream.close()


class Destination(ABC):
    """A place for an output. Making one checks it: raises :class:`OutputError` when it can't be."""

    name: str
    """As the user wrote it."""
    shown: str
    """As messages name it."""

    @abstractmethod
    def spool(self) -> Spool:
        """Make an empty spool for an output that shall go here."""

    @abstractmethod
    def publish(self, spool: Spool) -> None:
        """Put the output here, whole; raises :class:`OutputWriteError`."""


class FileDestination(Destination):
    """A regular file: one that exists, or one to be."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = Path(name).resolve()
        self.shown = printable(name)
        try:
            found = self.path.stat() if self.path.exists() else None
        except OSError as error:
            raise create_error(self.shown, error) from error
        if found is not None and not os.access(self.path, os.W_OK):
            raise OutputError(f"can't write {self.shown}: it may not be written by this user")
        self._mode = None if found is None else stat.S_IMODE(found.st_mode)
        self.spool().discard()

    def spool(self) -> Spool:
        """Make a file beside the destination, which only its owner can read while it waits."""
        begin = os.fsencode(self.path.name)[:180].decode(errors="ignore")
        path = self.path.with_name(f".{begin}.{secrets.token_hex(6)}.part")
        try:
            # 0666 brings the mode that the umask, or the folder's default ACL, makes of it.
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise create_error(self.shown, error) from error
        mode = self._mode if self._mode is not None else stat.S_IMODE(os.fstat(fd).st_mode)
        os.fchmod(fd, 0o600)
        return Spool(os.fdopen(fd, "r+b"), path, mode)

    def publish(self, spool: Spool) -> None:
        """Rename the spool into place; one from elsewhere is copied here first."""
        mine = spool
        try:
            if spool.path is None or spool.path.parent != self.path.parent:
                mine = self.spool()
                _copy(spool, mine.stream)
                mine.stream.flush()
            assert mine.path is not None
            mode = mine.mode if self._mode is None else self._mode
            os.fchmod(mine.stream.fileno(), mode)
            os.fsync(mine.stream.fileno())
            mine.path.rename(self.path)
            mine.path = None
            sync_directory(self.path.parent)
        except OSError as error:
            raise write_error(self.shown, error) from error
        finally:
            if mine is not spool:
                mine.discard()


class StreamDestination(Destination):
    """The standard output, or something that is there and is no file: a FIFO, a device."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.shown = "the standard output" if name in STDOUT_NAMES else printable(name)
        try:
            if name in STDOUT_NAMES:
                os.fstat(1)
            elif not os.access(name, os.W_OK):
                raise OutputError(f"can't write {self.shown}: it may not be written by this user")
        except OSError as error:
            raise OutputError(f"can't write {self.shown}: it is closed; use --output") from error

    def spool(self) -> Spool:
        """Make a nameless file in the temporary folder (``$TMPDIR``)."""
        try:
            stream = tempfile.TemporaryFile()  # noqa: SIM115 - the spool closes it
        except OSError as error:
            raise OutputError(
                f"can't spool in {tempfile.gettempdir()}: {error.strerror};"
                " make room there, or name another folder in TMPDIR"
            ) from error
        return Spool(stream, None, 0o600)

    def publish(self, spool: Spool) -> None:
        """Copy the output. What a reader that went away has not taken is lost, and said to be."""
        try:
            if self.name in STDOUT_NAMES:
                _copy(spool, 1)
            else:
                fd = os.open(self.name, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    _copy(spool, fd)
                finally:
                    os.close(fd)
        except OSError as error:
            raise write_error(self.shown, error) from error


def destination(name: str | None) -> Destination:
    """Find out what kind of place ``name`` is (``None``: standard output) and check it.

    Raises :class:`OutputError`, which says what is wrong with it.
    """
    if name is None or name in STDOUT_NAMES:
        return StreamDestination(name or "-")
    if not name or "\0" in name:
        raise OutputError("an output's name is empty; name a file")
    try:
        mode = Path(name).stat().st_mode
    except FileNotFoundError:
        return FileDestination(name)
    except OSError as error:
        raise create_error(printable(name), error) from error
    if stat.S_ISDIR(mode):
        raise OutputError(f"can't write {printable(name)}: it is a folder; name a file in it")
    return FileDestination(name) if stat.S_ISREG(mode) else StreamDestination(name)


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file in one step: it has the old content or the new one, also after a crash.

    Raises ``OSError``.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make a rename last through a power cut, where the file system can."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EROFS):
            raise
    finally:
        os.close(fd)


def _copy(spool: Spool, target: BinaryIO | int) -> None:
    spool.stream.seek(0)
    fd = target if isinstance(target, int) else target.fileno()
    while piece := spool.stream.read(_PIECE):
        view = memoryview(piece)
        while view:
            view = view[os.write(fd, view) :]


def create_error(shown: str, error: OSError) -> OutputError:
    """Say in a user's words why something can't be created."""
    if isinstance(error, FileNotFoundError):
        return OutputError(f"can't create {shown}: its folder is not there; make it first")
    return OutputError(
        f"can't create {shown}: {error.strerror}; choose a place that can be written"
    )


def write_error(shown: str, error: OSError) -> OutputWriteError:
    """Say in a user's words why something that was begun can't be finished."""
    cause = _CAUSES.get(error.errno or 0, error.strerror or str(error))
    return OutputWriteError(f"can't write {shown}: {cause}")


_FULL = "the disk is full; make room and run the scan again"
_CAUSES = {
    errno.EPIPE: "its reader has gone",
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "it is larger than the file size limit (ulimit -f)",
}
