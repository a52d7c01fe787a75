"""The host-only network and its nwfilter as libvirt is to have them, and whether it has. Pure.

What they are is data: ``enabler/data/libvirt`` (``deploy/libvirt`` in the repository). Formats:
https://libvirt.org/formatnetwork.html, https://libvirt.org/formatnwfilter.html.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from xml.etree.ElementTree import Element, SubElement, tostring

from enabler import safexml


def wanted(name: str) -> str:
    """Return the XML of a file of the data, by its name without ``.xml``."""
    return resources.files("enabler").joinpath(f"data/libvirt/{name}.xml").read_text("utf-8")


def without_mac_table(network: str) -> str:
    """Return a network whose bridge keeps its own table of MACs, for kernels whose bridges have no
    VLAN filtering: libvirt's table (``macTableManager``) needs it.
    """
    root = safexml.parse(network)
    for bridge in root.findall("bridge"):
        bridge.attrib.pop("macTableManager", None)
    return tostring(root, encoding="unicode")


def with_uuid(text: str, uuid: str) -> str:
    """Return a network or filter as the one with this UUID: libvirt then takes it in its place."""
    root = safexml.parse(text)
    for old in root.findall("uuid"):
        root.remove(old)
    SubElement(root, "uuid").text = uuid
    return tostring(root, encoding="unicode")


def differences(found: str, wanted: str) -> list[str]:
    """Say in what a network of libvirt's differs from the wanted one, in what guests rely on."""
    a, b = safexml.parse(found), safexml.parse(wanted)
    return [name for name, look in _OF_A_NETWORK.items() if look(a) != look(b)]


def same_filter(found: str, wanted: str) -> bool:
    """Return whether two nwfilters do the same."""
    return _filter(safexml.parse(found)) == _filter(safexml.parse(wanted))


def _attribute(path: str, name: str, default: str = "") -> Callable[[Element], object]:
    def look(root: Element) -> object:
        element = root.find(path)
        return default if element is None else element.get(name, default)

    return look


def _addresses(root: Element) -> object:
    return {
        (each.get("family", "ipv4"), each.get("address"), each.get("netmask") or each.get("prefix"))
        for each in root.findall("ip")
    }


_OF_A_NETWORK: dict[str, Callable[[Element], object]] = {
    "the bridge's name": _attribute("bridge", "name"),
    "its table of MACs (macTableManager)": _attribute("bridge", "macTableManager", "kernel"),
    "its MAC": _attribute("mac", "address"),
    "its addresses": _addresses,
    "guests hear each other (port isolated)": _attribute("port", "isolated", "no"),
    "it forwards": lambda root: root.find("forward") is not None,
    "it gives out addresses (dhcp)": lambda root: root.find("ip/dhcp") is not None,
}


def _filter(root: Element) -> object:
    rules = [
        (
            *(rule.get(name, "") for name in ("action", "direction")),
            int(rule.get("priority", "500")),
            sorted((each.tag, tuple(sorted(each.items()))) for each in rule),
        )
        for rule in root.findall("rule")
    ]
    others = sorted(each.get("filter", "") for each in root.findall("filterref"))
    return root.get("name"), root.get("chain", "root"), rules, others
