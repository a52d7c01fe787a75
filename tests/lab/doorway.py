"""A door on every host's bridge to one server of the test's own.

The guests know one network, the host-only one. A server that they are to reach wherever they are
(a licence server, say) listens on loopback, in the test's process; this listens for it at the same
address on each host, and passes on what comes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import network
from tests.lab.host import Host

PORT = 9900

_CLONE_NEWNET = 0x40000000


class Doorway:
    """Passes connections to ``169.254.77.1:port`` of each host on to ``target`` (host, port)."""

    def __init__(self, hosts: Iterable[Host], target: tuple[str, int], port: int = PORT) -> None:
        self.url = f"http://{network.BRIDGE_ADDRESS}:{port}"
        self._target = target
        self._doors = [_listen_in(host, port) for host in hosts]
        for door in self._doors:
            threading.Thread(target=self._keep, args=(door,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for door in self._doors:
            with contextlib.suppress(OSError):
                door.shutdown(socket.SHUT_RDWR)
            door.close()

    def _keep(self, door: socket.socket) -> None:
        while True:
            try:
                guest, _ = door.accept()
            except OSError:
                return  # closed
            try:
                server = socket.create_connection(self._target)
            except OSError:
                guest.close()  # nobody there: as if the server's machine had hung up
                continue
            for source, sink in ((guest, server), (server, guest)):
                threading.Thread(target=_pass_on, args=(source, sink), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _listen_in(host: Host, port: int) -> socket.socket:
    """Listen in a host's network namespace: a socket stays in the one it was made in."""
    # A thread of its own enters the namespace (setns(2) moves the calling thread) and then ends.
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(_enter_and_listen, host.name, port).result()


def _enter_and_listen(host: str, port: int) -> socket.socket:
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/run/netns/{network.host_namespace(host)}").open("rb") as namespace:
        if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), namespace.name)
    return socket.create_server((network.BRIDGE_ADDRESS, port))
