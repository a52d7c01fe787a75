"""Asks the running service over its admin socket, for the commands that show what it knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx

from enabler.errors import ConfigurationError, ServiceUnavailable
from enabler.listen import Address, UnixAddress

_TIMEOUT = 5.0


def vms(addresses: Sequence[Address]) -> dict[str, Any]:
    """Return ``GET /v1/vms``. Raises `ServiceUnavailable`, `ConfigurationError`."""
    return _get(addresses, "/v1/vms")


def _get(addresses: Sequence[Address], path: str) -> dict[str, Any]:
    sockets = [address.path for address in addresses if isinstance(address, UnixAddress)]
    if not sockets:
        raise ConfigurationError("listen names no unix:/PATH, and only the admin socket tells this")
    socket = sockets[0]
    try:
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket)), timeout=_TIMEOUT, trust_env=False
        ) as client:
            response = client.get(f"http://enabler{path}")
    except httpx.HTTPError as error:
        raise ServiceUnavailable(
            f"no enabler answers on {socket}: {error or type(error).__name__}; "
            "is it running, and may you use its socket? Try 'systemctl status enabler', or sudo"
        ) from error
    content: dict[str, Any] = response.json()
    if response.status_code != httpx.codes.OK:
        raise ServiceUnavailable(f"the enabler says: {content['title']}: {content['detail']}")
    return content
