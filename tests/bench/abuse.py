"""One guest's abuse, another guest's reads: how much longer they take meanwhile.

The two programs are plain Python for any guest to run, without this package::

    python3 abuse.py abuse ADDRESS PORT MALFORMED SLOW    until it is ended
    python3 abuse.py read ADDRESS PORT READS              prints [[status, seconds], …] as JSON

``abuse`` sends malformed requests over and over and keeps slow connections open all the while; it
prints a line when it has sent the first MALFORMED and holds, or was refused, SLOW connections.
"""

from __future__ import annotations

import json
import random
import socket
import sys
import threading
import time

_MALFORMED = (
    b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03",
    b"GET\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost\r\n\r\n",
    b"GET /v1/identity HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000,
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"\x00" * 4096,
)


def abuse(address: str, port: int, malformed: int, slow: int) -> None:
    """Be a nuisance until ended."""
    held: list[socket.socket] = []

    def hold() -> None:
        while True:
            while len(held) < slow:
                try:
                    connection = socket.create_connection((address, port), 5)
                    connection.sendall(b"GET /v1/identity HTTP/1.1\r\n")
                    connection.settimeout(0.001)
                    held.append(connection)
                except OSError:
                    held.append(socket.socket())
            time.sleep(0.5)
            # Those that were ended are opened anew; the others get another byte.
            for connection in list(held):
                try:
                    connection.send(b"X")
                except OSError:
                    connection.close()
                    held.remove(connection)

    threading.Thread(target=hold, daemon=True).start()
    sent = 0
    while True:
        try:
            with socket.create_connection((address, port), 5) as connection:
                connection.settimeout(1)
                connection.sendall(random.choice(_MALFORMED))
                connection.recv(1000)
        except OSError:
            pass
        sent += 1
        if sent == malformed:
            print(f"sent {sent} malformed requests; slow connections: {len(held)}", flush=True)


def read(address: str, port: int, reads: int) -> None:
    """Read the identity so many times, each on a connection of its own."""
    host = f"{address}:{port}".encode()
    found: list[tuple[int, float]] = []
    for _ in range(reads):
        began = time.monotonic()
        status = 0
        try:
            with socket.create_connection((address, port), 30) as connection:
                connection.sendall(b"GET /v1/identity HTTP/1.1\r\nHost: " + host + b"\r\n")
                connection.sendall(b"Connection: close\r\n\r\n")
                received = b""
                while piece := connection.recv(65536):
                    received += piece
            status = int(received.split(b" ", 2)[1]) if received else 0
        except OSError:
            pass
        found.append((status, time.monotonic() - began))
        time.sleep(0.03)  # within what a caller may ask for
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    {"abuse": abuse, "read": read}[sys.argv[1]](sys.argv[2], *map(int, sys.argv[3:]))
