"""A stand-in for an enabler: a real HTTP server on loopback, whose answers a test can choose."""

from __future__ import annotations

import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self

from .documents import document

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests as its server says; tests' answers write through it."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet, as a real server sends them
    server: _Server
    body = b""

    def do_GET(self) -> None:
        owner = self.server.owner
        with owner.lock:
            owner.requests.append((self.client_address, self.path, dict(self.headers.items())))
            answer = owner.script.pop(0) if owner.script else owner.otherwise
        try:
            answer(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def reply(
        self, body: bytes, status: int = 200, kind: str = "application/json", **headers: str
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: what was asked is in ``requests``."""


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, owner: EnablerServer, family: int, address: Any) -> None:
        self.owner = owner
        self.address_family = family
        super().__init__(address, Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.owner.lock:
            self.owner.connections.append(request)
        super().process_request(request, client_address or ("unix", 0))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is what some tests are about."""


class EnablerServer:
    """Serves an identity at ``url`` until its ``with`` block ends.

    What it answers, the first that applies: the next of ``script``; the file ``file``, if set; the
    document ``document``.
    """

    def __init__(self, family: int = socket.AF_INET, address: Any = None) -> None:
        self.lock = threading.Lock()
        self.document: dict[str, Any] = document()
        self.file: Path | None = None
        self.script: list[Answer] = []
        self.otherwise: Answer = self._tell
        self.attest: Callable[[dict[str, Any], dict[str, Any]], str] | None = None
        """Makes the attestation of an identity document for a request."""
        self.requests: list[tuple[Any, str, dict[str, str]]] = []
        self.connections: list[socket.socket] = []
        default = ("::1", 0) if family == socket.AF_INET6 else ("127.0.0.1", 0)
        self._server = _Server(self, family, address or default)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        scheme = "https" if isinstance(self._server.socket, ssl.SSLSocket) else "http"
        return f"{scheme}://127.0.0.1:{self.port}"

    def use_tls(self, certificate: Path, key: Path) -> None:
        """Speak TLS on every connection from now on."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self.drop_connections()
        self._server.server_close()

    def drop_connections(self) -> None:
        """Cut every connection, as a host does that the VM has left."""
        with self.lock:
            for connection in self.connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
            self.connections.clear()

    def _tell(self, handler: Handler) -> None:
        if handler.command == "POST":
            assert self.attest is not None
            assert handler.path == "/v1/identity/attestation"
            said = self.document if self.file is None else json.loads(self.file.read_bytes())
            token = self.attest(said, json.loads(handler.body))
            handler.reply(token.encode(), kind="application/jose")
        elif self.file is not None:
            handler.reply(self.file.read_bytes())
        else:
            handler.reply(json.dumps(self.document).encode())


def problem(status: int, kind: str, detail: str = "because", **headers: str) -> Answer:
    """A problem document (RFC 9457), as the enabler's refusals are."""
    body = json.dumps(
        {"type": f"/problems/{kind}", "title": kind, "status": status, "detail": detail}
    ).encode()
    return lambda handler: handler.reply(body, status, "application/problem+json", **headers)


def answering(
    body: bytes, status: int = 200, kind: str = "application/json", **headers: str
) -> Answer:
    return lambda handler: handler.reply(body, status, kind, **headers)


def raw(head: bytes, *, then: Callable[[Handler], None] | None = None) -> Answer:
    """Bytes of any kind, then perhaps more, then the end of the connection."""

    def answer(handler: Handler) -> None:
        handler.close_connection = True
        handler.wfile.write(head)
        handler.wfile.flush()
        if then is not None:
            then(handler)

    return answer
