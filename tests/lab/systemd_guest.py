"""A guest that is an ordinary Debian: booted by systemd, with dpkg, and without the project.

Its userland is also what the packages are installed into without a boot (`tests/packages`).
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from tests.lab.cache import artefact, cache_lock, digest_of, files_below
from tests.lab.commands import CONTAINED, execute
from tests.lab.guest import Guest
from tests.lab.images import PACKAGES, SUITE, Images, apt_options_of_this_machine
from tests.lab.progress import Progress
from tests.lab.wheels import make_ext4
from tests.packages.building import packages

#: What a minimal Debian installation has, and what the packages depend on.
_PACKAGES = (
    *PACKAGES,
    *("adduser", "dbus", "init-system-helpers", "libvirt0", "systemd", "systemd-sysv"),
    *("systemd-timesyncd", "udev"),
)
_UNWANTED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
_DISK_MIB = 700
_LOCAL_MIB = 32
LOCAL = Path(__file__).parent / "guestfs" / "local"
#: It can play a host: a machine that says in its SMBIOS which it is.
_SMBIOS = """\
<sysinfo type='smbios'><system>
  <entry name='manufacturer'>Acme</entry>
  <entry name='product'>Rack 1</entry>
  <entry name='serial'>SN-0077</entry>
</system></sysinfo>
"""
_AGENT = """\
[Unit]
Description=The lab's way into this guest
DefaultDependencies=no
After=systemd-udevd.service

[Service]
ExecStart=/usr/local/sbin/lab-agent org.vm_enabler.lab.0
Restart=always
KillMode=process

[Install]
WantedBy=multi-user.target
"""


def userland(progress: Progress) -> Path:
    """Directory with root/ and root.img. Raises `LabError`."""

    def build(place: Path) -> None:
        root = place / "root"
        execute(
            [
                *CONTAINED,
                *("mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join(_PACKAGES)}"),
                *(f"--dpkgopt=path-exclude={pattern}" for pattern in _UNWANTED),
                *apt_options_of_this_machine(),
                *(SUITE, root),
            ],
            inherit_env=True,  # proxy settings
        )
        units = root / "etc" / "systemd" / "system"
        (units / "lab-agent.service").write_text(_AGENT)
        (units / "multi-user.target.wants" / "lab-agent.service").symlink_to(
            "/etc/systemd/system/lab-agent.service"
        )
        # No regular work of apt's and dpkg's in the middle of a test.
        shutil.rmtree(units / "timers.target.wants", ignore_errors=True)
        make_ext4(root, place / "root.img", mebibytes=_DISK_MIB)

    digest = digest_of(SUITE, *_PACKAGES, *_UNWANTED, _AGENT, str(_DISK_MIB))
    with cache_lock():
        return artefact("systemd", digest, build, progress, "Debian with systemd (once)")


def _local_disk(progress: Progress) -> Path:
    """An image for /usr/local: the lab's helpers, and the packages in share/."""
    built = packages()
    helpers = files_below(LOCAL)

    def build(place: Path) -> None:
        stage = place / "stage"
        shutil.copytree(LOCAL, stage)
        for path in stage.rglob("sbin/*"):
            path.chmod(0o755)
        shutil.copytree(built, stage / "share")
        make_ext4(stage, place / "local.img", mebibytes=_LOCAL_MIB)
        shutil.rmtree(stage)

    with cache_lock():
        digest = digest_of(built.name, *helpers)
        return artefact("local", digest, build, progress, "packages for a guest") / "local.img"


class SystemdGuest(Guest):
    """A guest whose first process is systemd; the packages are in /usr/local/share."""

    def xml(self, images: Images) -> str:
        """Its domain XML."""
        progress = Progress()
        disks = {
            "root_disk": userland(progress) / "root.img",
            "packages_disk": _local_disk(progress),
        }
        text = super().xml(replace(images, **disks))
        text = text.replace(" lab.name=", " lab.init=/sbin/init lab.name=")
        text = text.replace("</type>", "</type><smbios mode='sysinfo'/>", 1)
        return text.replace("<features>", f"{_SMBIOS}<features>", 1)
