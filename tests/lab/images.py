"""What a guest boots from: a kernel, an initramfs and a Debian userland.

Each is kept in the cache until what it is made from changes. The userland takes longest
(mmdebstrap); it knows nothing of the project. The project's own part is a disk of its own
(`wheels.py`), so that a changed line of Python costs seconds, not a new userland.
"""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.lab.cache import artefact, cache_lock, digest_of
from tests.lab.commands import CONTAINED, execute
from tests.lab.errors import LabError
from tests.lab.progress import Progress
from tests.lab.wheels import guest_disk, make_ext4

SUITE = "bookworm"
PACKAGES = (
    "busybox-static",
    "curl",
    "dmidecode",
    "iproute2",
    "kmod",
    "lshw",
    "mount",
    "procps",
    "python3",
    "qemu-guest-agent",
)
KERNEL = "linux-image-cloud-amd64"
MODULES = (
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_balloon",
    "virtio-rng",
    "vsock_loopback",
    "overlay",
    "bridge",
)

_UNWANTED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
_DISK_MIB = 512
_ARCHIVE_SETTINGS = (
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
)
_GUEST_FILES = Path(__file__).parent / "guestfs"

# The kernel's package comes from the same archive as the userland. It is unpacked, never
# installed: the package that the metapackage depends on is the one with the files.
_FETCH_KERNEL = (
    'chroot "$1" sh -ec \'cd /var/tmp; '
    f'p=$(apt-cache depends {KERNEL} | sed -n "s/.*Depends: \\(linux-image-[0-9].*\\)/\\1/p"); '
    'apt-get -q download "$p"; mv linux-image-*.deb kernel.deb\''
)


@dataclass(frozen=True, slots=True)
class Images:
    """Files that every guest boots from; all are only ever read."""

    kernel: Path
    initramfs: Path
    root_disk: Path
    packages_disk: Path


def build_images(progress: Progress) -> Images:
    """Everything a guest needs, from the cache or built now.

    Raises:
        LabError: this machine can't build it; the message says why.
    """
    if platform.machine() != "x86_64":
        raise LabError(
            f"the lab's guests are x86-64 and so must this machine be; it is {platform.machine()}"
        )
    with cache_lock():
        debian = _debian(progress)
        initramfs = _initramfs(debian, progress)
        packages = guest_disk(debian / "root", progress)
    return Images(debian / "vmlinuz", initramfs, debian / "root.img", packages)


def _debian(progress: Progress) -> Path:
    """Directory with root/ (the userland), root.img, vmlinuz and modules/ (with its index)."""

    def build(place: Path) -> None:
        root = place / "root"
        options = [
            f"--include={','.join(PACKAGES)}",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in _UNWANTED),
            *apt_options_of_this_machine(),
            f"--customize-hook={_FETCH_KERNEL}",
        ]
        execute(
            [*CONTAINED, "mmdebstrap", "--quiet", "--variant=apt", *options, SUITE, root],
            inherit_env=True,  # proxy settings
        )
        _unpack_kernel(root / "var" / "tmp" / "kernel.deb", place)
        make_ext4(root, place / "root.img", mebibytes=_DISK_MIB)

    makings = (*PACKAGES, *MODULES, *_UNWANTED, str(_DISK_MIB))
    digest = digest_of(SUITE, KERNEL, _FETCH_KERNEL, *makings)
    what = "Debian userland and kernel for the guests (once; about half a minute)"
    return artefact("debian", digest, build, progress, what)


def apt_options_of_this_machine() -> list[str]:
    """Settings of this machine's apt that decide whether its archive can be used at all."""
    settings = execute(
        ["apt-config", "dump", *_ARCHIVE_SETTINGS, "--format", "%F %v%n"]
    ).splitlines()
    pairs = (line.split(" ", 1) for line in settings if " " in line)
    return [f'--aptopt={name} "{value}";' for name, value in pairs if value]


def _unpack_kernel(package: Path, place: Path) -> None:
    unpacked = place / "kernel"
    execute(["dpkg", "-x", package, unpacked])
    package.unlink()
    (vmlinuz,) = (unpacked / "boot").glob("vmlinuz-*")
    version = vmlinuz.name.removeprefix("vmlinuz-")
    execute(["depmod", "-b", unpacked, version])
    order: list[str] = []
    for module in MODULES:
        shown = execute(["modprobe", "-d", unpacked, "-S", version, "--show-depends", module])
        order += [line.split()[1] for line in shown.splitlines() if line.startswith("insmod")]
    modules = place / "modules"
    modules.mkdir()
    names: list[str] = []
    for path in dict.fromkeys(order):
        shutil.copy2(path, modules)
        names.append(Path(path).name)
    (modules / "order").write_text("\n".join(names) + "\n")
    shutil.move(vmlinuz, place / "vmlinuz")
    shutil.rmtree(unpacked)


def _initramfs(debian: Path, progress: Progress) -> Path:
    files = [_GUEST_FILES / "init", _GUEST_FILES / "inittab"]

    def build(place: Path) -> None:
        tree = place / "tree"
        (tree / "bin").mkdir(parents=True)
        for directory in ("proc", "sys", "dev", "lab", "new"):
            (tree / directory).mkdir()
        shutil.copy2(debian / "root" / "bin" / "busybox", tree / "bin")
        shutil.copytree(debian / "modules", tree / "modules")
        for path in files:
            shutil.copy2(path, tree)
        (tree / "init").chmod(0o755)
        names = "\n".join(str(p.relative_to(tree)) for p in sorted(tree.rglob("*")))
        image = place / "initramfs.cpio"
        execute(["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", "-F", image],
                stdin=names + "\n", cwd=tree)  # fmt: skip
        shutil.rmtree(tree)

    digest = digest_of(debian.name, *MODULES, *files)
    return artefact("initramfs", digest, build, progress, "initramfs") / "initramfs.cpio"
