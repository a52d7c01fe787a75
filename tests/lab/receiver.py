"""A stand-in for the management infrastructure: a licence server that takes CloudEvents.

Each POST is one line in its record, synced before it is answered, so that what it has said it has
is what it has. It runs inside a test (:class:`Receiver`), or as a process of its own, anywhere,
with the standard library alone::

    python -m tests.lab.receiver --listen 127.0.0.1:8099 --record FILE [--secret-file FILE]
                                 [--certificate FILE --key FILE]

It prints ``listening on HOST PORT`` when it does. How it behaves is set while it runs:

    PUT /behaviour {"kind": "taking"}                                   answers 204
                   {"kind": "slow", "seconds": 3}                       the same, later
                   {"kind": "failing", "status": 503, "retry_after": 5} refuses with that status
                   {"kind": "mute"}      takes the event, and hangs up without an answer
                   {"kind": "dead"}      hangs up at once
    GET /arrivals  every POST that came, in order, with what was answered
    GET /events    the events in effect: the first taking of each ID, in order

A dead process is dead as well: kill it, and start it again with the same record.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import os
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_CLOCK_TOLERANCE = 300
"""Seconds that a signature's time may be off."""


@dataclass(frozen=True)
class Behaviour:
    """How it treats events."""

    kind: str = "taking"
    seconds: float = 0.0
    status: int = 503
    retry_after: int | None = None


TAKING = Behaviour()
DEAD = Behaviour("dead")
MUTE = Behaviour("mute")


@dataclass(frozen=True)
class Arrival:
    """One POST: what it was, and what was answered (0: nothing at all)."""

    number: int
    at: str
    content_type: str
    signature: str
    """``none``, ``good`` or ``bad``."""
    answered: int
    taken: bool
    repeat: bool
    event: dict[str, Any]


