"""Which enabler to ask when none is configured: where one answers, in this order.

1. vsock (``vsock://2:8777``), if this VM has a vsock device. It needs no network, and only
   the host is on its other end.
2. The link-local address that is the same on every host (``http://169.254.77.1:8777``).

Without the device nothing is tried and nothing is lost. With it, a host on which nobody listens
says so at once; one that says nothing costs :data:`VSOCK_LIMIT`. The order is gone through for each
new connection, so a scan's two reads may come by different ways; that is no harm, for what is
compared is what they say. The report names the way of each.
"""

from __future__ import annotations

import fcntl
import socket
import struct

from guest_client.endpoint import LINK_LOCAL, VSOCK, Endpoint, Kind, parse_endpoint

VSOCK_LIMIT = 1.0
"""Seconds that the host has to take a connection by vsock."""

_DEVICE = "/dev/vsock"
_LOWEST_GUEST = 3
"""Lower CIDs are the hypervisor's, the loopback's and the host's (vsock(7))."""


def candidates(endpoint: Endpoint) -> tuple[Endpoint, ...]:
    """Give the addresses to be tried for an endpoint, in order: itself, unless it is ``auto``."""
    if endpoint.kind is not Kind.AUTO:
        return (endpoint,)
    link_local = parse_endpoint(LINK_LOCAL)
    return (link_local,) if own_cid() is None else (parse_endpoint(VSOCK), link_local)


def own_cid() -> int | None:
    """Give this VM's vsock address; None if it has none: no device, or it is no VM."""
    if not hasattr(socket, "AF_VSOCK"):  # a Python, or a system, without
        return None
    try:
        with open(_DEVICE, "rb") as device:  # noqa: PTH123 - a device
            answer = fcntl.ioctl(device, socket.IOCTL_VM_SOCKETS_GET_LOCAL_CID, b"\0" * 4)
    except OSError:
        return None
    (cid,) = struct.unpack("=I", answer)
    return cid if _LOWEST_GUEST <= cid < socket.VMADDR_CID_ANY else None
