"""Asks the running service over its admin socket, for the commands that show what it knows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import httpx

from enabler.errors import ConfigurationError, ServiceUnavailable
from enabler.listen import Address, UnixAddress

_TIMEOUT = 5.0
_SILENCE = 60.0
"""Seconds; a stream of events shows more often than that that it lives."""


def admin_socket(addresses: Sequence[Address]) -> Path:
    """Return the admin socket that the settings name. Raises `ConfigurationError`."""
    for address in addresses:
        if isinstance(address, UnixAddress):
            return address.path
    raise ConfigurationError("listen names no unix:/PATH, and only the admin socket tells this")


def vms(addresses: Sequence[Address]) -> dict[str, Any]:
    """Return ``GET /v1/vms``. Raises `ServiceUnavailable`, `ConfigurationError`."""
    return _get(addresses, "/v1/vms")


def events(addresses: Sequence[Address], since: str | None = None) -> Iterator[dict[str, Any]]:
    """Give each event of ``GET /v1/events`` as it comes, with its ``id`` beside the document.

    ``since`` is the ID of the last event that is known already. Raises `ServiceUnavailable`, also
    when the service ends; `ConfigurationError`.
    """
    headers = {} if since is None else {"Last-Event-ID": since}
    with (
        _client(addresses) as (client, url),
        client.stream("GET", f"{url}/v1/events", headers=headers, timeout=_SILENCE) as answer,
    ):
        if answer.status_code != httpx.codes.OK:
            answer.read()
            _refused(answer.json())
        event_id = None
        # Each of our events has its data on one line.
        for line in answer.iter_lines():
            field, _, value = line.partition(": ")
            if field == "id":
                event_id = value
            elif field == "data":
                yield {"id": event_id, **json.loads(value)}
                event_id = None
    raise ServiceUnavailable("the enabler has ended, and with it its events; start it again")


def _get(addresses: Sequence[Address], path: str) -> dict[str, Any]:
    with _client(addresses) as (client, url):
        response = client.get(f"{url}{path}")
    content: dict[str, Any] = response.json()
    if response.status_code != httpx.codes.OK:
        _refused(content)
    return content


def _refused(problem: dict[str, Any]) -> NoReturn:
    raise ServiceUnavailable(f"the enabler says: {problem['title']}: {problem['detail']}")


@contextmanager
def _client(addresses: Sequence[Address]) -> Iterator[tuple[httpx.Client, str]]:
    socket = admin_socket(addresses)
    try:
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket)), timeout=_TIMEOUT, trust_env=False
        ) as client:
            yield client, "http://enabler"
    except httpx.HTTPError as error:
        raise ServiceUnavailable(
            f"no enabler answers on {socket}: {error or type(error).__name__}; "
            "is it running, and may you use its socket? Try 'systemctl status enabler', or sudo"
        ) from error
