"""uvicorn, as every listener here runs it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

_KEEP_ALIVE = 75

_DATE_INTERVAL = 1.0


class Server(uvicorn.Server):
    """A uvicorn server whose signals are somebody else's business (there may be several of them in
    one process), and that wakes once a second, for the Date header, where uvicorn's wakes ten
    times.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ended = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield

    async def main_loop(self) -> None:
        """Serve until `end`."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DATE_INTERVAL):
                    await self._ended.wait()

    def end(self) -> None:
        """Take no more connections, finish what is under way, and end."""
        self.should_exit = True
        self._ended.set()


def configured(app: Callable[..., Any], **more: Any) -> uvicorn.Config:
    """Return a configuration of uvicorn that says nothing of itself and trusts no proxy."""
    settings: dict[str, Any] = {
        "interface": "asgi3",
        "http": "httptools",
        "ws": "none",
        "access_log": False,
        "log_config": None,
        "server_header": False,
        "proxy_headers": False,
        "timeout_keep_alive": _KEEP_ALIVE,
        "timeout_graceful_shutdown": 2,
        "lifespan": "off",
    }
    return uvicorn.Config(app, **settings | more)
