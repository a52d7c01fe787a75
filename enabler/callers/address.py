"""The caller's address, as the hypervisor gave it: its MAC is that of one domain.

The MAC comes from the kernel's neighbour table, not from the IP: link-local IPv4 addresses can
collide when guests of different hosts meet, MAC addresses of one fleet don't.
"""

from __future__ import annotations

from typing import Protocol

from enabler.callers import Channel, Unknown, the_one
from enabler.inventory import Inventory


class Neighbours(Protocol):
    """The kernel's neighbour table."""

    async def mac_of(self, address: str, interface_index: int | None) -> str | None:
        """Return the MAC address behind an IP address, lower-case, or None if there is none to be
        trusted.
        """

    def known_mac(self, address: str, interface_index: int | None) -> str | None:
        """Return the same where it was found out already and has not changed since; else None."""


class ByAddress:
    """Source address to MAC to the one domain whose live XML has that MAC."""

    name = "address"

    def __init__(self, inventory: Inventory, neighbours: Neighbours) -> None:
        self._inventory = inventory
        self._neighbours = neighbours

    def version(self, channel: Channel) -> object:
        """Return the MAC address behind the channel; as `Way.version` says."""
        if channel.address is None:
            return self.name
        return self._neighbours.known_mac(channel.address, channel.interface_index)

    async def identify(self, channel: Channel, bearer: str | None) -> str | None:
        """Return the caller's VM UUID, as `Way.identify` says."""
        if channel.address is None:
            return None
        mac = await self._neighbours.mac_of(channel.address, channel.interface_index)
        if mac is None:
            raise Unknown("no neighbour has this address")
        vms = self._inventory.vms_of_mac(mac)
        if not vms:
            # Perhaps it arrived this moment. Strangers can make libvirt be asked only so often.
            await self._inventory.look_for_new()
            vms = self._inventory.vms_of_mac(mac)
        return the_one(vms, f"the MAC address {mac}")
