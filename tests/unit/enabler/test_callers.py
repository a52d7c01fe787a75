"""Who is asking: each way by itself, all in their order, and those that contradict each other."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from enabler import tokens
from enabler.callers import Callers, Channel
from enabler.callers.address import ByAddress
from enabler.callers.token import ByToken
from enabler.callers.vsock import ByVsock
from enabler.errors import CallerUnknown, Refusal, TokenNeeded, TokenRefused
from enabler.events import ArrivedBy, Changed, Job, Presence, Seen, VmFacts
from tests.unit.enabler.test_inventory import T0, Libvirt

ONE = "11111111-0000-4000-8000-000000000001"
TWO = "22222222-0000-4000-8000-000000000002"
# Not random: they are part of the names of tests, which every worker must find alike.
TOKENS = {ONE: tokens.PREFIX + "1" * 43, TWO: tokens.PREFIX + "2" * 43}
STRAY = tokens.PREFIX + "3" * 43
ALL = ("vsock", "token", "address")


def seen(vm_uuid: str, number: int) -> Seen:
    facts = VmFacts(
        vm_uuid,
        f"vm{number}",
        None,
        1,
        2**30,
        frozenset({f"52:54:00:00:00:0{number}"}),
        cid=10 + number,
        token_sha256=tokens.sha256_of(TOKENS[vm_uuid]),
    )
    return Seen(facts, Presence.HERE, Job.NONE, f"run-{number}", ArrivedBy.START, T0, 0)


@dataclass
class Neighbours:
    """A neighbour table of two guests; at the way's own seam."""

    table: dict[str, str] = field(
        default_factory=lambda: {f"169.254.10.{n}": f"52:54:00:00:00:0{n}" for n in range(1, 4)}
    )

    async def mac_of(self, address: str, interface_index: int | None) -> str | None:
        assert interface_index == 7
        return self.table.get(address)

    def known_mac(self, address: str, interface_index: int | None) -> str | None:
        return self.table.get(address)


class World:
    def __init__(self) -> None:
        self.libvirt = Libvirt()
        self.inventory = self.libvirt.inventory
        self.libvirt.domains = {ONE: seen(ONE, 1), TWO: seen(TWO, 2)}

    def change(self, vm_uuid: str, **facts: object) -> None:
        """The domain's XML is another from now on, and libvirt's event says so."""
        known = self.libvirt.domains[vm_uuid]
        changed = replace(known.facts, **facts)  # type: ignore[arg-type]  # VmFacts' fields
        self.libvirt.domains[vm_uuid] = replace(known, facts=changed)

    def ask(
        self,
        channel: Channel,
        bearer: str | None = None,
        ways: tuple[str, ...] = ALL,
        *changes: tuple[str, dict[str, object]],
    ) -> str:
        async def asked() -> str:
            await self.libvirt.connect()
            await self.inventory.ready()
            for vm_uuid, facts in changes:
                self.change(vm_uuid, **facts)
                self.inventory.event(Changed(vm_uuid))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            made = {
                "vsock": ByVsock(self.inventory),
                "token": ByToken(self.inventory),
                "address": ByAddress(self.inventory, Neighbours()),
            }
            callers = Callers(
                [made[name] for name in ways],
                lambda: self.inventory.callers_version,
                self.inventory.recognised,
            )
            return await callers.identify(channel, bearer)

        return asyncio.run(asked())


@pytest.fixture
def world() -> World:
    return World()


def tcp(last: int) -> Channel:
    return Channel(f"169.254.10.{last}", 7)


@pytest.mark.parametrize("ways", [ALL, ("address", "token", "vsock")])
@pytest.mark.parametrize(
    ("channel", "bearer", "vm_uuid"),
    [
        (Channel(cid=11), None, ONE),
        (Channel(cid=12), None, TWO),
        (Channel(cid=12), TOKENS[TWO], TWO),
        (tcp(1), None, ONE),
        (tcp(2), TOKENS[TWO], TWO),
        (tcp(99), TOKENS[ONE], ONE),  # from anywhere, with a token
        (tcp(3), TOKENS[ONE], ONE),  # a neighbour that is no domain's
        (Channel(cid=99), TOKENS[TWO], TWO),
    ],
)
def test_each_way_is_enough(
    world: World, ways: tuple[str, ...], channel: Channel, bearer: str | None, vm_uuid: str
) -> None:
    assert world.ask(channel, bearer, ways) == vm_uuid


def test_the_admin_sees_how_a_vm_was_known(world: World) -> None:
    world.ask(tcp(2), TOKENS[TWO])
    seen = {vm.uuid: vm.known_by for vm in world.inventory.summaries()}
    assert seen == {ONE: (), TWO: ("token", "address")}


