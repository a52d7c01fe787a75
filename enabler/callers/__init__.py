"""Who is asking. Settled by the channel, never by what the request says of itself (DESIGN rule 3).

A *way* is one means of knowing a caller, in a module of its own. Each is asked in turn, the
strongest first; one that does not apply to the channel says nothing. Two that name different VMs
are a reason to refuse.

The caller learns little of a refusal, the log all of it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from enabler.errors import CallerUnknown

log = logging.getLogger(__name__)


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

    async def identify(self, channel: Channel, bearer: str | None) -> str | None:
        """Return the caller's VM UUID; None if this way does not apply.

        ``bearer`` is the token of the request's ``Authorization`` header (RFC 6750), if it has one.
        Raises `CallerUnknown` if the way applies and the caller is no VM of this host,
        `HypervisorError` if libvirt must be asked and can't be.
        """


class Callers:
    """The ways in their order."""

    def __init__(self, ways: Sequence[Way]) -> None:
        self._ways = ways

    async def identify(self, channel: Channel, bearer: str | None = None) -> str:
        """Return the UUID of the VM that is asking. Raises `CallerUnknown`, `HypervisorError`.

        For the same arguments on the same connection the answer is the same for as long as
        `enabler.inventory.Inventory.callers_version` is.
        """
        named = {way.name: await way.identify(channel, bearer) for way in self._ways}
        found = {vm_uuid for vm_uuid in named.values() if vm_uuid is not None}
        if len(found) != 1:
            raise refusal(channel, f"it is known as {named}")
        return found.pop()


_REFUSED = (
    "this address belongs to no virtual machine that lives on this host; "
    "its admin finds the reason in the enabler's log"
)


def refusal(channel: Channel, reason: str) -> CallerUnknown:
    """Return the error for a caller that is refused; ``reason`` is for the log alone."""
    log.warning("refused %s: %s", channel.address, reason)
    return CallerUnknown(_REFUSED)
