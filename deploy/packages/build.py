"""``make packages``: the Debian packages of host and guest, and guest-client.pyz, into dist/.

    requirements/host.txt, guest.txt ─▶ pip ─▶ libraries ┐
    the sources ─▶ wheel ────────────────────────────────┴▶ stage/ ─▶ debhelper ─▶ *.deb
                                                                   └▶ guest-client.pyz

The libraries are the locked ones, by their hashes: what Debian 12 has of them (FastAPI 0.92 with
pydantic 1, httpx 0.23 with httpcore 0.16) is too old. The host's are built for Debian's own Python,
and its package is for that version of Python alone; the guest's are pure Python, and its package is
for all. Built twice from one commit, the results are equal byte for byte.

Options: --pyz builds the archive alone, which needs nothing of Debian's.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from email.parser import HeaderParser
from email.utils import format_datetime
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CACHE = REPOSITORY / ".cache" / "packages"
BUILD = REPOSITORY / "build" / "packages"
DIST = REPOSITORY / "dist"
DEPLOY = REPOSITORY / "deploy"

SYSTEM_PYTHON = "/usr/bin/python3"
"""Debian's: the packages are for it."""

GUEST_PYTHON = "3.9"
"""The oldest Python that the guest client runs with."""

MAINTAINER = (
    f"{os.environ.get('DEBFULLNAME', 'The vm-enabler authors')} "
    f"<{os.environ.get('DEBEMAIL', 'vm-enabler@example.org')}>"
)
"""Whoever builds the packages, as Debian's own tools ask for it."""

MANPAGE_MAKER = "argparse-manpage==4.8"

_LAUNCHER = """\
#!/usr/bin/python3 -I
import sys

sys.path.insert(0, "{folder}")

from {package}.cli import main

sys.exit(main())
"""
_UNITS = {"vm-enabler": "enabler*", "vm-enabler-guest": "guest-client*"}
"""Whose the units in deploy/systemd are. debian/rules says which of them are enabled."""
_NOT_SHARED = ("ansible", "container", "examples", "packages", "systemd")
"""Folders of deploy/ that are not for /usr/share/vm-enabler as they are."""
_MANUALS = {
    "vm-enabler": (
        "enabler",
        "_parser",
        "tells each virtual machine which real machine it runs on",
    ),
    "vm-enabler-guest": (
        "guest-client",
        "build_parser",
        "tells which real machine this VM runs on, and guards scans against its change",
    ),
}


def main() -> None:
    """Build what the command line asks for."""
    parser = argparse.ArgumentParser(description="Build the packages into dist/.")
    parser.add_argument("--pyz", action="store_true", help="guest-client.pyz alone")
    parser.add_argument("--into", type=Path, default=DIST, metavar="FOLDER", help="not dist/")
    options = parser.parse_args()
    into = options.into.resolve()
    # pip, zip and debhelper all take their times from here.
    os.environ["SOURCE_DATE_EPOCH"] = str(_epoch())
    os.umask(0o022)
    shutil.rmtree(BUILD, ignore_errors=True)
    into.mkdir(exist_ok=True)
    unpacked = _unpacked_wheel()
    guest = BUILD / "guest"
    _assemble(guest, _guest_libraries(), unpacked, without="enabler")
    shutil.copy2(HERE / "main.py", guest / "__main__.py")
    _zip(guest, into / "guest-client.pyz")
    if not options.pyz:
        for package in _debian(guest, unpacked):
            shutil.copy2(package, into)
    for path in sorted(into.iterdir()):
        print(f"{path.stat().st_size / 2**20:6.1f} MiB  {path}")


def version() -> str:
    """Return the version of the project: pyproject.toml's."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def _epoch() -> int:
    """The time that everything is said to have been built at: the last commit's."""
    given = os.environ.get("SOURCE_DATE_EPOCH") or _run(
        ["git", "-c", f"safe.directory={REPOSITORY}", "log", "-1", "--format=%ct"], capture=True
    )
    return int(given)


# What goes in -----------------------------------------------------------------------------------


def _unpacked_wheel() -> Path:
    """Our own wheel, unpacked."""
    wheels, place = BUILD / "wheel", BUILD / "unpacked"
    backend = _installed(
        "backend", "\n".join(_build_requirements()), [sys.executable], _build_requirements()
    )
    _run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels],
        cwd=REPOSITORY,
        PYTHONPATH=str(backend),
    )
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    return place


