"""Who is asking. Settled by the channel or by a token, never by what the request says of itself
(DESIGN rule 3).

A *way* is one means of knowing a caller, in a module of its own. All that are configured are asked,
the strongest first:

    way      the caller is                                it can't be forged because
    -------  -------------------------------------------  ------------------------------------------
    vsock    the VM with the CID that the connection has  the host's kernel sets it
    token    the VM whose token the request shows         it is 256 random bits
    address  the VM with the MAC behind the address       the host filters (deploy/README.md)

Each is enough. What one of them can't say, another may; but a token that is shown must be right,
and two ways that name different VMs are a reason to refuse.

The caller learns little of a refusal, the log all of it (`EnablerError.reason`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from enabler.errors import CallerUnknown, Refusal, TokenNeeded, TokenRefused

_KNOWN_MOST = 16_384


@dataclass(frozen=True, slots=True)
class Channel:
    """What the kernel says of the connection that a request came by: an address of one kind."""

    address: str | None = None
    """The peer's IP address, without a zone."""
    interface_index: int | None = None
    """The interface that the listener's own address is on; None if it listens on all."""
    cid: int | None = None
    """The peer's vsock address (vsock(7))."""

    def __str__(self) -> str:
        return f"vsock CID {self.cid}" if self.cid is not None else str(self.address)


class Unknown(Exception):
    """A way that applies does not know the caller. ``str()`` is the reason, for the log alone."""


class Way(Protocol):
    """One means of knowing a caller."""

    name: str

    def version(self, channel: Channel) -> object:
        """Return what `identify` relies on beside `Inventory.callers_version` and the token: while
        it is the same, so is the answer. None if that can't be said.
        """

    async def identify(self, channel: Channel, bearer: str | None) -> str | None:
        """Return the caller's VM UUID; None if this way does not apply.

        ``bearer`` is the token of the request's ``Authorization`` header (RFC 6750), if it has one.
        Raises `Unknown` if the way applies and can't tell which VM of this host the caller is,
        `HypervisorError` if libvirt must be asked and can't be.
        """


class Callers:
    """The ways in their order.

    ``version`` counts the changes of what VMs are known by (`Inventory.callers_version`);
    ``recognised`` is told which VM was found to ask, and by which ways (`Inventory.recognised`).
    """

    def __init__(
        self,
        ways: Sequence[Way],
        version: Callable[[], int],
        recognised: Callable[[str, tuple[str, ...]], None] = lambda _vm_uuid, _ways: None,
    ) -> None:
        self._ways = ways
        self._recognised = recognised
        self._names = [way.name for way in ways]
        self._version = version
        self._known: dict[tuple[Channel, str | None], tuple[object, str]] = {}

    def version(self, channel: Channel) -> object:
        """Return what is the same (``==``) for as long as `identify` would give the same answer to
        the same token on the same connection. Asks nobody, waits for nothing.
        """
        relied_on = [way.version(channel) for way in self._ways]
        return object() if None in relied_on else (self._version(), *relied_on)

    def known(self, channel: Channel, bearer: str | None, version: object) -> str | None:
        """Return what `identify` said, if it was of this version; None if it must be asked."""
        found = self._known.get((channel, bearer))
        return found[1] if found is not None and found[0] == version else None

    async def identify(self, channel: Channel, bearer: str | None = None) -> str:
        """Return the UUID of the VM that is asking.

        For the same arguments the answer is the same for as long as `version` is.

        Raises `CallerUnknown`, `TokenNeeded`, `TokenRefused`, `HypervisorError`.
        """
        version = self.version(channel)
        vm_uuid = await self._identify(channel, bearer)
        # Kept if what it rests on was settled before, and is the same after. So not the first time.
        if self.version(channel) == version:
            if len(self._known) >= _KNOWN_MOST:
                self._known.clear()
            self._known[channel, bearer] = (version, vm_uuid)
        return vm_uuid

    async def _identify(self, channel: Channel, bearer: str | None) -> str:
        named: dict[str, str] = {}
        reasons: list[str] = []
        for way in self._ways:
            try:
                vm_uuid = await way.identify(channel, bearer)
            except Unknown as reason:
                reasons.append(f"{way.name}: {reason}")
                continue
            if vm_uuid is not None:
                named[way.name] = vm_uuid
        shown = bearer is not None and "token" in self._names
        if len(set(named.values())) == 1 and (not shown or "token" in named):
            vm_uuid = next(iter(named.values()))
            self._recognised(vm_uuid, tuple(named))
            return vm_uuid
        if named:
            reasons.append("it is " + ", ".join(f"{vm} by {way}" for way, vm in named.items()))
        refusal = self._refusal(shown)
        refusal.reason = "; ".join(reasons) or "no way knows such callers"
        raise refusal

    def _refusal(self, shown: bool) -> Refusal:
        """One that says nothing of why, but what the caller knows: whether it showed a token."""
        if shown:
            return TokenRefused(
                "this token is not the caller's; the host's admin can make a new one with "
                "'enabler enroll', and finds the reason in the enabler's log"
            )
        if self._names == ["token"]:
            return TokenNeeded(
                "only callers with a token are answered here (Authorization: Bearer); "
                "the host's admin makes one with 'enabler enroll'"
            )
        return CallerUnknown(
            "this caller is no virtual machine that is known to live on this host; "
            "its admin finds the reason in the enabler's log"
        )


def the_one(vms: frozenset[str], what: str) -> str:
    """Return the only VM that has ``what``; raises `Unknown` if none has it, or several have."""
    if not vms:
        raise Unknown(f"no domain of this host has {what}")
    if len(vms) > 1:
        raise Unknown(f"more than one domain has {what}: {', '.join(sorted(vms))}")
    return next(iter(vms))
