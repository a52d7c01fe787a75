"""Speaks to systemd, where it runs us: readiness, signs of life (sd_notify(3)), sockets that it
listens on for us (sd_listen_fds(3)).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, MutableMapping
from contextlib import suppress

from enabler.errors import ConfigurationError
from enabler.listen import Address, address_of

_FIRST = 3
"""The number of the first file descriptor that is handed over."""


class Notifier:
    """Tells the service manager how we are; without one it tells nobody."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self.watchdog = _watchdog(environment)
        """Seconds within which it wants a sign of life; None if it wants none."""

    def tell(self, **state: str) -> None:
        """Tell it, as in ``tell(READY="1", STATUS="listening")``; a lost manager is no error."""
        if not self._address:
            return
        message = "\n".join(f"{name}={value}" for name, value in state.items())
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)
            channel.sendto(message.encode(), address)

    def alive(self) -> None:
        """Give a sign of life."""
        self.tell(WATCHDOG="1")


def handed_over(
    addresses: Iterable[Address], environment: MutableMapping[str, str] = os.environ
) -> dict[Address, socket.socket]:
    """Return the listening sockets that systemd made for us, by their addresses.

    What was handed over is taken out of ``environment``: no child is to take it for its own.

    Raises:
        ConfigurationError: one is of no address in ``addresses``, and would never be answered on.
    """
    pid, count = environment.get("LISTEN_PID", ""), environment.get("LISTEN_FDS", "")
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environment.pop(name, None)
    wanted = set(addresses)
    found: dict[Address, socket.socket] = {}
    for number in range(_FIRST, _FIRST + int(count)):
        try:
            os.set_inheritable(number, False)
            given = socket.socket(fileno=number)
        except OSError as error:
            raise ConfigurationError(
                f"LISTEN_FDS says that descriptor {number} is a socket, but: {error.strerror}; "
                "start the enabler by its unit"
            ) from error
        address = address_of(given)
        if address not in wanted or address in found:
            raise ConfigurationError(
                f"systemd hands over a socket ({address or given}) that is not one of those in "
                "listen; let listen in /etc/enabler/enabler.toml and ListenStream= in "
                "'systemctl cat enabler.socket' be the same"
            )
        given.setblocking(False)
        found[address] = given
    return found


def _watchdog(environment: Mapping[str, str]) -> float | None:
    usec, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not usec.isdigit() or pid not in ("", str(os.getpid())) or int(usec) == 0:
        return None
    return int(usec) / 1e6