def _build_requirements() -> list[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    return list(project["build-system"]["requires"])


def _guest_libraries() -> Path:
    locked = REPOSITORY / "requirements" / "guest.txt"
    pure = ["--only-binary", ":all:", "--platform", "any", "--implementation", "py"]
    pure += ["--abi", "none", "--python-version", GUEST_PYTHON, "--no-deps"]
    return _installed(
        "guest",
        locked.read_text(),
        [sys.executable],
        [*pure, "--require-hashes", "-r", str(locked)],
    )


def _host_libraries() -> Path:
    locked = REPOSITORY / "requirements" / "host.txt"
    python = _run([SYSTEM_PYTHON, "-VV"], capture=True)
    return _installed(
        "host",
        locked.read_text() + python,
        [sys.executable, "-m", "pip", "--python", SYSTEM_PYTHON],
        # No cache: what another Python built and left there looks for libraries in its own places.
        ["--no-cache-dir", "--require-hashes", "-r", str(locked)],
    )


def _installed(
    name: str, ingredients: str, pip: Sequence[str], requirements: Sequence[str]
) -> Path:
    """A folder with libraries, installed by pip once for the same ingredients."""
    digest = hashlib.sha256(f"{ingredients}{sys.version}".encode()).hexdigest()[:16]
    place = CACHE / f"{name}-{digest}"
    if not place.is_dir():
        scratch = CACHE / f"{name}-{digest}.building"
        shutil.rmtree(scratch, ignore_errors=True)
        program = [*pip, "-m", "pip"] if len(pip) == 1 else pip
        options = ["--quiet", "--disable-pip-version-check", "--no-compile", "--target", scratch]
        _run([*program, "install", *options, *requirements])
        scratch.rename(place)
    return place


def _assemble(target: Path, libraries: Path, unpacked: Path, *, without: str) -> None:
    """Lay out libraries and our own package, less what only pip has a use for."""
    unneeded = shutil.ignore_patterns("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "bin")
    shutil.copytree(libraries, target, ignore=unneeded)
    ours = shutil.ignore_patterns("RECORD", without)
    shutil.copytree(unpacked, target, ignore=ours, dirs_exist_ok=True)


# What comes out ---------------------------------------------------------------------------------


def _zip(tree: Path, target: Path) -> None:
    """A zipapp (PEP 441) of a folder, the same bytes for the same content."""
    moment = datetime.fromtimestamp(_epoch(), UTC).timetuple()[:6]
    with target.open("wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path in sorted(tree.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    entry = zipfile.ZipInfo(str(path.relative_to(tree)), moment)
                    entry.external_attr = 0o100644 << 16
                    entry.compress_type = zipfile.ZIP_DEFLATED
                    archive.writestr(entry, path.read_bytes())
    target.chmod(0o755)


def _debian(guest: Path, unpacked: Path) -> list[Path]:
    """Return the Debian packages, made of the guest's tree and our unpacked wheel."""
    source = BUILD / f"vm-enabler-{version()}"
    stage = source / "stage"
    shutil.copytree(HERE / "debian", source / "debian")
    host_tree = stage / "vm-enabler" / "usr" / "lib" / "vm-enabler"
    _assemble(host_tree, _host_libraries(), unpacked, without="guest_client")
    guest_tree = stage / "vm-enabler-guest" / "usr" / "lib" / "vm-enabler-guest"
    shutil.copytree(guest, guest_tree)
    maker = _installed("manpages", MANPAGE_MAKER, [sys.executable], [MANPAGE_MAKER])
    for package, tree in (("vm-enabler", host_tree), ("vm-enabler-guest", guest_tree)):
        root = stage / package
        command, function, summary = _MANUALS[package]
        module = command.replace("-", "_")
        _write(
            root / "usr" / "bin" / command,
            _LAUNCHER.format(folder="/" + str(tree.relative_to(root)), package=module),
            0o755,
        )
        _manual(root, maker, tree, command, f"{module}.cli", function, summary)
        for unit in sorted((DEPLOY / "systemd").glob(_UNITS[package])):
            shutil.copy2(unit, source / "debian" / f"{package}.{unit.name}")
        _copyright(source / "debian" / f"{package}.copyright", tree, root)
        _tidy(tree)
    host, guest_root = stage / "vm-enabler", stage / "vm-enabler-guest"
    _copy(DEPLOY / "examples" / "enabler.toml", host / "etc" / "enabler" / "enabler.toml")
    # All of it is the default: an example, not a file that would hold on to today's.
    examples = guest_root / "usr" / "share" / "doc" / "vm-enabler-guest" / "examples"
    _copy(DEPLOY / "examples" / "guest-client.toml", examples / "config.toml")
    (guest_root / "etc" / "guest-client").mkdir(parents=True)
    for folder in sorted(DEPLOY.iterdir()):
        if folder.is_dir() and folder.name not in _NOT_SHARED:
            shutil.copytree(folder, host / "usr" / "share" / "vm-enabler" / folder.name)
    for page in sorted(DEPLOY.glob("*.md")):
        _copy(page, host / "usr" / "share" / "doc" / "vm-enabler" / page.name)
    _copy(
        DEPLOY / "agent.md", guest_root / "usr" / "share" / "doc" / "vm-enabler-guest" / "agent.md"
    )
    control = source / "debian" / "control"
    _write(control, control.read_text().replace("@MAINTAINER@", MAINTAINER))
    _changelog(source / "debian" / "changelog")
    major, minor = _run(
        [SYSTEM_PYTHON, "-c", "import sys; print(*sys.version_info[:2])"], capture=True
    ).split()
    _run(
        ["dpkg-buildpackage", "--build=binary", "--unsigned-source", "--unsigned-changes", "-d"],
        cwd=source,
        quiet=True,
        PYTHON=f"{major}.{minor}",
        PYTHON_AFTER=f"{major}.{int(minor) + 1}",
    )
    return sorted(BUILD.glob("*.deb"))


def _manual(
    root: Path, maker: Path, tree: Path, command: str, module: str, function: str, summary: str
) -> None:
    page = root / "usr" / "share" / "man" / "man1" / f"{command}.1"
    page.parent.mkdir(parents=True)
    _run(
        [
            *(SYSTEM_PYTHON, "-c", "from argparse_manpage.cli import main; main()"),
            *("--module", module, "--function", function, "--prog", command),
            *("--project-name", "vm-enabler", "--version", version(), "--description", summary),
            *("--manual-title", "vm-enabler", "--output", page),
        ],
        PYTHONPATH=f"{tree}:{maker}",
        PYTHONDONTWRITEBYTECODE="1",
        COLUMNS="80",
    )


def _copyright(file: Path, tree: Path, root: Path) -> None:
    """Debian's copyright file (DEP-5): ours, and each library's licence as its author names it."""
    folder = tree.relative_to(root)
    stanzas = [
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"
        "Upstream-Name: vm-enabler",
        "Files: *\nCopyright: 2026 The vm-enabler authors\nLicense: Apache-2.0",
        "License: Apache-2.0\n On Debian systems, the full text is in\n"
        " /usr/share/common-licenses/Apache-2.0.",
    ]
    others = []
    for metadata in sorted(tree.glob("*.dist-info/METADATA")):
        about = HeaderParser().parsestr(metadata.read_text())
        if about["Name"] == "vm-enabler":
            continue
        licence = about["License-Expression"] or next(
            (
                line.rpartition(" :: ")[2]
                for line in about.get_all("Classifier", [])
                if line.startswith("License ::")
            ),
            about["License"] or "see its folder",
        )
        others.append(f" {about['Name']} {about['Version']}: {licence}")
    stanzas[0] += (
        "\nComment: It brings copies of these libraries, each under its own licence, whose text\n"
        f" is in /{folder}/NAME-VERSION.dist-info:\n" + "\n".join(others)
    )
    _write(file, "\n\n".join(stanzas) + "\n")


def _tidy(tree: Path) -> None:
    """Leave out what no user has a use for, and modes that archives bring along."""
    for name in ("libvirtaio.py", "libvirt_lxc.py"):
        (tree / name).unlink(missing_ok=True)
    for path in tree.glob("libvirtmod_lxc.*"):
        path.unlink()
    for path in tree.glob("*/tests"):
        shutil.rmtree(path)
    for path in tree.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _changelog(file: Path) -> None:
    date = format_datetime(datetime.fromtimestamp(_epoch(), UTC))
    _write(
        file,
        f"vm-enabler ({version()}) bookworm; urgency=medium\n\n"
        "  * See CHANGELOG.md for what has changed.\n\n"
        f" -- {MAINTAINER}  {date}\n",
    )
    (file.parent / "source").mkdir(exist_ok=True)
    _write(file.parent / "source" / "format", "3.0 (native)\n")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    capture: bool = False,
    quiet: bool = False,
    **environment: str,
) -> str:
    done = subprocess.run(
        [str(part) for part in argv],
        cwd=cwd or REPOSITORY,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if capture or quiet else sys.stderr,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"{argv[0]} ended with {done.returncode}\n{done.stdout or ''}")
    return done.stdout.strip() if capture else ""


if __name__ == "__main__":
    main()
