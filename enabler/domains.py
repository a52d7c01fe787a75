"""A domain's live XML, read into `VmFacts`; and the record of a stay that travels in its metadata.
Pure.

The format is libvirt's domain XML (https://libvirt.org/formatdomain.html). Its ``<metadata>`` is
text that a VM's owner may control: it is read with the same care as anything from outside, and a
record in it is only believed when its residency ID is the one this host derives itself
(`enabler.residency`).
"""

from __future__ import annotations

import re
import uuid
from datetime import datetime
from xml.etree.ElementTree import Element, tostring

from enabler import safexml
from enabler.events import ArrivedBy, Stay, VmFacts

NAMESPACE = "urn:vm-enabler:stay:1"
"""The XML namespace of our element in a domain's ``<metadata>``, and its URI in
``virDomainSetMetadata``.
"""

PREFIX = "enabler"

_UNITS = {
    "b": 1,
    "bytes": 1,
    "kb": 1000,
    "k": 1024,
    "kib": 1024,
    "mb": 10**6,
    "m": 2**20,
    "mib": 2**20,
}
_UNITS |= {"gb": 10**9, "g": 2**30, "gib": 2**30, "tb": 10**12, "t": 2**40, "tib": 2**40}
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


class MalformedDomain(ValueError):
    """Libvirt's XML is not what its format says."""


def parse(xml: str) -> VmFacts:
    """Return what a domain's live XML says of the VM.

    ``vcpus`` are those online now, ``memory_bytes`` what is allotted with hot-plugged memory and
    without regard to the balloon, which moves by itself. Raises `MalformedDomain`.
    """
    try:
        root = safexml.parse(xml)
        vcpu = root.find("vcpu")
        memory = root.find("memory")
        if vcpu is None or memory is None:
            raise MalformedDomain("the domain XML has no <vcpu> or no <memory>")
        return VmFacts(
            uuid=str(uuid.UUID(root.findtext("uuid", ""))),
            name=root.findtext("name", ""),
            generation_id=_generation(root),
            vcpus=int(vcpu.get("current") or vcpu.text or ""),
            memory_bytes=int(memory.text or "") * _UNITS[memory.get("unit", "KiB").lower()],
            macs=_macs(root),
            recorded=_recorded(root),
        )
    except (ValueError, KeyError) as error:
        raise MalformedDomain(f"the domain XML can't be read: {error}") from error


def record(stay: Stay) -> str:
    """Return the metadata element that keeps ``stay`` with its domain."""
    element = Element("stay")
    element.set("id", stay.id)
    element.set("since", stay.since.isoformat())
    element.set("arrived-by", stay.arrived_by)
    return tostring(element, encoding="unicode")


def _generation(root: Element) -> str | None:
    text = (root.findtext("genid") or "").strip()
    return str(uuid.UUID(text)) if text else None


def _macs(root: Element) -> frozenset[str]:
    found = (nic.get("address", "").lower() for nic in root.findall("devices/interface/mac"))
    return frozenset(mac for mac in found if _MAC.fullmatch(mac))


def _recorded(root: Element) -> Stay | None:
    element = root.find(f"metadata/{{{NAMESPACE}}}stay")
    if element is None:
        return None
    try:
        since = datetime.fromisoformat(element.get("since", ""))
        arrived_by = ArrivedBy(element.get("arrived-by", ""))
    except ValueError:
        return None  # not ours, or mangled: as good as none
    stay_id = element.get("id", "")
    if not stay_id or since.tzinfo is None:
        return None
    return Stay(stay_id, since, arrived_by)
