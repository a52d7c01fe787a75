"""Where a set of outputs goes: a folder that is replaced as a whole, or not at all.

The set is built in a folder of its own beside ``DIR``, hidden and closed to others, and is put in
``DIR``'s place when all of it stands. What a reader can see, at any instant:

    DIR before                 put there by                      a reader sees
    -------------------------  --------------------------------  -----------------------------------
    nothing, an empty folder   rename(2)                         what was there, then the new set
    an earlier set             renameat2(2), RENAME_EXCHANGE     the earlier set, then the new one;
                                                                 never neither, never a mixture
    an earlier set, on a file  two renames: the earlier set      the earlier set, for an instant no
    system (NFS) or C library  aside, the new one in             DIR, then the new set
    that can't exchange
    anything else              refused at once: what no scan put there is nobody's to delete

The earlier set is then removed. Who reads several files by ``DIR/NAME`` can have the exchange
between two of them: the digests in the manifest (``manifest.json``) tell. Who opens the folder and
then its files in it has one set, and can find a file gone if it takes longer than the removal.

After a crash, whenever it was, ``DIR`` is the earlier set or the new one, whole; in the third row
it may be neither, and then the next scan that goes there first puts the earlier one back. What else
a crash left behind (``.DIR.XXXX.part``, ``.DIR.XXXX.old``) the next scan removes. That nobody is at
work in such a folder is known by its lock (flock), which ends with its owner; where the file system
has no locks, nothing is removed.

A set is on disk (fsync) before it is put in place.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from guest_client.errors import OutputError
from guest_client.output import STDOUT_NAMES, Spool, create_error, sync_directory, write_error
from guest_client.text import printable

MANIFEST = "manifest.json"
"""The file that says what the set is: see ``set_report.py``."""
MANIFEST_VERSION = 1

_LARGEST_MANIFEST = 16 << 20
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_EXCHANGE = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})
"""What tells that the kernel, the file system or a sandbox has no exchange; where it is not that,
the renames that are tried instead have the same complaint."""
_ATTEMPTS = 5

Exchange = Callable[[Path, Path], bool]


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; false where that can't be done. Raises ``OSError``."""
    try:
        import ctypes

        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (ImportError, OSError, AttributeError):
        return False
    renameat2.argtypes = (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint,
    )
    names = os.fsencode(one), os.fsencode(other)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


