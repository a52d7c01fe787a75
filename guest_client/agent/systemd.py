"""Speaks to systemd, where there is one: readiness, status, watchdog (sd_notify(3)), the target."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from guest_client.agent.phases import Phase
from guest_client.agent.settings import Program

TARGET = "guest-client-migrated.target"
TARGET_PROGRAM = Program(
    name="systemd-target",
    command=("systemctl", "start", "--no-block", TARGET),
    phases=(Phase.MIGRATED,),
    timeout=30.0,
)
"""Starts the target that units can hang on: a registered program like any other, so that it is
tried again, survives a crash and is in the history; it comes after all the others."""

_BOOTED = Path("/run/systemd/system")


def is_booted(sign: Path = _BOOTED) -> bool:
    """Whether this system runs systemd (sd_booted(3))."""
    return sign.is_dir()


class Notifier:
    """Tells the service manager how we are; without one it tells nobody."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self.watchdog = _watchdog(environment)
        """Seconds within which it wants a sign of life; ``None`` if it wants none."""

    def tell(self, **state: str) -> None:
        """Tell it, as in ``tell(READY="1", STATUS="waiting")``; a lost manager is no error."""
        if not self._address:
            return
        message = "\n".join(f"{name}={value}" for name, value in state.items())
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(message.encode(), address)


def _watchdog(environment: Mapping[str, str]) -> float | None:
    usec, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not usec.isdigit() or pid not in ("", str(os.getpid())) or int(usec) == 0:
        return None
    return int(usec) / 1e6
