"""The caller's CID, as the hypervisor gave it: its vsock address, in the live XML of one domain."""

from __future__ import annotations

from enabler.callers import Channel, Unknown, the_one
from enabler.inventory import Inventory

_OURS = range(3)
"""The hypervisor's, the loopback's and the host's own CIDs (vsock(7)): programs of this host."""


class ByVsock:
    """CID to the one domain that has it. The host's kernel sets it for each connection."""

    name = "vsock"

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    def version(self, channel: Channel) -> object:
        """Return a constant: a connection's CID stays; whose it is, the inventory knows."""
        return self.name

    async def identify(self, channel: Channel, bearer: str | None) -> str | None:
        """Return the caller's VM UUID, as `Way.identify` says."""
        if channel.cid is None:
            return None
        if channel.cid in _OURS:
            raise Unknown(f"CID {channel.cid} is no guest's, but a program's of this host")
        vms = self._inventory.vms_of_cid(channel.cid)
        if not vms:
            await self._inventory.look_for_new()
            vms = self._inventory.vms_of_cid(channel.cid)
        return the_one(vms, f"the CID {channel.cid}")
