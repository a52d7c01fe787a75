"""The project's wheel, and the disk that carries it into the guest.

The wheel is what a user would get: built by the project's own build backend, installed with
its locked dependencies by pip under the guest's own Python. Only this disk is made anew
when the sources change; that takes a few seconds.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tomllib
from pathlib import Path

from tests.lab.cache import REPOSITORY, artefact, digest_of, files_below
from tests.lab.commands import CONTAINED, execute
from tests.lab.errors import LabError
from tests.lab.progress import Progress

#: Python of the guest's Debian release.
GUEST_PYTHON = "3.11"

_GUEST_FILES = Path(__file__).parent / "guestfs"
_LOCKED = REPOSITORY / "requirements" / "guest.txt"
_DISK_MIB = 48

# Runs in a mount namespace of its own, so nothing stays mounted whatever happens. The guest's
# own Python installs the wheel: scripts, byte code and markers are then those of the guest.
_INSTALL = """
set -eu
root=$1 stage=$2 wheels=$3 pip=$4
mkdir -p "$root/mnt/wheels" "$root/mnt/pip"
mount --bind "$stage" "$root/usr/local"
mount --bind "$wheels" "$root/mnt/wheels"
mount --bind "$pip" "$root/mnt/pip/pip"
mount -t devtmpfs devtmpfs "$root/dev" 2>/dev/null || mount --bind /dev "$root/dev"
exec chroot "$root" env PYTHONPATH=/mnt/pip PYTHONDONTWRITEBYTECODE=1 python3 -m pip install \
    --quiet --no-index --find-links /mnt/wheels --break-system-packages --no-cache-dir \
    --root-user-action=ignore --no-compile --disable-pip-version-check vm-enabler
"""

_COMPILE = """
set -eu
mount --bind "$2" "$1/usr/local"
exec chroot "$1" python3 -m compileall -q --invalidation-mode unchecked-hash /usr/local/lib
"""


def wheel(progress: Progress) -> Path:
    """The wheel of the sources as they are now."""
    backend = _build_backend(progress)
    sources = files_below(REPOSITORY / "enabler", REPOSITORY / "guest_client")
    made_from = [REPOSITORY / name for name in ("pyproject.toml", "README.md", "LICENSE")]
    names = "\n".join(str(path.relative_to(REPOSITORY)) for path in sources)

    def build(place: Path) -> None:
        execute(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", place],
            extra_env={"PYTHONPATH": str(backend)},
            cwd=REPOSITORY,
        )

    digest = digest_of(backend.name, names, *made_from, *sources)
    place = artefact("wheel", digest, build, progress, "wheel")
    return next(place.glob("*.whl"))


def guest_disk(userland: Path, progress: Progress) -> Path:
    """An ext4 image for the guest's /usr/local: the wheel, its dependencies, the lab's helpers."""
    built = wheel(progress)
    dependencies = _dependencies(progress)
    helpers = files_below(_GUEST_FILES / "local")

    def build(place: Path) -> None:
        stage, wheels = place / "stage", place / "wheels"
        shutil.copytree(dependencies, wheels)
        shutil.copy2(built, wheels)
        stage.mkdir()
        _install(userland, stage, wheels)
        for path in helpers:
            target = stage / path.relative_to(_GUEST_FILES / "local")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
            target.chmod(0o755)
        make_ext4(stage, place / "packages.img", mebibytes=_DISK_MIB)
        shutil.rmtree(stage)
        shutil.rmtree(wheels)

    digest = digest_of(
        userland.parent.name, built.parent.name, dependencies.name, _INSTALL, _COMPILE, *helpers
    )
    what = "guest client into the guest's disk"
    return artefact("packages", digest, build, progress, what) / "packages.img"


def make_ext4(tree: Path, image: Path, *, mebibytes: int) -> None:
    """An ext4 image with a directory's content, without a journal: it is only ever read."""
    options = ["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-E", "root_owner=0:0"]
    execute(["mke2fs", *options, "-d", tree, image, f"{mebibytes}M"])


def _install(userland: Path, stage: Path, wheels: Path) -> None:
    pip = importlib.util.find_spec("pip")
    if pip is None or pip.origin is None:
        raise LabError(
            f"{sys.executable} has no pip: make the virtual environment with `python3 -m venv`"
        )
    pip_package = Path(pip.origin).parent
    (userland / "mnt" / "pip" / "pip").mkdir(parents=True, exist_ok=True)
    execute([*CONTAINED, "sh", "-c", _INSTALL, "install", userland, stage, wheels, pip_package])
    execute([*CONTAINED, "sh", "-c", _COMPILE, "compile", userland, stage])


def _dependencies(progress: Progress) -> Path:
    """The guest's locked dependencies, as pure Python wheels for the guest's Python."""

    def build(place: Path) -> None:
        options = [
            *("--only-binary", ":all:", "--platform", "any", "--implementation", "py"),
            *("--abi", "none", "--python-version", GUEST_PYTHON),
            *("--require-hashes", "--no-deps", "--requirement", str(_LOCKED)),
        ]
        execute(
            [sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", place],
            inherit_env=True,  # the user's package index and proxy settings
        )

    digest = digest_of(GUEST_PYTHON, _LOCKED)
    return artefact("dependencies", digest, build, progress, "guest's dependencies")


def _build_backend(progress: Progress) -> Path:
    """What pyproject.toml says a build needs, kept so that a build needs no network."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    needs: list[str] = project["build-system"]["requires"]

    def build(place: Path) -> None:
        execute(
            [sys.executable, "-m", "pip", "install", "--quiet", "--target", place, *needs],
            inherit_env=True,
        )

    digest = digest_of(sys.version, *needs)
    return artefact("backend", digest, build, progress, "build backend")
