"""What the enabler is held against: the least that could be done on the same server.

    python -m tests.bench.baselines bare|model|empty ADDRESS PORT FILE

``bare`` is an ASGI app that sends the bytes and the headers that FILE (JSON) holds; ``model`` a
FastAPI route with a pydantic response model of the same document; ``empty`` a FastAPI app with one
route, for its memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import uvicorn


def bare(headers: list[tuple[bytes, bytes]], body: bytes) -> Any:
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    end = {"type": "http.response.body", "body": body}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start)
        await send(end)

    return app


def model(body: bytes) -> Any:
    from fastapi import FastAPI

    from enabler.documents import IdentityDocument

    app = FastAPI()
    document = IdentityDocument.model_validate_json(body)

    @app.get("/v1/identity", response_model=IdentityDocument)
    async def identity() -> Any:
        return document

    return app


def empty() -> Any:
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        return {"status": "ok"}

    return app


def main() -> None:
    kind, host, port, file = sys.argv[1:]
    content = json.loads(Path(file).read_text())
    body = content["body"].encode()
    headers = [(name.encode(), value.encode()) for name, value in content["headers"]]
    app = {"bare": lambda: bare(headers, body), "model": lambda: model(body), "empty": empty}
    uvicorn.run(
        app[kind](),
        host=host,
        port=int(port),
        http="httptools",
        loop="asyncio",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="error",
        server_header=False,
        proxy_headers=False,
    )


if __name__ == "__main__":
    main()
