"""A Debian host with libvirt that Ansible reaches as it would by ssh: namespaces with a root of
their own. There is no systemd in it, so units are enabled and not started.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.lab.cache import REPOSITORY, artefact, cache_lock, digest_of
from tests.lab.commands import CONTAINED, execute
from tests.lab.images import SUITE, apt_options_of_this_machine
from tests.lab.processes import wait_until
from tests.lab.progress import Progress
from tests.packages.chroot import Chroot

_PACKAGES = (
    *("adduser", "dmidecode", "dnsmasq-base", "init-system-helpers", "iproute2", "python3"),
    # Ansible's module `apt` speaks to apt by it.
    "python3-apt",
    *("libvirt-clients", "libvirt-daemon-driver-qemu", "libvirt-daemon-system", "systemd"),
)
_UNWANTED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
_ENTER = """
set -eu
root=$1; shift
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --bind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
ip link set lo up
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root chroot "$root" \
    sh -c 'libvirtd --daemon; touch /run/entered; exec sleep infinity'
"""
# Stands for ssh, as Ansible calls it: options, the host's name, a command line for its shell.
_SSH = """\
#!/bin/sh
for command; do :; done
exec nsenter --target {pid} --mount --uts --net --pid --root -- \
    env -i --chdir=/ PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root SYSTEMD_OFFLINE=1 \
    sh -c "$command"
"""


def userland() -> Path:
    """Directory of a Debian with libvirt. Raises `LabError`."""

    def build(place: Path) -> None:
        options = [
            f"--include={','.join(_PACKAGES)}",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in _UNWANTED),
            *apt_options_of_this_machine(),
        ]
        command = ["mmdebstrap", "--quiet", "--variant=apt", *options, SUITE, place / "root"]
        execute([*CONTAINED, *command], inherit_env=True)  # proxy settings

    digest = digest_of(SUITE, *_PACKAGES, *_UNWANTED)
    with cache_lock():
        what = "Debian with libvirt (once; about half a minute)"
        return artefact("managed", digest, build, Progress(), what) / "root"


class Managed(Chroot):
    """A running host; `close` ends it with all that runs in it."""

    def __init__(self, place: Path) -> None:
        super().__init__(userland(), place / "root")
        entering = ["unshare", "--net", "--uts", *CONTAINED, "sh", "-c", _ENTER, "enter", self.root]
        self._holder = subprocess.Popen(entering, stdin=subprocess.DEVNULL)
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        self._ssh = place / "ssh"

        def entered() -> bool:
            pid = children.read_text().strip()
            return bool(pid) and Path(f"/proc/{pid}/root/run/entered").exists()

        assert wait_until(entered, 60), "the host does not start"
        self._ssh.write_text(_SSH.format(pid=children.read_text().strip()))
        self._ssh.chmod(0o755)
        self._inventory = place / "inventory.yml"
        # libvirtd writes its own files anew before it answers for the first time.
        self.shell("virsh net-list")

    def close(self) -> None:
        """End it."""
        self._holder.kill()
        self._holder.wait()

    def shell(self, command: str) -> str:
        """Run a shell command in it; what it printed."""
        done = subprocess.run([self._ssh, command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def play(self, inventory: str, *options: str) -> tuple[dict[str, int], str]:
        """Run the playbook on it: how much was changed on each host, and what was printed."""
        self._inventory.write_text(inventory)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "ansible", "playbook", "-i", self._inventory, *options),
                REPOSITORY / "deploy" / "ansible" / "site.yml",
            ],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "LANG": "C.UTF-8",
                "HOME": str(self.root.parent),
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_PIPELINING": "1",
                "ANSIBLE_REMOTE_TMP": "/tmp",
                "ANSIBLE_SSH_EXECUTABLE": str(self._ssh),
                "ANSIBLE_SSH_TRANSFER_METHOD": "piped",
                "ANSIBLE_SSH_ARGS": "",
            },
        )
        assert done.returncode == 0, done.stdout + done.stderr
        changes = re.findall(r"^(\S+) +: ok=\d+ +changed=(\d+)", done.stdout, re.MULTILINE)
        return {name: int(number) for name, number in changes}, done.stdout