class Receiver:
    """Listens from when it is made; ``on_event`` is called with each event before it is answered.

    ``address`` is a host and a port, 0 for any.
    """

    def __init__(
        self,
        record: Path,
        address: tuple[str, int] = ("127.0.0.1", 0),
        *,
        secret: str | None = None,
        certificate: tuple[Path, Path] | None = None,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.behaviour = TAKING
        self._record = record
        self._secret = secret
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(*certificate)
        self._on_event = on_event
        self._changed = threading.Condition()
        self._arrivals = _read(record)
        self.address = address
        self._server: ThreadingHTTPServer | None = None
        self.open()

    @property
    def url(self) -> str:
        """Where events go."""
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{self.address[0]}:{self.address[1]}/events"

    def open(self) -> None:
        """Listen (again), at the same address."""
        receiver = self

        class Handler(_Handler):
            owner = receiver

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            address_family = socket.AF_INET6 if ":" in receiver.address[0] else socket.AF_INET

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that goes away, or that does not trust us, is no news."""

        self._server = Server(self.address, Handler)
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.address = (self.address[0], self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Listen no more: connections are refused from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def arrivals(self) -> list[Arrival]:
        """Every POST that came."""
        with self._changed:
            return list(self._arrivals)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events in effect, in order."""
        return [a.event for a in self.arrivals if a.taken and not a.repeat]

    def wait_for(
        self, enough: Callable[[list[Arrival]], bool], limit: float = 60.0
    ) -> list[Arrival]:
        """Wait until what has arrived is enough; raises ``TimeoutError``."""
        with self._changed:
            if not self._changed.wait_for(lambda: enough(self._arrivals), limit):
                raise TimeoutError(f"the receiver waited in vain; it has {self._arrivals}")
            return list(self._arrivals)

    def wait_for_events(self, number: int, limit: float = 60.0) -> list[dict[str, Any]]:
        """Wait until so many events are in effect; gives them."""
        self.wait_for(lambda all_: sum(a.taken and not a.repeat for a in all_) >= number, limit)
        return self.events

    def take(
        self, content_type: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, Behaviour]:
        """Take one POST; gives what to answer."""
        behaviour = self.behaviour
        event = json.loads(body)
        if self._on_event is not None:
            self._on_event(event)
        signature = self._judge(headers, body)
        taken = behaviour.kind in ("taking", "slow", "mute") and signature != "bad"
        answered = 204 if taken else behaviour.status
        if signature == "bad":
            answered = 401
        if behaviour.kind == "mute":
            answered = 0
        with self._changed:
            arrival = Arrival(
                number=len(self._arrivals) + 1,
                at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                content_type=content_type,
                signature=signature,
                answered=answered,
                taken=taken,
                repeat=any(
                    a.taken and a.event.get("id") == event.get("id") for a in self._arrivals
                ),
                event=event,
            )
            with self._record.open("a") as stream:
                stream.write(json.dumps(asdict(arrival)) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            self._arrivals.append(arrival)
            self._changed.notify_all()
        return answered, behaviour

    def _judge(self, headers: dict[str, str], body: bytes) -> str:
        """Check a signature as the Standard Webhooks convention says, from its text alone."""
        if self._secret is None:
            return "none"
        key = base64.b64decode(self._secret.removeprefix("whsec_"))
        stamp = headers.get("webhook-timestamp", "")
        if not stamp.isdigit() or abs(int(stamp) - time.time()) > _CLOCK_TOLERANCE:
            return "bad"
        signed = f"{headers.get('webhook-id', '')}.{stamp}.".encode() + body
        wanted = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        given = headers.get("webhook-signature", "").split()
        good = any(hmac.compare_digest(f"v1,{wanted}", one) for one in given)
        return "good" if good else "bad"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Receiver

    def do_POST(self) -> None:
        if self.owner.behaviour.kind == "dead":
            self._hang_up()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answered, behaviour = self.owner.take(headers.get("content-type", ""), headers, body)
        if behaviour.kind == "slow":
            time.sleep(behaviour.seconds)
        if not answered:
            self._hang_up()
            return
        self.send_response(answered)
        if behaviour.retry_after is not None and answered >= 400:
            self.send_header("Retry-After", str(behaviour.retry_after))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.owner.behaviour = Behaviour(**json.loads(body))
        self._answer({"behaviour": asdict(self.owner.behaviour)})

    def do_GET(self) -> None:
        if self.path == "/arrivals":
            self._answer([asdict(arrival) for arrival in self.owner.arrivals])
        elif self.path == "/events":
            self._answer(self.owner.events)
        else:
            self.send_error(404)

    def _answer(self, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _hang_up(self) -> None:
        """End the connection with a reset, as the kernel of a dead process does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, format: str, *values: object) -> None:
        """Say nothing: the record has it all."""


def _read(record: Path) -> list[Arrival]:
    if not record.exists():
        return []
    return [Arrival(**json.loads(line)) for line in _whole_lines(record.read_text())]


def _whole_lines(text: str) -> Iterable[str]:
    """Give the lines that were written to their end: a killed process may have left half of one."""
    return (line for line in text.splitlines(keepends=True) if line.endswith("\n"))


def main() -> int:
    """Be a receiver until killed."""
    parser = argparse.ArgumentParser(description="A stand-in for a licence server.")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--record", required=True, type=Path, metavar="FILE")
    parser.add_argument("--secret-file", type=Path, metavar="FILE")
    parser.add_argument("--certificate", type=Path, metavar="FILE")
    parser.add_argument("--key", type=Path, metavar="FILE")
    options = parser.parse_args()
    host, _, port = options.listen.rpartition(":")
    receiver = Receiver(
        options.record,
        (host.strip("[]"), int(port)),
        secret=options.secret_file.read_text().strip() if options.secret_file else None,
        certificate=(options.certificate, options.key) if options.certificate else None,
    )
    print(f"listening on {receiver.address[0]} {receiver.address[1]}", flush=True)
    threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
