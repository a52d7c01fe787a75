"""A domain's live XML, read into `VmFacts`; and what of ours travels in its metadata: the record of
a stay, the history, the hash of a token. Pure.

The format is libvirt's domain XML (https://libvirt.org/formatdomain.html). Its ``<metadata>`` is
text that a VM's owner may control: it is read with the same care as anything from outside, and a
record in it is only believed when its residency ID is the one this host derives itself
(`enabler.residency`). A token's hash is believed: who may write it may as well give the token away.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from xml.etree.ElementTree import Element, tostring

from enabler import history, safexml
from enabler.events import ArrivedBy, Carried, Stay, VmFacts

NAMESPACE = "urn:vm-enabler:stay:1"
"""The XML namespace of our element in a domain's ``<metadata>``, and its URI in
``virDomainSetMetadata``.
"""

TOKEN_NAMESPACE = "urn:vm-enabler:token:1"  # noqa: S105  no secret
"""The same of the element that keeps the hash of a VM's token."""

PREFIX = "enabler"

_LOWEST_CID = 3
"""Those below are the hypervisor's, the loopback's and the host's own (vsock(7))."""

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
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Keep(Enum):
    """Where a record is kept."""

    LIVE = "live"
    """In the running domain: it travels, and ends with it."""
    BOTH = "both"
    """In the persistent domain too, if there is one: it is there after a power-off."""
    CONFIG = "config"
    """In the persistent domain alone."""


@dataclass(frozen=True, slots=True)
class Record:
    """An element of a namespace of ours for a domain's metadata, and where it is kept."""

    namespace: str
    element: str
    keep: Keep


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
        vm_uuid = str(uuid.UUID(root.findtext("uuid", "")))
        return VmFacts(
            uuid=vm_uuid,
            name=root.findtext("name", ""),
            generation_id=_generation(root),
            vcpus=int(vcpu.get("current") or vcpu.text or ""),
            memory_bytes=int(memory.text or "") * _UNITS[memory.get("unit", "KiB").lower()],
            macs=_macs(root),
            recorded=_recorded(root),
            cid=cid_of(root),
            token_sha256=token_of(root),
            history=history.read(root, vm_uuid),
        )
    except (ValueError, KeyError) as error:
        raise MalformedDomain(f"the domain XML can't be read: {error}") from error


def record(stay: Stay) -> Record:
    """Return the record that keeps ``stay`` with its running domain."""
    element = Element("stay")
    element.set("id", stay.id)
    element.set("since", stay.since.isoformat())
    element.set("arrived-by", stay.arrived_by)
    return Record(NAMESPACE, tostring(element, encoding="unicode"), Keep.LIVE)


def history_record(chain: Carried, keep: Keep) -> Record:
    """Return the record that keeps a VM's history with its domain."""
    return Record(history.NAMESPACE, history.element(chain), keep)


def token_record(sha256: str) -> str:
    """Return the metadata element that keeps the hash of a token with its domain."""
    element = Element("token")
    element.set("sha256", sha256)
    return tostring(element, encoding="unicode")


def token_of(root: Element) -> str | None:
    """Return the hash of a domain's token; None if it is not enrolled, or the record is mangled."""
    found = root.findall(f"metadata/{{{TOKEN_NAMESPACE}}}token")
    sha256 = found[0].get("sha256", "") if len(found) == 1 else ""
    return sha256 if _SHA256.fullmatch(sha256) else None


def cid_of(root: Element) -> int | None:
    """Return a domain's vsock address; None if it has none, or none yet."""
    element = root.find("devices/vsock/cid")
    text = "" if element is None else element.get("address", "")
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None  # libvirt chooses one when the domain starts
    cid = int(text)
    return cid if cid >= _LOWEST_CID else None


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
