"""One guest of the lab: a libvirt domain that can run on any of the hosts.

Its disks are read-only, so a live migration copies memory alone; its network card is on the
host-only bridge with a fixed MAC, a fixed IPv4 link-local address and the IPv6 link-local
address made from the MAC.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import libvirt

from tests.lab import network
from tests.lab.agent import Agent
from tests.lab.errors import GuestUnreachable, LabError
from tests.lab.host import Host
from tests.lab.images import Images
from tests.lab.jobs import GuestShell
from tests.lab.processes import wait_until
from tests.lab.state import ROOT

MEMORY_MIB = 384
VCPUS = 1
MAX_VCPUS = 2  # room for a test to plug one in

_EMULATOR = Path(__file__).with_name("emulator.sh")

_ALIVE = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_PAUSED)
#: Paused for these reasons, a domain is one half of a migration and not where the guest is.
_IN_TRANSIT = (
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION,
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY,
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP,
)
_DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <genid>{genid}</genid>
  <memory unit='MiB'>{memory}</memory>
  <vcpu current='{vcpus}'>{max_vcpus}</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initramfs}</initrd>
    <cmdline>console=ttyS0 quiet net.ifnames=0 nokaslr mitigations=off panic=-1 \
lab.name={name} lab.address={address}</cmdline>
  </os>
  <features><acpi/><tcg><tb-cache unit='MiB'>128</tb-cache></tcg></features>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>{emulator}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='{root_disk}'/>
      <target dev='vda' bus='virtio'/>
      <readonly/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='{packages_disk}'/>
      <target dev='vdb' bus='virtio'/>
      <readonly/>
    </disk>
    <interface type='bridge'>
      <mac address='{mac}'/>
      <source bridge='{bridge}'/>
      <model type='virtio'/>
      <rom enabled='no'/>
    </interface>
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <channel type='unix'>
      <source mode='bind' path='/run/lab-guests/{name}.agent'/>
      <target type='virtio' name='org.vm_enabler.lab.0'/>
    </channel>
    <serial type='pty'>
      <log file='{console}' append='on'/>
      <target port='0'/>
    </serial>
    <console type='pty'><target type='serial' port='0'/></console>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='virtio'/>
    <video><model type='none'/></video>
    <controller type='usb' model='none'/>
  </devices>
</domain>
"""


