"""The guest listener's bounds, with real sockets; and that nobody can tell which way an answer
came.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import libvirt
import pytest

from enabler.config import LimitSettings
from tests.api.network import DEFAULT_MAC, HOST, PORT, network, run_in, serving
from tests.api.running import Enabler, eventually


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Listener:
    """The guest listener on the loopback: nobody there is a VM, which is all that is needed."""

    def __init__(self, port: int) -> None:
        self.port = port

    @contextmanager
    def connect(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), 20) as connection:
            yield connection

    def request(self, path: str = "/healthz", *more: str) -> bytes:
        head = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", *more, "", ""]
        return "\r\n".join(head).encode()

    def ask(self, request: bytes) -> bytes:
        with self.connect() as connection:
            connection.sendall(request)
            return until_closed(connection)


def until_closed(connection: socket.socket) -> bytes:
    received = b""
    while True:
        try:
            piece = connection.recv(65536)
        except ConnectionResetError:
            return received
        if not piece:
            return received
        received += piece


def one_answer(connection: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65536)
        assert piece, received
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    while length and len(body) < int(length[1]):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def problem(answer: bytes) -> tuple[int, str]:
    """The status and the type of the only answer; it ends the connection."""
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    assert b"connection: close\r\n" in answer
    assert b"content-type: application/problem+json" in answer
    name = re.search(rb'"type":"/problems/([a-z-]+)"', answer)
    assert name is not None
    return int(answer.split(b" ", 2)[1]), name[1].decode()


@contextmanager
def listening(folder: Path, **limits: float) -> Iterator[Listener]:
    port = free_port()
    enabler = Enabler(folder)
    enabler.settings = enabler.settings.model_copy(
        update={
            "listen": (*enabler.settings.listen, f"http://127.0.0.1:{port}"),
            "limits": LimitSettings(**{"requests_per_second": 0} | limits),  # type: ignore[arg-type]
        }
    )
    with enabler.running():
        yield Listener(port)


@pytest.fixture
def listener(hypervisor: libvirt.virConnect, tmp_path: Path) -> Iterator[Listener]:
    with listening(tmp_path, request_seconds=0.5, header_bytes=2048, body_bytes=1000) as made:
        yield made


def test_what_is_no_http_is_refused(listener: Listener) -> None:
    for nonsense in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        assert problem(listener.ask(nonsense)) == (400, "bad-request")
    for target in ("example.com:443", "*", "http://"):
        answer = listener.ask(listener.request(target, "Connection: close"))
        assert answer.split(b" ")[1] in (b"400", b"404", b"421"), target


def test_a_header_is_bounded_whether_it_comes_at_once_or_bit_by_bit(listener: Listener) -> None:
    long = listener.request("/healthz", "X-Long: " + "x" * 3000)
    assert problem(listener.ask(long)) == (431, "header-fields-too-large")
    # Behind a short request, in the same packet: not to be taken for the answer to that one.
    assert not listener.ask(listener.request() + long).startswith(b"HTTP/1.1 431")
    many = listener.request("/healthz", *[f"X{number}: x" for number in range(400)])
    assert problem(listener.ask(many)) == (431, "header-fields-too-large")
    with listener.connect() as connection:
        for at in range(0, 2500, 500):
            connection.sendall(long[at : at + 500])
            time.sleep(0.01)
        assert problem(until_closed(connection)) == (431, "header-fields-too-large")
    assert problem(listener.ask(listener.request("/" + "x" * 1500, "X: " + "x" * 900))) == (
        414,
        "uri-too-long",
    )


def test_a_body_is_bounded_with_and_without_a_length(listener: Listener) -> None:
    attestation = f"POST /v1/identity/attestation HTTP/1.1\r\nHost: 127.0.0.1:{listener.port}\r\n"
    plain = f"{attestation}Content-Length: 100000\r\n\r\n".encode() + b"x" * 2000
    chunk = b"1f4\r\n" + b"x" * 500 + b"\r\n"
    chunked = f"{attestation}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk * 3
    for request in (plain, chunked):
        with listener.connect() as connection:
            connection.sendall(request)
            answer = until_closed(connection)
        # The caller is refused first, or the body is, as it happens; either way that is the end.
        assert answer.count(b"HTTP/1.1 ") <= 1
        assert b" 200 " not in answer


def test_a_slow_request_is_ended(listener: Listener) -> None:
    with listener.connect() as silent, listener.connect() as slow:
        slow.sendall(listener.request()[:20])
        assert problem(until_closed(slow)) == (408, "request-timeout")
        assert problem(until_closed(silent)) == (408, "request-timeout")
    # One that never ends, however busy it is.
    with listener.connect() as busy:
        busy.sendall(b"GET /healthz HTTP/1.1\r\n")
        with pytest.raises(OSError, match=r"reset|Broken pipe"):  # noqa: PT012
            for number in range(1000):
                busy.sendall(b"X: %d\r\n" % number)
                time.sleep(0.05)


def test_a_body_that_does_not_come_is_ended(listener: Listener) -> None:
    head = f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{listener.port}\r\nContent-Length: 5\r\n\r\n"
    with listener.connect() as connection:
        connection.sendall(head.encode() + b"x")
        assert b"200 OK" in one_answer(connection)
        assert until_closed(connection) == b""


def test_a_kept_connection_is_ended_when_it_is_idle(
    hypervisor: libvirt.virConnect, tmp_path: Path
) -> None:
    with listening(tmp_path, idle_seconds=1) as listener, listener.connect() as connection:
        for _ in range(3):
            connection.sendall(listener.request())
            assert b"200 OK" in one_answer(connection)
        assert until_closed(connection) == b""


def test_requests_sent_ahead_are_answered_in_order_and_bounded(listener: Listener) -> None:
    few = [listener.request("/healthz"), listener.request("/v1/none"), listener.request("/healthz")]
    with listener.connect() as connection:
        connection.sendall(b"".join(few))
        received = b""
        while received.count(b"HTTP/1.1 ") < 3:
            received += connection.recv(65536)
        statuses = re.findall(rb"HTTP/1.1 (\d+)", received)
        assert statuses == [b"200", b"404", b"200"]
    assert listener.ask(listener.request() * 1000).count(b"HTTP/1.1 ") <= 20


def test_connections_of_one_caller_and_in_all_are_bounded(
    hypervisor: libvirt.virConnect, tmp_path: Path
) -> None:
    with (
        listening(tmp_path, connections_per_caller=3, connections=3) as listener,
        ExitStack() as stack,
    ):

        def open_one() -> socket.socket:
            connection = stack.enter_context(listener.connect())
            connection.sendall(listener.request())
            return connection

        held = [open_one() for _ in range(3)]
        for connection in held:
            assert b"200 OK" in one_answer(connection)
        assert problem(until_closed(open_one())) == (503, "too-many-connections")
        held[0].close()
        # Its place is free again.
        eventually(lambda: b"200 OK" in one_answer(open_one()))


def test_a_stranger_makes_room_when_all_places_are_taken(
    hypervisor: libvirt.virConnect, tmp_path: Path
) -> None:
    with listening(tmp_path, connections=2) as listener, ExitStack() as stack:
        first, *_ = [stack.enter_context(listener.connect()) for _ in range(2)]
        last = stack.enter_context(listener.connect())
        last.sendall(listener.request())
        assert b"200 OK" in one_answer(last)
        assert until_closed(first) == b""


def test_a_caller_asks_so_often_and_no_more(hypervisor: libvirt.virConnect, tmp_path: Path) -> None:
    with (
        listening(tmp_path, requests_per_second=1, burst=5) as listener,
        listener.connect() as connection,
    ):
        answers = []
        for _ in range(6):
            connection.sendall(listener.request())
            answers.append(one_answer(connection))
        assert b"200 OK" in answers[0]
        assert b"429 Too Many Requests" in answers[-1]
        assert b"/problems/too-many-requests" in answers[-1]
        assert re.search(rb"retry-after: [12]\r\n", answers[-1])
        # A new connection does not help.
        assert b"429" in listener.ask(listener.request()).split(b"\r\n")[0]
        seconds = 3

        def again() -> bool:
            with listener.connect() as later:
                later.sendall(listener.request())
                return b"200 OK" in one_answer(later)

        time.sleep(seconds)
        assert again()


ASK = """
import re, socket, sys
host, port = sys.argv[1], int(sys.argv[2])
def ask(connection, *headers):
    head = ["GET /v1/identity HTTP/1.1", f"Host: {host}:{port}", *headers, "", ""]
    connection.sendall("\\r\\n".join(head).encode())
    received = b""
    while b"\\r\\n\\r\\n" not in received:
        received += connection.recv(65536)
    length = re.search(rb"content-length: (\\d+)", received)
    while length and len(received.partition(b"\\r\\n\\r\\n")[2]) < int(length[1]):
        received += connection.recv(65536)
    return received
def plain(answer):
    answer = re.sub(rb"date: [^\\r]*", b"date", answer)
    return re.sub(rb'"observed_at":"[^"]*"', b"observed_at", answer)
with socket.create_connection((host, port)) as connection:
    for _ in range(3):
        ask(connection)
    fast = ask(connection)
    etag = re.search(rb'etag: ([^\\r]*)', fast)[1].decode()
    # A preference that is none of ours keeps a request off the hot path.
    for headers in ([], [f"If-None-Match: {etag}"], ["If-None-Match: \\"other\\""],
                    ["If-None-Match: *"]):
        ask(connection, *headers)
        fast, slow = ask(connection, *headers), ask(connection, *headers, "Prefer: return=minimal")
        assert plain(fast) == plain(slow), (fast, slow)
        print(fast.split(b" ")[1].decode())
"""


def test_nobody_can_tell_which_way_an_answer_came(tmp_path: Path) -> None:
    with network("vmenq", [DEFAULT_MAC]) as net, serving(net, tmp_path / "log"):
        command = run_in(net.guest, sys.executable, "-c", ASK, HOST, str(PORT))
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == ["200", "304", "200", "304"], done.stderr
