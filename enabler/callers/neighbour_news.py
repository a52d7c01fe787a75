"""What the kernel tells of changes of its neighbour table (``rtnetlink(7)``, group RTNLGRP_NEIGH).

Read at the moment when it matters, without waiting: whoever relies on a neighbour asks first
whether there is news. Nothing runs in between.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

_GROUP_NEIGH = 1 << 2  # RTMGRP_NEIGH
_NEW, _DELETED = 28, 29  # RTM_NEWNEIGH, RTM_DELNEIGH
_NO_ADDRESS = 0x01 | 0x20 | 0x40  # NUD_INCOMPLETE, NUD_FAILED, NUD_NOARP
_DST, _LLADDR = 1, 2  # NDA_DST, NDA_LLADDR
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_NEIGHBOUR = struct.Struct("=BBHiHBB")  # struct ndmsg
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr
_LONGEST = 1 << 16

Change = tuple[str, int, str | None]
"""IP address, interface index, MAC address (lower case; None if there is none any more)."""


class NeighbourNews:
    """An iterator over what is new since it was last asked; None stands for news that were lost."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, _GROUP_NEIGH))
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
                received = self._socket.recv(_LONGEST)
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
    at = 0
    while at + _HEADER.size <= len(received):
        length, kind, _, _, _ = _HEADER.unpack_from(received, at)
        if length < _HEADER.size:
            return
        if kind in (_NEW, _DELETED):
            yield _change(kind, received[at + _HEADER.size : at + length])
        at += _aligned(length)


def _change(kind: int, message: bytes) -> Change:
    _, _, _, index, state, _, _ = _NEIGHBOUR.unpack_from(message)
    attributes: dict[int, bytes] = {}
    at = _NEIGHBOUR.size
    while at + _ATTRIBUTE.size <= len(message):
        length, name = _ATTRIBUTE.unpack_from(message, at)
        if length < _ATTRIBUTE.size:
            break
        attributes[name] = message[at + _ATTRIBUTE.size : at + length]
        at += _aligned(length)
    dst, mac = attributes.get(_DST, b""), attributes.get(_LLADDR)
    address = str(ip_address(dst)) if len(dst) in (4, 16) else ""
    gone = kind == _DELETED or state & _NO_ADDRESS or mac is None
    return address, index, None if gone or mac is None else mac.hex(":")


def _aligned(length: int) -> int:
    return (length + 3) & ~3
