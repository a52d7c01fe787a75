"""How bytes get to an enabler and back: one HTTP connection that keeps a deadline.

It is httpcore, the part of httpx that speaks HTTP, on a network of our own: every socket operation
gets the smaller of its own limit and what is left of the transport's ``deadline``, so an answer
that comes a byte at a time is cut off in the end. As it dials by itself, an IPv6 zone, a Unix
socket and a vsock are all the same to HTTP. The token, if there is one, goes with each request; TLS
is verified always.

httpx's client above it would add redirects, proxies, cookies and authentication, none of which an
identity may ever come by, and to load it takes as long as all the rest of a guarded scan together.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import httpcore

from guest_client.discovery import VSOCK_LIMIT, candidates
from guest_client.endpoint import Endpoint, Kind
from guest_client.errors import ConfigurationError, TokenUnusable, UntrustedAnswer, Unverified

Clock = Callable[[], float]

_TIMED_OUT = (TimeoutError, socket.timeout)
"""The same from Python 3.10 on."""

_KEEP_ALIVE = 60.0
"""Seconds that an unused connection is kept; the enabler's own limit is usually shorter."""


class Interrupter(Protocol):
    """Something that can make waiting for an answer pointless (`hints.py`)."""

    def fileno(self) -> int:
        """What to poll for input; -1 is nothing."""

    def take(self) -> bool:
        """Take what there is; whether it is a reason to break off."""


_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000),
)
"""Seconds, and milliseconds: a host that we came to knows nothing of the connection and resets it
at the first probe; one that is gone answers none."""


def dial(endpoint: Endpoint, timeout: float) -> socket.socket:
    """Connect to an endpoint within ``timeout`` seconds; raises ``OSError``.

    A host given by name is looked up first, and the resolver keeps its own time limits. Of the
    addresses that ``auto`` stands for, the first that takes a connection is it.
    """
    return connect(endpoint, timeout)[0]


def connect(endpoint: Endpoint, timeout: float) -> tuple[socket.socket, Endpoint]:
    """Connect as :func:`dial` does, and say where to."""
    *others, last = candidates(endpoint)
    for candidate in others:
        try:
            return _dial(candidate, min(timeout, VSOCK_LIMIT)), candidate
        except OSError:
            continue
    return _dial(last, timeout), last


def _dial(endpoint: Endpoint, timeout: float) -> socket.socket:
    if endpoint.kind is Kind.TCP:
        # In bytes: for a text Python loads its codec of international names.
        host: Any = endpoint.host.encode()
        sock = socket.create_connection((host, endpoint.port), timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    if endpoint.kind is Kind.UNIX:
        return _connected(socket.AF_UNIX, endpoint.path, timeout)
    assert endpoint.kind is Kind.VSOCK, "auto stands for others"
    if not hasattr(socket, "AF_VSOCK"):
        raise OSError("this system has no vsock")
    return _connected(socket.AF_VSOCK, (int(endpoint.host), endpoint.port), timeout)


def _connected(family: int, address: Any, timeout: float) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


class Hopeless(Exception):
    """A request that would fail again: ``error`` is what there is to be told."""

    def __init__(self, error: Unverified) -> None:
        self.error = error
        super().__init__(str(error))


TIMEOUT = httpcore.TimeoutException
LOST = (TIMEOUT, httpcore.NetworkError, httpcore.ProtocolError)
"""What a request raises that brings no answer."""


_HEADERS = (("User-Agent", "guest-client"), ("Accept-Encoding", "identity"))


@dataclass(frozen=True)
class Answer:
    """An answer's head, the names of its headers in lower case, and its body as it comes."""

    status: int
    headers: Mapping[str, str]
    body: Iterator[bytes]


class DeadlineTransport:
    """Carries requests to one endpoint, none beyond ``deadline``, which the user sets at will.

    Raises :class:`ConfigurationError` if TLS is to trust a ``ca_file`` that can't be used.
    """

    def __init__(
        self, endpoint: Endpoint, clock: Clock, interrupters: Sequence[Interrupter] = ()
    ) -> None:
        """With ``interrupters``, a connection also says soon when its host is no longer there."""
        self.deadline = 0.0
        """On ``clock``'s scale."""
        self.dials = 0
        """How often a connection was made or tried; unchanged by a request that reused one."""
        self.used: Endpoint | None = None
        """Where the last connection went."""
        self._endpoint = endpoint
        self._clock = clock
        self._tls = _tls_context(endpoint) if endpoint.tls else None
        self._interrupters = interrupters
        self._pool = self._new_pool()

    def _new_pool(self) -> httpcore.ConnectionPool:
        return httpcore.ConnectionPool(
            ssl_context=self._tls,
            max_connections=1,
            max_keepalive_connections=1,
            keepalive_expiry=_KEEP_ALIVE,
            network_backend=_Backend(self),
        )

    def remaining(self, limit: float | None) -> float:
        """Give the time that one socket operation has; raises ``TimeoutError`` if none is left."""
        left = self.deadline - self._clock()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        return left if limit is None else min(left, limit)

    def dial(self, limit: float | None) -> socket.socket:
        """Make a new connection within ``limit`` seconds and the deadline."""
        self.dials += 1
        sock, self.used = connect(self._endpoint, self.remaining(limit))
        if self._interrupters and self.used.kind is Kind.TCP:
            for level, option, value in _KEEPALIVE:
                sock.setsockopt(level, option, value)
        return sock

    def wait_readable(self, sock: socket.socket, limit: float | None) -> None:
        """Wait for something to read, within ``limit`` and the deadline, unless interrupted.

        Raises ``TimeoutError``, or ``InterruptedError`` when an interrupter says so.
        """
        if isinstance(sock, ssl.SSLSocket) and sock.pending():
            return
        if self._interrupters and not _await(sock, self._interrupters, self.remaining(limit)):
            raise InterruptedError("interrupted")

    def forget_connection(self) -> None:
        """Drop what is connected, so that the next request makes a connection of its own."""
        self._pool.close()
        self._pool = self._new_pool()

    @contextmanager
    def request(
        self,
        path: str,
        headers: Mapping[str, str],
        timeouts: Mapping[str, float],
        body: bytes | None = None,
    ) -> Iterator[Answer]:
        """Get a path, or post ``body`` to it; the answer lasts as long as the block.

        Nothing is followed. ``timeouts`` are httpcore's (``connect``, ``read``, ``write``), in
        seconds and for each operation. Raises :data:`LOST`, in the block too, and
        :class:`Hopeless`.
        """
        all_headers = [("Host", self._endpoint.authority), *_HEADERS, *headers.items()]
        with self._pool.stream(
            "GET" if body is None else "POST",
            self._endpoint.base_url + path,
            headers=[*all_headers, *self._token()],
            content=body,
            extensions={"timeout": {**timeouts}},
        ) as answer:
            yield Answer(
                answer.status,
                {name.decode("latin-1").lower(): v.decode("latin-1") for name, v in answer.headers},
                answer.iter_stream(),
            )

    def _token(self) -> list[tuple[str, str]]:
        try:
            token = self._endpoint.token_file and self._endpoint.token_file.read()
        except TokenUnusable as error:
            raise Hopeless(error) from error
        return [("Authorization", f"Bearer {token}")] if token else []

    def close(self) -> None:
        """Close the connection, if there is one."""
        self._pool.close()


def _tls_context(endpoint: Endpoint) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=endpoint.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"the certificates in {endpoint.ca_file} can't be used: {error.strerror or error}; it"
            " should have the enabler's CA in PEM"
        ) from error


