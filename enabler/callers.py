"""Who is asking. Settled by the channel, never by what the request says of itself (DESIGN rule 3).

A *way* is one means of knowing a caller. Each is asked in turn, the strongest first; one that does
not apply to the channel says nothing. Two that name different VMs are a reason to refuse. Here is
one way: the address that the hypervisor gave the VM. The caller's MAC comes from the kernel's
neighbour table, not from the IP: link-local IPv4 addresses can collide when guests of different
hosts meet, MAC addresses of one fleet don't.

The caller learns little of a refusal, the log all of it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from types import TracebackType
from typing import Protocol, Self

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.ndmsg import NUD_FAILED, NUD_INCOMPLETE, NUD_NOARP

from enabler.errors import CallerUnknown
from enabler.inventory import Inventory

log = logging.getLogger(__name__)

_DISCARD = 9
"""The port of RFC 863: nobody listens, nobody minds."""

_CALL_WITHIN, _CALL_LOOKS = 1.0, 50
"""Seconds that a neighbour has to answer a call, and looks in them."""


@dataclass(frozen=True, slots=True)
class Channel:
    """What the kernel says of the connection that a request came by."""

    address: str
    """The peer's IP address, without a zone."""
    interface_index: int | None
    """The interface that the listener's own address is on; None if it listens on all."""


class Way(Protocol):
    """One means of knowing a caller."""

    name: str

    async def identify(self, channel: Channel) -> str | None:
        """Return the caller's VM UUID; None if this way does not apply to the channel.

        Raises `CallerUnknown` if it applies and the caller is no VM of this host, `HypervisorError`
        if libvirt must be asked and can't be.
        """


class Callers:
    """The ways in their order."""

    def __init__(self, ways: Sequence[Way]) -> None:
        self._ways = ways

    async def identify(self, channel: Channel) -> str:
        """Return the UUID of the VM that is asking. Raises `CallerUnknown`, `HypervisorError`."""
        named = {way.name: await way.identify(channel) for way in self._ways}
        found = {vm_uuid for vm_uuid in named.values() if vm_uuid is not None}
        if len(found) != 1:
            raise _refusal(channel, f"it is known as {named}")
        return found.pop()


class Neighbours(Protocol):
    """The kernel's neighbour table."""

    async def mac_of(self, address: str, interface_index: int | None) -> str | None:
        """Return the MAC address behind an IP address, lower-case, or None if there is none to be
        trusted.
        """


class ByAddress:
    """Source address to MAC to the one domain whose live XML has that MAC."""

    name = "address"

    def __init__(self, inventory: Inventory, neighbours: Neighbours) -> None:
        self._inventory = inventory
        self._neighbours = neighbours

    async def identify(self, channel: Channel) -> str | None:
        """Return the caller's VM UUID, as `Way.identify` says."""
        mac = await self._neighbours.mac_of(channel.address, channel.interface_index)
        if mac is None:
            raise _refusal(channel, "no neighbour has this address")
        vms = self._inventory.vms_of_mac(mac)
        if not vms:
            # Perhaps it arrived this moment. Strangers can make libvirt be asked only so often.
            await self._inventory.look_for_new()
            vms = self._inventory.vms_of_mac(mac)
        if not vms:
            raise _refusal(channel, f"no domain of this host has the MAC address {mac}")
        if len(vms) > 1:
            raise _refusal(
                channel, f"more than one domain has the MAC address {mac}: {sorted(vms)}"
            )
        return next(iter(vms))


_REFUSED = (
    "this address belongs to no virtual machine that lives on this host; "
    "its admin finds the reason in the enabler's log"
)


def _refusal(channel: Channel, reason: str) -> CallerUnknown:
    log.warning("refused %s: %s", channel.address, reason)
    return CallerUnknown(_REFUSED)


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