class Guest(GuestShell):
    """A guest. Commands and files: see `GuestShell` (`run`, `spawn`, `read_file`, …)."""

    def __init__(self, name: str, index: int, hosts: Sequence[Host]) -> None:
        self.index = index
        self.hosts = tuple(hosts)
        self.uuid = str(uuid.uuid5(uuid.NAMESPACE_URL, f"vm-enabler-lab:{name}"))
        self._first_genid = str(uuid.uuid5(uuid.NAMESPACE_URL, f"vm-enabler-lab:{name}:genid"))
        self.mac = f"52:54:00:77:01:{index + 1:02x}"
        self.address = f"169.254.10.{index + 1}"
        self.address_v6 = f"fe80::5054:ff:fe77:1{index + 1:02x}"
        self.console_log = ROOT / "guests" / f"{name}.console.log"
        super().__init__(name, Agent(name, self._agent_sockets))

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @staticmethod
    def numbered(index: int, hosts: Sequence[Host]) -> Guest:
        """The guest with this number: vm1, vm2, …."""
        return Guest(f"vm{index + 1}", index, hosts)

    # -- where it is --------------------------------------------------------------------

    @property
    def host(self) -> Host:
        """The host it is on, as libvirt has it (running, or paused by an admin).

        Raises:
            LabError: it is on none: shut off, saved, or lost.
        """
        for host in self.hosts:
            if self._is_on(host):
                return host
        raise LabError(f"{self.name} runs on no host: `python -m tests.lab status`")

    @property
    def active(self) -> bool:
        """Whether it is on any host."""
        return any(self._is_on(host) for host in self.hosts)

    @property
    def domain(self) -> libvirt.virDomain:
        """Its libvirt domain on the host it is on."""
        found = self.host.domain(self.name)
        assert found is not None
        return found

    @property
    def genid(self) -> str:
        """Its VM generation ID now. libvirt gives it a new one whenever it is restored."""
        found = ElementTree.fromstring(self.domain.XMLDesc()).findtext("genid")
        assert found is not None
        return found

    @property
    def resized(self) -> bool:
        """Whether it has other processors or memory than it began with."""
        _, _, kibibytes, processors, _ = self.domain.info()
        return (int(kibibytes), int(processors)) != (MEMORY_MIB * 1024, VCPUS)

    def set_vcpus(self, number: int) -> None:
        """Give it so many processors, while it runs.

        Raises:
            GuestUnreachable: QEMU did not live through it (under TCG, one time in some ten).
        """
        domain = self.domain
        try:
            domain.setVcpusFlags(number, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except libvirt.libvirtError as error:
            if domain.isActive():
                raise
            raise GuestUnreachable(f"{self.name}'s QEMU ended in a hotplug: {error}") from error

    def runs_on(self, host: Host) -> bool:
        """Whether its processor runs on that host now."""
        state, _ = self._state_on(host)
        return state == int(libvirt.VIR_DOMAIN_RUNNING)

    def _is_on(self, host: Host) -> bool:
        state, reason = self._state_on(host)
        paused = state == libvirt.VIR_DOMAIN_PAUSED
        return state in _ALIVE and not (paused and reason in _IN_TRANSIT)

    def _state_on(self, host: Host) -> tuple[int, int]:
        domain = host.domain(self.name)
        try:
            state, reason = domain.state() if domain is not None else (-1, -1)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            return -1, -1  # it left between the two questions
        return state, reason

    def _agent_sockets(self) -> list[Path]:
        paths = [
            host.directory / "run" / "lab-guests" / f"{self.name}.agent" for host in self.hosts
        ]
        return [path for path in paths if path.exists()]

    # -- its life -----------------------------------------------------------------------

    def xml(self, images: Images) -> str:
        """Its domain XML."""
        texts = {
            "name": self.name,
            "uuid": self.uuid,
            "genid": self._first_genid,
            "emulator": _EMULATOR,
            "kernel": images.kernel,
            "initramfs": images.initramfs,
            "root_disk": images.root_disk,
            "packages_disk": images.packages_disk,
            "console": self.console_log,
            "mac": self.mac,
            "address": self.address,
            "bridge": network.BRIDGE,
        }
        escaped = {key: escape(str(value), {"'": "&apos;"}) for key, value in texts.items()}
        return _DOMAIN.format(memory=MEMORY_MIB, vcpus=VCPUS, max_vcpus=MAX_VCPUS, **escaped)

    def define(self, host: Host, images: Images) -> None:
        """Make it known to a host."""
        self.console_log.parent.mkdir(parents=True, exist_ok=True)
        host.connection.defineXML(self.xml(images))

    def start(self, host: Host) -> None:
        """Start it on a host that knows it."""
        domain = host.domain(self.name)
        if domain is None:
            raise LabError(f"{host.name} does not know {self.name}: define it there first")
        domain.create()

    def wait_ready(self, seconds: float = 120) -> None:
        """Wait until commands can be run in it."""
        self.agent.ask("guest-ping", {}, seconds=seconds)

    def destroy(self) -> None:
        """Pull the plug, on every host that has it active."""
        for host in self.hosts:
            domain = host.domain(self.name)
            if domain is not None and domain.isActive():
                domain.destroy()

    def undefine(self) -> None:
        """Pull the plug, and make every host forget it, saved state included."""
        self.destroy()
        for host in self.hosts:
            domain = host.domain(self.name)
            if domain is not None:
                domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)

    def suspend(self) -> None:
        """Pause it, as `virsh suspend` does."""
        self.domain.suspend()

    def resume(self) -> None:
        """Let a paused guest run on, as `virsh resume` does."""
        self.domain.resume()

    def save(self) -> Path:
        """Save it to a file and stop it (`virsh save`); `restore` brings it back."""
        path = ROOT / "guests" / f"{self.name}.save"
        self.domain.save(str(path))
        return path

    def restore(self, host: Host, path: Path | None = None) -> None:
        """Restore it on a host from the file that `save` wrote."""
        host.connection.restore(str(path or ROOT / "guests" / f"{self.name}.save"))

    def reset(self) -> None:
        """Press the reset button: the guest boots anew in the same QEMU process."""
        self.domain.reset()

    def reboot(self, seconds: float = 120) -> None:
        """Reboot it from inside, and wait until it is back."""
        boot = self.boot_id()
        # A moment later, so that the answer to this request is out by then: were it lost, the
        # request would be sent again, and the guest rebooted twice.
        self.spawn(["sh", "-c", "sleep 1; exec /bin/busybox reboot -f"])
        if not wait_until(lambda: self.boot_id(seconds) != boot, seconds, 0.2):
            raise LabError(f"{self.name} does not come back from its reboot")

    def boot_id(self, seconds: float = 30) -> str:
        """The guest kernel's boot ID: another after each boot, the same across migrations."""
        path = "/proc/sys/kernel/random/boot_id"
        return self.helper(["cat", path], seconds=seconds).stdout.decode().strip()
