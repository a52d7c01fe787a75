"""A Debian without a boot: packages are installed into it for real, and taken out again."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.lab.commands import CONTAINED

_ENTER = """
set -eu
root=$1; shift
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
ip link set lo up
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root chroot "$root" "$@"
"""
# What apt, dpkg, their logs and helpers write down for themselves.
_BOOKS = (
    "var/lib/apt",
    "var/lib/dpkg",
    "var/lib/systemd/deb-systemd-helper",
    "var/log",
    "var/cache",
    "var/tmp",
)
# adduser keeps the former state of its files.
_BACKUPS = {f"etc/{name}-" for name in ("passwd", "group", "shadow", "gshadow")}


class Chroot:
    """A copy of a userland. Nothing in it reaches a network, and no daemon of it can start."""

    def __init__(self, userland: Path, place: Path) -> None:
        self.root = place
        subprocess.run(["cp", "-a", "--reflink=auto", userland, place], check=True)

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program in it; stderr comes with stdout."""
        done = subprocess.run(
            ["unshare", "--net", *CONTAINED, "sh", "-c", _ENTER, "enter", self.root, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{' '.join(argv)}: {done.stdout}"
        return done

    def install(self, package: Path) -> str:
        """``dpkg -i`` of a file from outside; what it printed."""
        target = self.root / "var" / "tmp" / package.name
        target.write_bytes(package.read_bytes())
        return self.run("dpkg", "-i", f"/var/tmp/{package.name}").stdout

    def content(self) -> dict[str, tuple[int, int | bytes | str]]:
        """Every file, with its mode and size; in /etc also what it says. Not the books of dpkg."""
        found: dict[str, tuple[int, int | bytes | str]] = {}
        for path in self.root.rglob("*"):
            name = str(path.relative_to(self.root))
            if name in _BACKUPS or name.startswith(_BOOKS):
                continue
            about = path.lstat()
            if path.is_symlink():
                found[name] = (about.st_mode, str(path.readlink()))
            elif path.is_file():
                written = path.read_bytes() if name.startswith("etc/") else about.st_size
                found[name] = (about.st_mode, written)
            else:
                found[name] = (about.st_mode, 0)
        return found
