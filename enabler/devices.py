"""The devices by which a guest reaches its host's enabler, in a domain's XML: are they there, what
is to be attached. Pure. The format is libvirt's (https://libvirt.org/formatdomain.html).
"""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from enabler import safexml

NETWORK = "enabler0"
"""The host-only network, and its bridge."""

FILTER = "vm-enabler-guest"
"""The nwfilter that a guest's interface has."""


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface on the host-only network."""

    mac: str
    bridge: str | None = None
    """A bridge that libvirt has no network for; None: it is libvirt's network `NETWORK`."""
    filter: str | None = FILTER

    kind = "interface"

    def xml(self) -> str:
        """Return the device as libvirt attaches it."""
        source = "network" if self.bridge is None else "bridge"
        element = Element("interface", type=source)
        SubElement(element, "mac", address=self.mac)
        SubElement(element, "source", {source: self.bridge or NETWORK})
        SubElement(element, "model", type="virtio")
        if self.filter is not None:
            SubElement(element, "filterref", filter=self.filter)
        return _text(element)


@dataclass(frozen=True, slots=True)
class Vsock:
    """A vsock device; libvirt chooses its CID anew on each host."""

    kind = "vsock"

    def xml(self) -> str:
        """Return the device as libvirt attaches it."""
        element = Element("vsock", model="virtio")
        SubElement(element, "cid", auto="yes")
        return _text(element)


@dataclass(frozen=True, slots=True)
class Found:
    """A device that a domain has."""

    xml: str
    mac: str | None = None
    filter: str | None = None


def interfaces(domain: str, bridge: str | None = None) -> list[Found]:
    """Return a domain's interfaces on the host-only network, or on this bridge.

    Raises `enabler.safexml.UnsafeXmlError`.
    """
    found = []
    for element in safexml.parse(domain).findall("devices/interface"):
        source = element.find("source")
        on = {} if source is None else source.attrib
        if on.get("bridge") == (bridge or NETWORK) or (
            bridge in (None, NETWORK) and on.get("network") == NETWORK
        ):
            mac, filtered = element.find("mac"), element.find("filterref")
            found.append(
                Found(
                    _text(element),
                    None if mac is None else mac.get("address", "").lower(),
                    None if filtered is None else filtered.get("filter"),
                )
            )
    return found


def vsocks(domain: str) -> list[Found]:
    """Return a domain's vsock devices: libvirt allows one. Raises as `interfaces` does."""
    return [Found(_text(each)) for each in safexml.parse(domain).findall("devices/vsock")]


def macs(domain: str) -> frozenset[str]:
    """Return the MACs of all interfaces of a domain. Raises as `interfaces` does."""
    found = safexml.parse(domain).findall("devices/interface/mac")
    return frozenset(each.get("address", "").lower() for each in found)


def with_filter(found: Found, name: str) -> str:
    """Return an interface that was found, with this nwfilter in place of the one it may have."""
    element = safexml.parse(found.xml)
    for old in element.findall("filterref"):
        element.remove(old)
    SubElement(element, "filterref", filter=name)
    return _text(element)


def _text(element: Element) -> str:
    indent(element)
    element.tail = None
    return tostring(element, encoding="unicode")