class _Backend(httpcore.NetworkBackend):
    """Dials the transport's endpoint, whatever host HTTP has in its URL."""

    def __init__(self, transport: DeadlineTransport) -> None:
        self._transport = transport

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            return _Stream(self._transport.dial(timeout), self._transport)
        except ConnectionResetError as error:  # how a vsock says that nobody listens
            raise httpcore.ConnectError("Connection refused") from error
        except _TIMED_OUT as error:
            raise httpcore.ConnectTimeout("no connection in time") from error
        except OSError as error:
            raise httpcore.ConnectError(error.strerror or str(error)) from error


class _Stream(httpcore.NetworkStream):
    def __init__(self, sock: socket.socket, transport: DeadlineTransport) -> None:
        self._socket = sock
        self._transport = transport

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            self._transport.wait_readable(self._socket, timeout)
            self._socket.settimeout(self._transport.remaining(timeout))
            return self._socket.recv(max_bytes)
        except _TIMED_OUT as error:
            raise httpcore.ReadTimeout("no answer in time") from error
        except OSError as error:
            raise httpcore.ReadError(error.strerror or str(error)) from error

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            self._socket.settimeout(self._transport.remaining(timeout))
            self._socket.sendall(buffer)
        except _TIMED_OUT as error:
            raise httpcore.WriteTimeout("the request could not be sent in time") from error
        except OSError as error:
            raise httpcore.WriteError(error.strerror or str(error)) from error

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        try:
            self._socket.settimeout(self._transport.remaining(timeout))
            secured = ssl_context.wrap_socket(self._socket, server_hostname=server_hostname)
        except ssl.SSLCertVerificationError as error:
            self._socket.close()
            raise Hopeless(
                UntrustedAnswer(
                    f"what answers at {server_hostname} does not prove by TLS to be the enabler"
                    f" ({error.verify_message}); check the address and the CA (--ca-file)"
                )
            ) from error
        except _TIMED_OUT as error:
            self._socket.close()
            raise httpcore.ConnectTimeout("no TLS in time") from error
        except OSError as error:
            self._socket.close()
            raise httpcore.ConnectError(f"no TLS: {error.strerror or error}") from error
        return _Stream(secured, self._transport)

    def close(self) -> None:
        self._socket.close()

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # an idle connection with something to read has been closed
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            return bool(poll.poll(0))
        if info == "ssl_object":
            return self._socket if isinstance(self._socket, ssl.SSLSocket) else None
        return self._socket if info == "socket" else None


def pause(interrupters: Sequence[Interrupter], seconds: float | None) -> bool:
    """Sleep, for ever if ``seconds`` is ``None``; false if an interrupter ended it."""
    try:
        return _await(None, interrupters, seconds)
    except TimeoutError:
        return True


def _await(
    sock: socket.socket | None, interrupters: Sequence[Interrupter], seconds: float | None
) -> bool:
    """Wait for input: true if there is some, false on an interruption. Raises ``TimeoutError``."""
    end = None if seconds is None else time.monotonic() + seconds
    poll = select.poll()
    by_fd = {each.fileno(): each for each in interrupters if each.fileno() >= 0}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    if sock is not None:
        poll.register(sock, select.POLLIN)
    while True:
        left = None if end is None else (end - time.monotonic()) * 1000
        if left is not None and left <= 0:
            raise TimeoutError("the time is up")
        ready = {fd for fd, _ in poll.poll(left)}
        if sock is not None and sock.fileno() in ready:
            return True
        taken = [by_fd[fd].take() for fd in ready]
        if any(taken):
            return False
