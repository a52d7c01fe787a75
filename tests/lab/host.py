"""One host of the lab: a hypervisor of its own, on this machine.

A host is a network, a mount and a UTS namespace with its own host name, SMBIOS, machine ID,
boot ID, /run, libvirtd (with its own host UUID) and enabler. Its files:

    hosts/<letter>/
      etc-libvirt/ var-lib-libvirt/ var-log-libvirt/ var-cache-libvirt/ run/ …   bound into place
      run/enabler/admin.sock     the enabler's admin socket, as seen from outside the host
      run/lab-guests/            the sockets of the guests' lab agents
      enabler.toml               the enabler's configuration
      log/                       libvirtd, enabler, events (what libvirt itself says happened)
      processes/                 who runs (processes.py)
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import httpx
import libvirt

from tests.lab import network
from tests.lab.commands import ENVIRONMENT
from tests.lab.errors import LabError
from tests.lab.events import Event, parse_events, recorder_command, recording_count
from tests.lab.processes import Service, wait_until
from tests.lab.smbios import Machine, dump
from tests.lab.state import ROOT

ENABLER = Path(sys.executable).with_name("enabler")
LISTEN = (
    f"http://{network.BRIDGE_ADDRESS}:8777",
    f"http://[{network.BRIDGE_ADDRESS_V6}%25{network.BRIDGE}]:8777",
    "unix:/run/enabler/admin.sock",
)

_HERE = Path(__file__).parent
_LIBVIRTD_CONF = """\
host_uuid = "{host_uuid}"
listen_tls = 0
listen_tcp = 1
auth_tcp = "none"
auth_unix_rw = "none"
auth_unix_ro = "none"
log_outputs = "3:stderr"
"""
_QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
migration_address = "0.0.0.0"
"""
# Without SMBIOS the real dmidecode says this, and libvirt's getSysinfo has nothing to give.
_NO_DMIDECODE = "#!/bin/sh\necho '# No SMBIOS nor DMI entry point found, sorry.'\nexit 1\n"
_DMIDECODE = '#!/bin/sh\nexec {program} --from-dump {tables} "$@"\n'

# libvirt-python prints every error to stderr besides raising it; the lab only wants the latter.
libvirt.registerErrorHandler(lambda _context, _error: None, None)


