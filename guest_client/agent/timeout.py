"""``asyncio.timeout``, which Python has from 3.11 on."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

if sys.version_info >= (3, 11):
    from asyncio import timeout  # novm
else:

    @asynccontextmanager
    async def timeout(seconds: float) -> AsyncIterator[None]:
        """Cut what is inside off after so many seconds: it raises ``TimeoutError`` then."""
        task, late = asyncio.current_task(), asyncio.Event()
        assert task is not None

        def cut_off() -> None:
            late.set()
            task.cancel()

        alarm = asyncio.get_running_loop().call_later(seconds, cut_off)
        try:
            yield
        except asyncio.CancelledError:
            if not late.is_set():
                raise
            raise TimeoutError from None
        finally:
            alarm.cancel()


__all__ = ["timeout"]
