"""What the kernel tells of changes of its neighbour table (``rtnetlink(7)``, group RTNLGRP_NEIGH).

Read at the moment when it matters, without waiting: whoever relies on a neighbour asks first
whether there is news. Nothing runs in between.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator

from enabler.callers.rtnetlink import (
    LONGEST,
    RTM_DELNEIGH,
    RTM_NEWNEIGH,
    RTMGRP_NEIGH,
    messages,
    neighbour,
)

Change = tuple[str, int, str | None]
"""IP address, interface index, MAC address (lower case; None if there is none any more)."""


class NeighbourNews:
    """An iterator over what is new since it was last asked; None stands for news that were lost."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, RTMGRP_NEIGH))
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def __iter__(self) -> Iterator[Change | None]:
        # Nearly always there is nothing: one system call then, without an exception.
        if not self._poll.poll(0):
            return iter(())
        return self._read()

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def _read(self) -> Iterator[Change | None]:
        while True:
            try:
                received = self._socket.recv(LONGEST)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                yield None
                continue
            yield from parse(received)


def parse(received: bytes) -> Iterator[Change]:
    """Return the changes that one netlink datagram tells of."""
    for kind, _, payload in messages(received):
        if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
            told = neighbour(payload)
            yield told.address, told.interface_index, told.mac if kind == RTM_NEWNEIGH else None
