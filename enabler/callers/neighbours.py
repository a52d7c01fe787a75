"""The kernel's neighbour table: which MAC address is behind an IP address."""

from __future__ import annotations

import asyncio
import logging
import socket
from ipaddress import ip_address
from typing import Self

from enabler.callers.neighbour_news import NeighbourNews
from enabler.callers.rtnetlink import Rtnetlink, family

log = logging.getLogger(__name__)

_DISCARD = 9
"""The port of RFC 863: nobody listens, nobody minds."""

_KNOWN_MOST = 16_384
"""Neighbours that are kept; more than a kernel keeps by default."""

_Key = tuple[str, int | None]

_CALL_WITHIN, _CALL_LOOKS = 1.0, 50
"""Seconds that a neighbour has to answer a call, and looks in them."""


class KernelNeighbours:
    """The neighbour table of the network namespace the enabler runs in, by netlink
    (``rtnetlink(7)``).

    What was asked once is kept until the kernel tells of a change (`known_mac`).
    """

    def __init__(self) -> None:
        self._netlink = Rtnetlink()
        self._news = NeighbourNews()
        self._known: dict[_Key, str] = {}
        self._asked: set[_Key] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.close()
        self._news.close()

    def known_mac(self, address: str, interface_index: int | None) -> str | None:
        """Return the MAC address if it was found out and nothing has changed since; None if
        `mac_of` must be asked. One system call.
        """
        self._take_in_news()
        return self._known.get((address, interface_index))

    def _take_in_news(self) -> None:
        for changed in self._news:
            if changed is None:
                self._known.clear()
                self._asked.clear()
                continue
            address, index, mac = changed
            for key in ((address, index), (address, None)):
                if self._known.get(key) != mac:
                    self._known.pop(key, None)
                self._asked.discard(key)

    def interface_of(self, address: str, zone: str | None) -> int | None:
        """Return the index of the interface that has a local address; None for a wildcard one."""
        if zone is not None:
            return socket.if_nametoindex(zone)
        if ip_address(address).is_unspecified:
            return None
        return self._netlink.interface_with(address)

    async def mac_of(self, address: str, interface_index: int | None) -> str | None:
        """Return the MAC address behind an IP address, as `Neighbours.mac_of` says.

        The kernel forgets a neighbour that left, and need not meet it again for a request on a
        connection of old (a VM that went and came back). So one that is not there is called first.
        """
        if ip_address(address).is_loopback:
            return None
        key = (address, interface_index)
        known = self.known_mac(address, interface_index)
        if known is not None:
            return known
        self._asked.add(key)
        mac = self._found(address, interface_index)
        if mac is None and interface_index is not None:
            _call(address, interface_index)
            for _ in range(_CALL_LOOKS):
                await asyncio.sleep(_CALL_WITHIN / _CALL_LOOKS)
                mac = self._found(address, interface_index)
                if mac is not None:
                    break
        self._take_in_news()
        # Kept only if there was no news of it between question and answer.
        if mac is not None and key in self._asked:
            if len(self._known) >= _KNOWN_MOST:
                self._known.clear()
            self._known[key] = mac
        self._asked.discard(key)
        return mac

    def _found(self, address: str, interface_index: int | None) -> str | None:
        try:
            if interface_index is None:
                found = self._netlink.neighbours(address)
            else:
                one = self._netlink.neighbour(address, interface_index)
                found = [] if one is None else [one]
        except OSError as error:
            log.warning("the kernel does not tell about neighbour %s: %s", address, error)
            return None
        macs = {each.mac for each in found if each.mac is not None}
        return macs.pop() if len(macs) == 1 else None


def _call(address: str, interface_index: int) -> None:
    """Make the kernel look for a neighbour (ARP, NDP): an empty datagram to its discard port."""
    with socket.socket(family(address), socket.SOCK_DGRAM) as caller:
        name = socket.if_indextoname(interface_index)
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
        caller.setblocking(False)
        scope = (0, interface_index) if caller.family == socket.AF_INET6 else ()
        try:
            caller.sendto(b"", (address, _DISCARD, *scope))
        except OSError as error:
            log.debug("calling %s on %s: %s", address, name, error)
