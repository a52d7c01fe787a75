"""The caller's token, as ``enabler enroll`` made it: its hash is in the metadata of one domain."""

from __future__ import annotations

from enabler import tokens
from enabler.callers import Channel, Unknown, the_one
from enabler.inventory import Inventory


class ByToken:
    """Token to hash to the one domain that has it.

    A hash is looked up in a table and compared in constant time after that. What the table's own
    timing could tell is of the hash of what was shown, and so nothing of any token.
    """

    name = "token"

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    def version(self, channel: Channel) -> object:
        """Return a constant: beside the token and what the inventory knows there is nothing."""
        return self.name

    async def identify(self, channel: Channel, bearer: str | None) -> str | None:
        """Return the caller's VM UUID, as `Way.identify` says."""
        if bearer is None:
            return None
        sha256 = tokens.sha256_of(bearer)
        vms = self._inventory.vms_of_token(sha256)
        if not vms:
            # Perhaps it arrived this moment, as with an address (`enabler.callers.address`).
            await self._inventory.look_for_new()
            vms = self._inventory.vms_of_token(sha256)
        vm_uuid = the_one(vms, "the token that was shown")
        if not tokens.matches(bearer, self._inventory.token_sha256(vm_uuid) or ""):
            raise Unknown("the token that was shown is replaced this moment")
        return vm_uuid
