"""The address plan: a VM's MAC on the host-only network, and the address it gives itself there.
Pure.

Both follow from the VM's UUID, on whatever host they are made, so no two guests of a fleet collide
after a migration and nobody need keep a list. `deploy/network.md` says how a guest uses them.
"""

from __future__ import annotations

import hashlib
from ipaddress import IPv6Address
from uuid import UUID

_SALT = b"urn:vm-enabler:mac:1\0"
_RESERVED = 0xFE
"""The first octet of the host's ends of the guests' interfaces: libvirt takes no such MAC."""


def mac_of(vm_uuid: str) -> str:
    """Return the MAC address of a VM's interface on the host-only network.

    It is one of the 45.98 bits' worth of locally administered unicast addresses (IEEE 802, clause
    8.4) that libvirt leaves to guests: of 300,000 VMs two share one with a probability of 0.06 %.
    Raises `ValueError` for what is no UUID.
    """
    digest = hashlib.sha256(_SALT + UUID(vm_uuid).bytes).digest()
    while True:
        octets = bytes([digest[0] & 0xFC | 0x02, *digest[1:6]])
        if octets[0] != _RESERVED:
            return octets.hex(":")
        digest = hashlib.sha256(digest).digest()


def link_local(mac: str) -> str:
    """Return the IPv6 link-local address that an interface makes of its MAC (RFC 4291, appendix A).

    Raises `ValueError` for what is no MAC.
    """
    octets = bytes.fromhex(mac.replace(":", ""))
    if len(octets) != 6:
        raise ValueError(f"{mac!r} is no MAC address")
    identifier = bytes([octets[0] ^ 0x02, *octets[1:3], 0xFF, 0xFE, *octets[3:]])
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + identifier))