class Part:
    """A folder in which a set is built. Its lock is held until it is closed, or we end."""

    def __init__(self, path: Path, lock: int, mode: int) -> None:
        self.path = path
        self.mode = mode
        self._lock = lock

    def spool(self, name: str) -> Spool:
        """Make the file of a module, afresh: what still writes to an earlier one of that name
        does not write to this. Raises :class:`OutputError`.
        """
        path = self.path / name
        try:
            path.unlink(missing_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise create_error(printable(name), error) from error
        return Spool(os.fdopen(fd, "r+b"), path, stat.S_IMODE(os.fstat(fd).st_mode))

    def copy(self, other: Part, name: str) -> None:
        """Take over another part's file; raises :class:`OutputWriteError`."""
        try:
            shutil.copyfile(other.path / name, self.path / name)
        except OSError as error:
            raise write_error(printable(name), error) from error

    def discard(self) -> None:
        """Remove it, unless it has been published, and let go of it."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            self.close()

    def close(self) -> None:
        """Let go of it."""
        with suppress(OSError):
            os.close(self._lock)
        self._lock = -1


class FolderDestination:
    """A folder for sets. Making one checks it, and mends what a crash left there.

    Raises :class:`OutputError`. ``swap`` is :func:`exchange`, unless given.
    """

    def __init__(self, name: str, *, swap: Exchange = exchange) -> None:
        self.name = name
        self.shown = printable(name)
        if not name or "\0" in name or name in STDOUT_NAMES:
            raise OutputError("a set of modules goes to a folder; name one with --output DIR")
        self._swap = swap
        try:
            self.path = Path(name).resolve()
            if self.path.is_mount():
                raise OutputError(
                    f"can't replace {self.shown}: something is mounted there; name a folder in it"
                )
            self._hidden = "." + os.fsencode(self.path.name)[:180].decode(errors="ignore")
            self._mend()
            self._check()
        except (OSError, RuntimeError) as error:
            if isinstance(error, OSError):
                raise create_error(self.shown, error) from error
            raise OutputError(
                f"can't create {self.shown}: its symbolic links go in a circle; name another"
            ) from error
        self.part().discard()

    def part(self) -> Part:
        """Make an empty folder for a set that shall go here; raises :class:`OutputError`."""
        try:
            while True:
                path = self._beside("part")
                path.mkdir()  # with the mode that the umask, or the parent's default ACL, gives
                try:
                    lock = _open_folder(path)
                except FileNotFoundError:
                    continue  # it was taken for a leftover
                mode = stat.S_IMODE(os.fstat(lock).st_mode)
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(lock, fcntl.LOCK_EX)
                if _is_at(lock, path):  # else that happened before it was locked
                    path.chmod(0o700)
                    return Part(path, lock, mode)
                os.close(lock)
        except OSError as error:
            raise create_error(self.shown, error) from error

    def publish(self, part: Part, manifest: bytes) -> None:
        """Put a set here, whole, with its manifest; raises :class:`OutputWriteError`."""
        try:
            with (part.path / MANIFEST).open("xb") as stream:
                stream.write(manifest)
            for entry in part.path.iterdir():
                with entry.open("rb") as stream:
                    os.fsync(stream.fileno())
            there = self._check()
            part.path.chmod(part.mode if there is None else stat.S_IMODE(there.st_mode))
            sync_directory(part.path)
            self._put(part.path)
            sync_directory(self.path.parent)
        except OSError as error:
            raise write_error(self.shown, error) from error
        part.discard()  # now the earlier set, if there was one

    def _put(self, new: Path) -> None:
        """Put the new set in its place; afterwards ``new`` is the earlier set, or nothing."""
        for _ in range(_ATTEMPTS):
            try:
                new.rename(self.path)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            # What is there may be gone in an instant, when another scan is at the same.
            with suppress(FileNotFoundError):
                if self._swap(new, self.path) or self._put_in_two_steps(new):
                    return
        raise OSError(errno.EBUSY, "other scans keep putting theirs there; run it again")

    def _put_in_two_steps(self, new: Path) -> bool:
        """Do without an exchange; false if another scan came between the steps."""
        old = self._beside("old")
        lock = _open_folder(self.path)
        try:
            _lock(lock)  # who finds it aside must know that we are at it
            self.path.rename(old)
            try:
                new.rename(self.path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    old.rename(self.path)
                    raise
                placed = False
            else:
                placed = True
            shutil.rmtree(old, ignore_errors=True)  # either way there is a later one
            return placed
        finally:
            os.close(lock)

    def _mend(self) -> None:
        """Put back a set that a crash left aside; remove what nobody is at work in any more."""
        if not self.path.parent.is_dir():
            return
        pattern = re.compile(re.escape(self._hidden) + r"\.[0-9a-f]{12}\.(part|old)\Z")
        found = [path for path in self.path.parent.iterdir() if pattern.match(path.name)]
        for path in sorted(found, key=lambda path: path.suffix):  # .old before .part
            try:
                lock = _open_folder(path)
            except OSError:
                continue  # another user's, or gone by now
            try:
                locked = _lock(lock)
                if path.suffix == ".old" and locked is not False and not self.path.exists():
                    if _is_whole(lock):
                        with suppress(OSError):  # another scan is at the same
                            path.rename(self.path)
                elif locked:
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)

    def _check(self) -> os.stat_result | None:
        """See that what is there may be replaced; gives its status, ``None`` if nothing is."""
        while True:
            try:
                fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            except NotADirectoryError as error:
                if not self.path.parent.is_dir():
                    raise
                raise OutputError(
                    f"{self.shown} is a file; a set of modules goes to a folder"
                ) from error
            try:
                problem = _problem(fd)
                if problem is None:
                    return os.fstat(fd)
                if _is_at(fd, self.path):  # else another scan has replaced what we looked at
                    raise OutputError(f"can't replace {self.shown}: {problem}")
            finally:
                os.close(fd)

    def _beside(self, kind: str) -> Path:
        return self.path.with_name(f"{self._hidden}.{secrets.token_hex(6)}.{kind}")


def _problem(folder: int) -> str | None:
    """Say why this open folder may not be replaced; ``None``: it may be."""
    if os.path.samestat(os.fstat(folder), Path.cwd().stat()):
        return "it is the folder that we are in; name one in it"
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=folder):
        return "it may not be written by this user"
    of_a_set = _set_in(folder)  # first: a set that is being removed gets no new files
    foreign = sorted(set(os.listdir(folder)) - of_a_set)
    if foreign:
        return (
            f"it has {printable(foreign[0], 80)} in it, which no set of modules put there;"
            " name a folder that holds nothing else"
        )
    return None


def _set_in(folder: int) -> frozenset[str]:
    """Give the names of the files that a set in this folder has; none if there is no set."""
    try:
        fd = os.open(MANIFEST, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        with os.fdopen(fd, "rb") as stream:
            document = json.loads(stream.read(_LARGEST_MANIFEST))
        if document["manifest_version"] != MANIFEST_VERSION:
            return frozenset()
        return frozenset({MANIFEST, *(str(module["output"]) for module in document["modules"])})
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return frozenset()


def _is_whole(folder: int) -> bool:
    names = _set_in(folder)
    return bool(names) and names <= set(os.listdir(folder))


def _open_folder(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _lock(fd: int) -> bool | None:
    """Take a folder's lock; false if somebody has it, ``None`` if its file system has no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
