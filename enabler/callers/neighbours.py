"""The kernel's neighbour table: which MAC address is behind an IP address."""

from __future__ import annotations

import asyncio
import logging
import socket
from ipaddress import ip_address
from types import TracebackType
from typing import Self

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.ndmsg import NUD_FAILED, NUD_INCOMPLETE, NUD_NOARP

log = logging.getLogger(__name__)

_DISCARD = 9
"""The port of RFC 863: nobody listens, nobody minds."""

_CALL_WITHIN, _CALL_LOOKS = 1.0, 50
"""Seconds that a neighbour has to answer a call, and looks in them."""


class KernelNeighbours:
    """The neighbour table of the network namespace the enabler runs in, by netlink
    (``rtnetlink(7)``).
    """

    def __init__(self) -> None:
        self._netlink = AsyncIPRoute()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._netlink.close()

    async def interface_of(self, address: str, zone: str | None) -> int | None:
        """Return the index of the interface that has a local address; None for a wildcard one."""
        if zone is not None:
            return socket.if_nametoindex(zone)
        if ip_address(address).is_unspecified:
            return None
        async for found in await self._netlink.get_addr():
            if address in (found.get("local"), found.get("address")):
                return int(found["index"])
        return None

    async def mac_of(self, address: str, interface_index: int | None) -> str | None:
        """Return the MAC address behind an IP address, as `Neighbours.mac_of` says.

        The kernel forgets a neighbour that left, and need not meet it again for a request on a
        connection of old (a VM that went and came back). So one that is not there is called first.
        """
        if ip_address(address).is_loopback:
            return None
        mac = await self._known_mac(address, interface_index)
        if mac is None and interface_index is not None:
            _call(address, interface_index)
            for _ in range(_CALL_LOOKS):
                await asyncio.sleep(_CALL_WITHIN / _CALL_LOOKS)
                mac = await self._known_mac(address, interface_index)
                if mac is not None:
                    break
        return mac

    async def _known_mac(self, address: str, interface_index: int | None) -> str | None:
        if interface_index is None:
            found = [entry async for entry in await self._netlink.get_neighbours(dst=address)]
        else:
            try:
                found = await self._netlink.neigh(
                    "get", dst=address, ifindex=interface_index, family=_family(address)
                )
            except NetlinkError as error:
                log.debug("neighbour %s: %s", address, error)
                return None
        macs = {
            entry.get("lladdr")
            for entry in found
            if not entry["state"] & (NUD_FAILED | NUD_INCOMPLETE | NUD_NOARP)
        }
        macs.discard(None)
        return str(macs.pop()).lower() if len(macs) == 1 else None


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6


def _call(address: str, interface_index: int) -> None:
    """Make the kernel look for a neighbour (ARP, NDP): an empty datagram to its discard port."""
    with socket.socket(_family(address), socket.SOCK_DGRAM) as caller:
        name = socket.if_indextoname(interface_index)
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
        caller.setblocking(False)
        scope = (0, interface_index) if caller.family == socket.AF_INET6 else ()
        try:
            caller.sendto(b"", (address, _DISCARD, *scope))
        except OSError as error:
            log.debug("calling %s on %s: %s", address, name, error)
