"""What is needed of the kernel's netlink protocol for networks (``netlink(7)``, ``rtnetlink(7)``):
the neighbour table, the addresses of interfaces.

Three kinds of message, so small that a library for all of them would be a fifth of the enabler's
memory (pyroute2, which ``enabler doctor`` uses). The kernel answers before ``send(2)`` returns, so
nothing here waits.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self

RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTMGRP_NEIGH = 1 << 2

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _DUMP = 0x001, 0x300  # NLM_F_REQUEST, NLM_F_DUMP
_NO_MAC = 0x01 | 0x20 | 0x40  # NUD_INCOMPLETE, NUD_FAILED, NUD_NOARP
_NDA_DST, _NDA_LLADDR = 1, 2
_IFA_ADDRESS, _IFA_LOCAL = 1, 2

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_NEIGHBOUR = struct.Struct("=BBHiHBB")  # struct ndmsg
_ADDRESS = struct.Struct("=BBBBi")  # struct ifaddrmsg
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr
_ERROR = struct.Struct("=i")

LONGEST = 1 << 16
"""Bytes of a datagram; the kernel's are shorter."""

_WITHIN = 2.0


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of the neighbour table."""

    address: str
    """IP address; empty for an entry of another protocol."""
    interface_index: int
    mac: str | None
    """Lower-case; None while there is none, or none that was proved."""


class Rtnetlink:
    """Asks the kernel about the network namespace it was made in."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.settimeout(_WITHIN)
        self._number = 0

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def neighbour(self, address: str, interface_index: int) -> Neighbour | None:
        """Return the neighbour with an IP address on an interface. Raises `OSError`."""
        request = _neighbour_request(address, interface_index)
        try:
            answers = self._ask(RTM_GETNEIGH, request, flags=0)
        except FileNotFoundError:
            return None
        found = [neighbour(payload) for kind, payload in answers if kind == RTM_NEWNEIGH]
        return found[0] if found else None

    def neighbours(self, address: str) -> list[Neighbour]:
        """Return the neighbours with an IP address, on whatever interface. Raises `OSError`."""
        request = _NEIGHBOUR.pack(family(address), 0, 0, 0, 0, 0, 0)
        answers = self._ask(RTM_GETNEIGH, request, flags=_DUMP)
        table = (neighbour(payload) for kind, payload in answers if kind == RTM_NEWNEIGH)
        return [each for each in table if each.address == address]

    def interface_with(self, address: str) -> int | None:
        """Return the index of the interface that has an IP address. Raises `OSError`."""
        request = _ADDRESS.pack(family(address), 0, 0, 0, 0)
        for kind, payload in self._ask(RTM_GETADDR, request, flags=_DUMP):
            if kind == RTM_NEWADDR:
                *_, index = _ADDRESS.unpack_from(payload)
                found = attributes(payload[_ADDRESS.size :])
                if address in (_ip(found.get(_IFA_LOCAL)), _ip(found.get(_IFA_ADDRESS))):
                    return int(index)
        return None

    def _ask(self, kind: int, payload: bytes, flags: int) -> list[tuple[int, bytes]]:
        self._number += 1
        length = _HEADER.size + len(payload)
        header = _HEADER.pack(length, kind, _REQUEST | flags, self._number, 0)
        self._socket.send(header + payload)
        answers: list[tuple[int, bytes]] = []
        while True:
            for answer, number, content in messages(self._socket.recv(LONGEST)):
                if number != self._number:
                    continue  # the rest of an answer that was given up
                if answer == _NLMSG_ERROR:
                    code = -_ERROR.unpack_from(content)[0]
                    raise OSError(code, os.strerror(code))
                if answer == _NLMSG_DONE:
                    return answers
                answers.append((answer, content))
                if not flags & _DUMP:
                    return answers


def messages(received: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Return the messages of a datagram: kind, sequence number, content."""
    at = 0
    while at + _HEADER.size <= len(received):
        length, kind, _, number, _ = _HEADER.unpack_from(received, at)
        if length < _HEADER.size:
            return
        yield kind, number, received[at + _HEADER.size : at + length]
        at += _aligned(length)


def attributes(payload: bytes) -> dict[int, bytes]:
    """Return the attributes that follow a message's fixed part."""
    found: dict[int, bytes] = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(payload):
        length, name = _ATTRIBUTE.unpack_from(payload, at)
        if length < _ATTRIBUTE.size:
            break
        found[name] = payload[at + _ATTRIBUTE.size : at + length]
        at += _aligned(length)
    return found


def neighbour(payload: bytes) -> Neighbour:
    """Return what a message tells of a neighbour."""
    _, _, _, index, state, _, _ = _NEIGHBOUR.unpack_from(payload)
    found = attributes(payload[_NEIGHBOUR.size :])
    mac = None if state & _NO_MAC else found.get(_NDA_LLADDR)
    return Neighbour(_ip(found.get(_NDA_DST)), index, mac.hex(":") if mac else None)


def family(address: str) -> socket.AddressFamily:
    """Return the address family of an IP address."""
    return socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6


def _neighbour_request(address: str, interface_index: int) -> bytes:
    packed = ip_address(address).packed
    head = _NEIGHBOUR.pack(family(address), 0, 0, interface_index, 0, 0, 0)
    return head + _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), _NDA_DST) + packed


def _ip(packed: bytes | None) -> str:
    return str(ip_address(packed)) if packed is not None and len(packed) in (4, 16) else ""


def _aligned(length: int) -> int:
    return (length + 3) & ~3
