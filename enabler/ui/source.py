"""Asks the running service over its admin socket, for the page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from enabler.errors import ServiceUnavailable

_TIMEOUT = 5.0
_SILENCE = 60.0
"""Seconds; a stream of events shows more often than that that it lives."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the service said, all at one time."""

    host: dict[str, Any]
    vms: list[dict[str, Any]] | None
    """None if it can't say: ``host`` has why."""
    recent: dict[str, Any]


class Source:
    """The service's admin socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket)),
            base_url="http://enabler",
            timeout=_TIMEOUT,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def ask(self, events: int) -> Told:
        """Return everything, with the last ``events`` events. Raises `ServiceUnavailable`."""
        # The events first: what happens while the rest is read is told by the stream once more.
        recent = await self._get(f"/v1/events/recent?limit={events}")
        host, vms = await asyncio.gather(self._get("/v1/host"), self._get("/v1/vms", maybe=True))
        assert recent is not None
        assert host is not None
        return Told(host, None if vms is None else vms["vms"], recent)

    async def events(self, since: str | None) -> AsyncIterator[str]:
        """Give the lines of ``GET /v1/events``, after an event. Raises `ServiceUnavailable`."""
        headers = {} if since is None else {"Last-Event-ID": since}
        try:
            async with self._client.stream(
                "GET", "/v1/events", headers=headers, timeout=_SILENCE
            ) as answer:
                if answer.status_code != httpx.codes.OK:
                    await answer.aread()
                    raise ServiceUnavailable(f"the enabler says: {answer.json()['detail']}")
                async for line in answer.aiter_lines():
                    yield line
        except httpx.HTTPError as error:
            raise self._away(error) from error
        raise ServiceUnavailable("the enabler has ended; see 'systemctl status enabler'")

    async def _get(self, path: str, *, maybe: bool = False) -> dict[str, Any] | None:
        try:
            answer = await self._client.get(path)
        except httpx.HTTPError as error:
            raise self._away(error) from error
        content: dict[str, Any] = answer.json()
        if answer.status_code == httpx.codes.OK:
            return content
        if maybe and answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return None
        raise ServiceUnavailable(f"the enabler says: {content['title']}: {content['detail']}")

    def _away(self, error: httpx.HTTPError) -> ServiceUnavailable:
        return ServiceUnavailable(
            f"no enabler answers on {self._socket}: {error or type(error).__name__}; "
            "is it running, and may this page use its socket? See 'systemctl status enabler'"
        )