class Host:
    """A hypervisor host. `libvirtd`, `enabler` and `recorder` are `Service`s."""

    def __init__(self, name: str, index: int, *, machine: Machine | None) -> None:
        self.name = name
        self.index = index
        self.machine = machine
        self.directory = ROOT / "hosts" / name
        self._connection: libvirt.virConnect | None = None
        self.holder = Service("namespaces", self.directory, self._hold, self._held)
        self.libvirtd = Service("libvirtd", self.directory, self._libvirtd, self._answers)
        self.enabler = Service("enabler", self.directory, self._enabler, self._enabler_answers)
        self.recorder = Service("events", self.directory, self._recorder, self._recording)

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @staticmethod
    def numbered(index: int, machine: Machine | None) -> Host:
        """The host with this number: host-a, host-b, …."""
        return Host(f"host-{chr(ord('a') + index)}", index, machine=machine)

    # -- up -----------------------------------------------------------------------------

    def up(self, everyone: Sequence[Host]) -> None:
        """Bring up namespaces, libvirtd and the event recorder (not the enabler)."""
        self._write_files(everyone)
        self.holder.start()
        self.libvirtd.start()
        self.recorder.start()

    def _write_files(self, everyone: Sequence[Host]) -> None:
        root = self.directory
        for name in ("etc-libvirt", "var-lib-libvirt", "var-log-libvirt", "var-cache-libvirt"):
            (root / name).mkdir(parents=True, exist_ok=True)
        for name in ("enabler", "lab-guests", "vm-enabler-lab", "lock"):
            (root / "run" / name).mkdir(parents=True)
        host_uuid = self.machine.uuid if self.machine else str(uuid.uuid4())
        (root / "etc-libvirt" / "libvirtd.conf").write_text(
            _LIBVIRTD_CONF.format(host_uuid=host_uuid)
        )
        (root / "etc-libvirt" / "qemu.conf").write_text(_QEMU_CONF)
        names = [f"{network.migration_address(host.index)} {host.name}" for host in everyone]
        (root / "hosts").write_text("\n".join(["127.0.0.1 localhost", "::1 localhost", *names, ""]))
        (root / "hostname").write_text(f"{self.name}\n")
        (root / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
        (root / "boot-id").write_text(f"{uuid.uuid4()}\n")
        listen = ", ".join(f'"{address}"' for address in LISTEN)
        self.enabler_config.write_text(
            f'listen = [{listen}]\nkeys_directory = "{self.directory}/keys"\n'
        )
        self._write_dmidecode()

    def _write_dmidecode(self) -> None:
        wrapper = self.directory / "dmidecode"
        if self.machine is None:
            wrapper.write_text(_NO_DMIDECODE)
        else:
            program, tables = self.directory / "dmidecode.real", self.directory / "smbios.bin"
            shutil.copy2("/usr/sbin/dmidecode", program)
            tables.write_bytes(dump(self.machine))
            wrapper.write_text(_DMIDECODE.format(program=program, tables=tables))
        wrapper.chmod(0o755)

    # -- programs in the host -----------------------------------------------------------

    def command(self, *argv: str) -> list[str]:
        """A command line that runs `argv` inside this host."""
        holder = self.holder.process
        if holder is None or not holder.alive:
            raise LabError(f"{self.name} is not up: `python -m tests.lab up`")
        return ["nsenter", "-t", str(holder.pid), "-n", "-m", "-u", "--wd=/", "--", *argv]

    @property
    def environment(self) -> dict[str, str]:
        """What a login shell of this host's admin would have; `enabler` is on the path."""
        return {**ENVIRONMENT, "PATH": f"{ENABLER.parent}:{ENVIRONMENT['PATH']}"}

    def run(
        self, *argv: str, check: bool = True, timeout: float = 60, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside this host, as its admin would (say, `enabler doctor`)."""
        done = subprocess.run(
            self.command(*argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**self.environment, **env},
        )
        if check and done.returncode != 0:
            raise LabError(
                f"on {self.name}, {shlex.join(argv)} ended with {done.returncode}: {done.stderr}"
            )
        return done

    def admin_get(self, path: str, *, timeout: float = 10) -> httpx.Response:
        """GET from this host's enabler over its admin socket."""
        transport = httpx.HTTPTransport(uds=str(self.admin_socket))
        with httpx.Client(transport=transport, base_url="http://enabler", timeout=timeout) as http:
            return http.get(path)

    @property
    def admin_socket(self) -> Path:
        """The enabler's admin socket, reachable from outside the host."""
        return self.directory / "run" / "enabler" / "admin.sock"

    @property
    def enabler_config(self) -> Path:
        """The enabler's configuration file; write it, then `enabler.restart()`."""
        return self.directory / "enabler.toml"

    def unplug(self) -> None:
        """Cut this host off from the others (guests still reach its enabler)."""
        network.set_link(self.name, up=False)

    def plug_in(self) -> None:
        """Undo `unplug`."""
        network.set_link(self.name, up=True)

    # -- libvirt ------------------------------------------------------------------------

    @property
    def uri(self) -> str:
        """libvirt URI of this host's libvirtd, for use from outside the host."""
        return f"qemu+unix:///system?socket={self.directory}/run/libvirt/libvirt-sock"

    def open(self) -> libvirt.virConnect:
        """A new connection to this host's libvirtd."""
        return libvirt.open(self.uri)

    @property
    def connection(self) -> libvirt.virConnect:
        """A connection to this host's libvirtd, made anew when libvirtd was restarted."""
        if self._connection is not None:
            try:
                self._connection.getLibVersion()
            except libvirt.libvirtError:
                self._connection = None
        if self._connection is None:
            self._connection = self.open()
        return self._connection

    def domain(self, name: str) -> libvirt.virDomain | None:
        """This host's domain of that name, or None."""
        try:
            return self.connection.lookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise

    def restart_libvirtd(self, *, kill: bool = False) -> None:
        """Restart libvirtd; guests run on. Returns when its events are recorded again.

        With `kill` it is ended by SIGKILL, as in a crash.
        """
        before = recording_count(self.recorder.log)
        if kill:
            self.libvirtd.kill()
        else:
            self.libvirtd.stop()
        self.libvirtd.start()
        if not wait_until(lambda: recording_count(self.recorder.log) > before, 15):
            raise LabError(f"the event recorder of {self.name} does not come back")

    def events(self) -> list[Event]:
        """What libvirt itself reported on this host so far, oldest first (`virsh event`)."""
        return parse_events(self.recorder.log.read_text(), self.name)

    # -- the services' command lines and readiness --------------------------------------

    def _hold(self) -> list[str]:
        settings = {
            "BRIDGE": network.BRIDGE,
            "BRIDGE_MAC": network.BRIDGE_MAC,
            "BRIDGE_ADDRESS": network.BRIDGE_ADDRESS,
            "BRIDGE_ADDRESS_V6": network.BRIDGE_ADDRESS_V6,
        }
        return [
            *("nsenter", f"--net=/run/netns/{network.host_namespace(self.name)}"),
            *("unshare", "--mount", "--uts", "--propagation", "private", "--"),
            *("env", *(f"{key}={value}" for key, value in settings.items())),
            *("sh", str(_HERE / "namespace_setup.sh")),
            *(self.name, str(self.directory), str(ROOT)),
        ]

    def _held(self) -> bool:
        return (self.directory / "up").exists()

    def _libvirtd(self) -> list[str]:
        return self.command("libvirtd", "--listen")

    def _answers(self) -> bool:
        try:
            self.open().close()
        except libvirt.libvirtError:
            return False
        return True

    def _recorder(self) -> list[str]:
        return self.command("sh", "-c", recorder_command())

    def _recording(self) -> bool:
        return recording_count(self.recorder.log) > 0

    def _enabler(self) -> list[str]:
        return self.command(str(ENABLER), "serve", "--config", str(self.enabler_config))

    def _enabler_answers(self) -> bool:
        try:
            return self.admin_get("/readyz", timeout=2).status_code == 200
        except httpx.TransportError:
            return False
