"""The lab's network namespaces: one per host, and one that holds the wire between them.

Everything of a host runs in its namespace, so the namespaces also tell which processes are
the lab's: all of them, written down or not.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.lab.commands import execute
from tests.lab.errors import LabError
from tests.lab.processes import wait_until

PREFIX = "vm-enabler-lab-"
SWITCH = f"{PREFIX}switch"

#: The host-only bridge that guests reach the enabler by: the same on every host (DESIGN.md).
BRIDGE = "enabler0"
BRIDGE_MAC = "52:54:00:77:00:01"
BRIDGE_ADDRESS = "169.254.77.1"
BRIDGE_ADDRESS_V6 = "fe80::77:1"

#: The network between the hosts, for migrations.
MIGRATION_LINK = "migration0"

_NAMESPACES = Path("/run/netns")


def host_namespace(host: str) -> str:
    """Name of a host's network namespace."""
    return f"{PREFIX}{host}"


def migration_address(index: int) -> str:
    """Address of the host with this number (0, 1, …) on the network between the hosts."""
    return f"10.77.0.{index + 1}"


def make_switch(hosts: list[str]) -> None:
    """Make all namespaces, and a bridge in one of its own that a wire from each host ends at."""
    execute(["ip", "netns", "add", SWITCH])
    execute(["ip", "-n", SWITCH, "-batch", "-"], stdin="""
        link add wire type bridge stp_state 0 forward_delay 0
        link set wire up
    """)  # fmt: skip
    for index, host in enumerate(hosts):
        namespace = host_namespace(host)
        execute(["ip", "netns", "add", namespace])
        execute(["ip", "-n", namespace, "-batch", "-"], stdin=f"""
            link set lo up
            link add {MIGRATION_LINK} type veth peer name {host} netns {SWITCH}
            address add {migration_address(index)}/24 dev {MIGRATION_LINK}
            link set {MIGRATION_LINK} up
        """)  # fmt: skip
        execute(["ip", "-n", SWITCH, "link", "set", host, "master", "wire", "up"])


def set_link(host: str, *, up: bool) -> None:
    """Plug or unplug a host's wire to the others."""
    execute(["ip", "-n", SWITCH, "link", "set", host, "up" if up else "down"])


def namespaces() -> list[str]:
    """The lab's namespaces that exist now."""
    if not _NAMESPACES.is_dir():
        return []
    return sorted(path.name for path in _NAMESPACES.iterdir() if path.name.startswith(PREFIX))


def namespace_directory_is_mounted() -> bool:
    """Whether `ip netns` has been used on this machine: it leaves a mount of its own behind."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == str(_NAMESPACES) for line in mounts)


def kill_everything_in(namespace: str) -> None:
    """SIGKILL all processes of one of the lab's namespaces, again until none is left.

    Raises:
        LabError: some process does not die.
    """
    assert namespace.startswith(PREFIX)

    def empty() -> bool:
        pids = [int(pid) for pid in execute(["ip", "netns", "pids", namespace]).split()]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return not pids

    if not wait_until(empty, 15):
        left = execute(["ip", "netns", "pids", namespace]).split()
        raise LabError(f"processes {', '.join(left)} of {namespace} do not die: look at them")


def remove_namespaces(*, unmount_directory: bool) -> None:
    """Remove the lab's namespaces, and with them every veth, bridge and tap."""
    for namespace in namespaces():
        kill_everything_in(namespace)
        execute(["ip", "netns", "delete", namespace])
    if unmount_directory and namespace_directory_is_mounted() and not any(_NAMESPACES.iterdir()):
        execute(["umount", str(_NAMESPACES)])
        _NAMESPACES.rmdir()
