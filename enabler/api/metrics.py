"""``GET /metrics``: on the admin socket, and on a listener of its own if there is to be one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from enabler.api import problems, state

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from enabler.api.figures import Figures

PATH = "/metrics"

router = APIRouter(tags=["admin"], generate_unique_id_function=problems.operation_id)


@router.get(PATH, summary="Figures for Prometheus", response_class=PlainTextResponse)
async def get_metrics(request: Request) -> Response:
    """Give the enabler's figures in Prometheus' text format, or in OpenMetrics' to who asks so."""
    return await state.of(request).figures.response(request.headers.get("accept", ""))


class MetricsApp:
    """The ASGI app of the listener that has nothing but figures."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        answer: Response
        if scope["path"] != PATH:
            answer = problems.problem(
                404, "not-found", "Not found", f"there is nothing but {PATH} on this listener"
            )
        elif scope["method"] not in ("GET", "HEAD"):
            answer = problems.problem(
                405,
                "method-not-allowed",
                "Method Not Allowed",
                f"{scope['method']} is not possible here",
                {"Allow": "GET, HEAD"},
            )
        else:
            accept = [value for name, value in scope["headers"] if name == b"accept"]
            answer = await self._figures.response(b", ".join(accept).decode("latin-1"))
        await answer(scope, receive, send)
