"""The figures as a response: `enabler.metrics`, imported when they are first asked for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi import Response

if TYPE_CHECKING:
    from enabler.api.state import State
    from enabler.metrics import Exposition


class Figures:
    """Renders the figures; has what that needs imported when it is first wanted."""

    def __init__(self) -> None:
        self.state: State | None = None
        self._exposition: Exposition | None = None

    async def response(self, accept: str) -> Response:
        """Return the figures as a response."""
        if self._exposition is None:
            # In a thread: requests need not wait for it.
            await asyncio.to_thread(_import)
            from enabler.metrics import Exposition

            assert self.state is not None
            self._exposition = Exposition(self.state)
        # In the loop's thread, whose the figures are.
        content, media_type = self._exposition.render(accept)
        return Response(content, 200, {"Content-Type": media_type, "Cache-Control": "no-store"})


def _import() -> None:
    import enabler.metrics  # noqa: F401  for the time that it takes
