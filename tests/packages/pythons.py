"""Pythons that guests run: of Debian's releases, in their own userlands, and those on PATH."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.cache import artefact, cache_lock, digest_of
from tests.lab.commands import CONTAINED, execute
from tests.lab.images import apt_options_of_this_machine
from tests.lab.progress import Progress

RELEASES = {"bullseye": "3.9", "bookworm": "3.11", "trixie": "3.13"}
"""Debian's, and their Pythons; those between are other distributions'."""
VERSIONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")

_MERGED_USR = (
    "/usr/share/mmdebstrap/hooks/merged-usr"  # without it, trixie's loader is not in /lib64
)
_PACKAGES = "python3,dash,coreutils"
_SHELL = 'ln -sf dash "$1/bin/sh"'
_ENTER = """
set -eu
root=$1 folder=$2; shift 2
mkdir -p "$root/proc" "$root/dev" "$root/run" "$root/tmp" "$root/mnt"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mount --bind "$folder" "$root/mnt"
exec chroot "$root" env -i -C /mnt PATH=/usr/bin:/bin LANG=C.UTF-8 "$@"
"""


@dataclass(frozen=True)
class Python:
    """An interpreter, of a userland or of this machine, that sees its standard library alone."""

    interpreter: str
    root: Path | None = None

    def running(self, folder: Path, *argv: str) -> list[str | Path]:
        """The command that runs a program of it, in ``folder``."""
        command = (self.interpreter, "-I", "-S", *argv)
        if self.root is None:
            return ["env", "-i", "-C", folder, "PATH=/usr/bin:/bin", "LANG=C.UTF-8", *command]
        return [*CONTAINED, "sh", "-c", _ENTER, "enter", self.root, folder, *command]

    @property
    def version(self) -> str:
        """Such as 3.9."""
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        argv: Sequence[str | Path] = self.running(Path("/mnt"), "-c", code)
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def of_release(suite: str) -> Python:
    """Debian's own. Raises `LabError`."""

    def build(place: Path) -> None:
        execute(
            [
                *(*CONTAINED, "mmdebstrap", "--quiet", "--variant=extract"),
                *(f"--include={_PACKAGES}", f"--hook-dir={_MERGED_USR}"),
                f"--customize-hook={_SHELL}",
                *apt_options_of_this_machine(),
                *(suite, place / "root"),
            ],
            inherit_env=True,  # proxy settings
        )

    with cache_lock():
        digest = digest_of(suite, _PACKAGES, _MERGED_USR, _SHELL)
        place = artefact(f"python-{suite}", digest, build, Progress(), f"Python of {suite} (once)")
    return Python("/usr/bin/python3", place / "root")


def on_path() -> dict[str, Python]:
    """Those on PATH that run, by version. Where the name is pyenv's, it is told which to take."""
    found = {}
    for version in VERSIONS:
        name = shutil.which(f"python{version}")
        if name is None:
            continue
        done = subprocess.run(
            [name, "-c", "import sys; print(sys.executable)"],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYENV_VERSION": version},
        )
        if done.returncode == 0:
            found[version] = Python(done.stdout.strip())
    return found
