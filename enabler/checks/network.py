"""Checks of the network: the host-only bridge, and the neighbour table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from enabler.checks import Check
from enabler.listen import HttpAddress

BRIDGE = "enabler0"
BRIDGE_MAC = "52:54:00:77:00:01"
BRIDGE_ADDRESSES = ("169.254.77.1/16", "fe80::77:1/64")

_IFF_UP = 1
_DEPLOYED = "deploy/README.md shows how to have it made at each start"


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface of the host."""

    index: int
    name: str
    mac: str | None
    up: bool
    kind: str | None
    """``bridge``, ``veth`` …; None for a physical one."""
    master: int | None
    """The index of the bridge that it is a port of."""
    addresses: tuple[str, ...]
    """With their prefix length."""


@dataclass(frozen=True, slots=True)
class Network:
    """What the kernel says of the network namespace that this runs in."""

    links: tuple[Link, ...]
    neighbours: int
    """Entries of the neighbour table."""

    def link(self, name: str) -> Link | None:
        """The interface of this name, if there is one."""
        return next((link for link in self.links if link.name == name), None)

    def ports(self, bridge: Link) -> frozenset[str]:
        """The names of a bridge's ports."""
        return frozenset(link.name for link in self.links if link.master == bridge.index)

    def with_address(self, host: str) -> Link | None:
        """The interface that has this address."""
        wanted = ip_address(host)
        return next(
            (
                link
                for link in self.links
                if any(ip_interface(address).ip == wanted for address in link.addresses)
            ),
            None,
        )


def look() -> Network:
    """Ask the kernel by netlink, changing nothing. Raises OSError or NetlinkError."""
    with IPRoute() as netlink:
        addresses: dict[int, list[str]] = {}
        for found in netlink.get_addr():
            text = f"{found.get('local') or found.get('address')}/{found['prefixlen']}"
            addresses.setdefault(int(found["index"]), []).append(text)
        links = tuple(_link(found, addresses) for found in netlink.get_links())
        return Network(links, sum(1 for _ in netlink.get_neighbours()))


def _link(found: Any, addresses: dict[int, list[str]]) -> Link:
    about = found.get("linkinfo")
    return Link(
        index=int(found["index"]),
        name=str(found.get("ifname")),
        mac=found.get("address"),
        up=bool(found["flags"] & _IFF_UP),
        kind=about.get("kind") if about else None,
        master=found.get("master"),
        addresses=tuple(addresses.get(int(found["index"]), ())),
    )


def check_network() -> tuple[Check, Network | None]:
    """That the kernel tells of interfaces and neighbours: callers are known by the latter."""
    name = "neighbour table"
    try:
        network = look()
    except (OSError, NetlinkError) as error:
        return Check.fail(
            name,
            f"netlink does not answer: {error}",
            "let its unit use netlink: RestrictAddressFamilies must name AF_NETLINK",
        ), None
    return Check.ok(name, f"readable, {network.neighbours} entries"), network


def bridge_of(network: Network, listeners: Sequence[HttpAddress]) -> str | None:
    """The bridge that guests ask over: the interface that the listeners' addresses are on.

    It is the default one when nothing says otherwise; None when all listeners are elsewhere.
    """
    for listener in listeners:
        if listener.zone:
            return listener.zone
        link = network.with_address(listener.host)
        if link is not None and link.kind == "bridge":
            return link.name
    defaults = {str(ip_interface(address).ip) for address in BRIDGE_ADDRESSES}
    return BRIDGE if any(listener.host in defaults for listener in listeners) else None


def check_bridge(network: Network, name: str, listeners: Sequence[HttpAddress]) -> Check:
    """That the host-only bridge is there, is up, and is the same as on every other host."""
    title = f"bridge {name}"
    addresses = " && ".join(_add(address, name) for address in BRIDGE_ADDRESSES)
    make = (
        f"ip link add {name} address {BRIDGE_MAC} type bridge && ip link set {name} up && "
        f"{addresses}"
    )
    if name == BRIDGE:
        make = f"enabler network; or, without libvirt: {make}"
    link = network.link(name)
    if link is None:
        return Check.fail(title, "there is none", f"make it: {make}; {_DEPLOYED}")
    if link.kind != "bridge":
        return Check.fail(
            title,
            f"{name} is no bridge but {link.kind or 'a physical interface'}",
            f"give that interface another name, then: {make}",
        )
    if not link.up:
        return Check.fail(title, "it is down", f"set it up: ip link set {name} up")
    if link.mac != BRIDGE_MAC:
        return Check.fail(
            title,
            f"its MAC address is {link.mac}: a VM that moves here goes on sending to {BRIDGE_MAC}",
            f"on every host of the fleet: ip link set {name} address {BRIDGE_MAC}; {_DEPLOYED}",
        )
    missing = [address for address in BRIDGE_ADDRESSES if not _has(link, address)]
    if missing:
        hosts = {listener.host for listener in listeners}
        needed = any(str(ip_interface(address).ip) in hosts for address in missing)
        return (Check.fail if needed else Check.warn)(
            title,
            f"it has no {' and no '.join(missing)}",
            " && ".join(_add(address, name) for address in missing),
        )
    return Check.ok(title, f"up, {link.mac}, {', '.join(sorted(link.addresses))}")


def _add(address: str, bridge: str) -> str:
    # Every host has the same IPv6 address: to look for duplicates of it would find them.
    nodad = " nodad" if ":" in address else ""
    return f"ip address add {address} dev {bridge}{nodad}"


def _has(link: Link, address: str) -> bool:
    wanted = ip_interface(address)
    return any(ip_interface(each) == wanted for each in link.addresses)