@pytest.mark.parametrize(
    ("way", "channel", "bearer"),
    [
        ("vsock", Channel(cid=11), None),
        ("token", tcp(99), TOKENS[ONE]),
        ("address", tcp(1), None),
        ("address", tcp(1), TOKENS[TWO]),  # where tokens don't count, a token says nothing
    ],
)
def test_each_way_is_usable_alone(
    world: World, way: str, channel: Channel, bearer: str | None
) -> None:
    assert world.ask(channel, bearer, (way,)) == ONE


@pytest.mark.parametrize(
    ("channel", "bearer", "ways", "refusal", "logged"),
    [
        (tcp(99), None, ALL, CallerUnknown, "no neighbour has this address"),
        (tcp(3), None, ALL, CallerUnknown, "no domain of this host has the MAC address"),
        (Channel(cid=99), None, ALL, CallerUnknown, "no domain of this host has the CID 99"),
        # The host's own programs, over the loopback, are nobody's guests.
        (Channel(cid=1), None, ALL, CallerUnknown, "CID 1 is no guest's"),
        (Channel(cid=2), None, ALL, CallerUnknown, "CID 2 is no guest's"),
        (tcp(1), None, ("vsock",), CallerUnknown, "no way knows such callers"),
        (tcp(1), None, ("token",), TokenNeeded, "no way knows such callers"),
        (tcp(1), None, ("vsock", "token"), CallerUnknown, "no way knows such callers"),
        # A token that is shown must be right, whatever else the caller is known by.
        (tcp(1), STRAY, ALL, TokenRefused, f"it is {ONE} by address"),
        (Channel(cid=11), STRAY, ALL, TokenRefused, f"it is {ONE} by vsock"),
        (tcp(1), "", ALL, TokenRefused, "no domain of this host has the token"),
        # Two ways that contradict each other.
        (tcp(1), TOKENS[TWO], ALL, TokenRefused, f"it is {TWO} by token, {ONE} by address"),
        (Channel(cid=11), TOKENS[TWO], ALL, TokenRefused, f"it is {ONE} by vsock, {TWO} by token"),
    ],
)
def test_refusals(
    world: World,
    channel: Channel,
    bearer: str | None,
    ways: tuple[str, ...],
    refusal: type[Refusal],
    logged: str,
) -> None:
    with pytest.raises(refusal) as refused:
        world.ask(channel, bearer, ways)
    reason = refused.value.reason
    assert reason is not None
    assert logged in reason
    # The caller learns nothing of any VM, the log nothing of any token.
    assert not any(vm_uuid in str(refused.value) for vm_uuid in (ONE, TWO))
    assert tokens.PREFIX not in reason


def test_refusals_of_a_token_are_all_alike(world: World) -> None:
    """Nobody nor anybody's: else who found a token could learn whether its VM lives here."""
    told = set()
    for bearer in (tokens.make(), TOKENS[TWO], "", "nonsense"):
        with pytest.raises(TokenRefused) as refused:
            world.ask(tcp(1), bearer)
        told.add(str(refused.value))
    assert len(told) == 1


def test_a_replaced_token_is_refused_at_once(world: World) -> None:
    new = tokens.make()
    change = (ONE, {"token_sha256": tokens.sha256_of(new)})
    assert world.ask(tcp(1), new, ALL, change) == ONE
    before = world.inventory.callers_version
    with pytest.raises(TokenRefused):
        world.ask(tcp(1), TOKENS[ONE], ALL, change)
    assert world.inventory.callers_version == before  # the same facts again are no change
    with pytest.raises(TokenRefused):
        world.ask(tcp(1), new, ALL, (ONE, {"token_sha256": None}))  # revoked
    assert world.inventory.callers_version > before


@pytest.mark.parametrize(
    ("channel", "bearer", "cloned"),
    [
        (tcp(99), TOKENS[ONE], "token_sha256"),
        (Channel(cid=11), None, "cid"),
        (tcp(1), None, "macs"),
    ],
)
def test_what_two_domains_have_is_nobodys(
    world: World,
    channel: Channel,
    bearer: str | None,
    cloned: str,
) -> None:
    """A copied domain XML."""
    world.change(TWO, **{cloned: getattr(world.libvirt.domains[ONE].facts, cloned)})
    with pytest.raises(Refusal) as refused:
        world.ask(channel, bearer)
    assert "more than one domain has" in str(refused.value.reason)
    assert f"{ONE}, {TWO}" in str(refused.value.reason)


def test_a_cid_that_goes_to_another_vm(world: World) -> None:
    assert world.ask(Channel(cid=11)) == ONE
    changes = (ONE, {"cid": None}), (TWO, {"cid": 11})
    assert world.ask(Channel(cid=11), None, ALL, *changes) == TWO
