"""The channel against real servers on loopback, each of which is wrong in a way of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest_client.channel import LARGEST_ANSWER, Channel, FailedTry
from guest_client.errors import IdentityInvalid, NoAnswer, Refused, UntrustedAnswer

from .documents import MIGRATED, document, encoded
from .enabler_server import Answer, EnablerServer, Handler, answering, problem, raw


@pytest.fixture
def server() -> Iterator[EnablerServer]:
    with EnablerServer() as running:
        yield running


@pytest.fixture
def channel(server: EnablerServer) -> Iterator[Channel]:
    with Channel(server.url) as opened:
        yield opened


def test_an_identity_is_read_whole(server: EnablerServer, channel: Channel) -> None:
    server.document["more"] = [1, 2]
    read = channel.read(5)
    assert read.trusted().as_dict() == document() | {"more": [1, 2]}
    assert read.failures == ()
    assert read.reading == read.identity
    assert read.as_dict()["identity"]["more"] == [1, 2]
    assert read.as_dict()["error"] is None
    _, path, headers = server.requests[0]
    assert path == "/v1/identity"
    assert headers["Host"] == f"127.0.0.1:{server.port}"
    assert headers["Accept-Encoding"] == "identity"


def test_two_reads_share_a_connection(server: EnablerServer, channel: Channel) -> None:
    channel.read(5).trusted()
    server.document = document(MIGRATED)
    assert channel.read(5).trusted().machine.serial_number == "78BBBBB"
    assert len({peer for peer, *_ in server.requests}) == 1


def test_a_connection_dropped_between_reads_is_replaced(
    server: EnablerServer, channel: Channel
) -> None:
    channel.read(5).trusted()
    server.drop_connections()
    channel.read(5).trusted()
    assert len({peer for peer, *_ in server.requests}) == 2


def test_a_kept_connection_that_fails_is_replaced_without_a_wait(server: EnablerServer) -> None:
    slept: list[float] = []
    with Channel(server.url, sleep=slept.append) as channel:
        channel.read(5).trusted()
        # The request arrives on the kept connection, and its answer never comes.
        server.script.append(raw(b""))
        read = channel.read(5)
    read.trusted()
    assert len(read.failures) == 1
    assert slept == []


def test_a_proxy_in_the_environment_is_not_asked(
    server: EnablerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with Channel(server.url) as channel:
        channel.read(5).trusted()


def test_ipv6() -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        with pytest.raises(OSError, match=r"."):
            EnablerServer(socket.AF_INET6)
        return
    with (
        EnablerServer(socket.AF_INET6) as server,
        Channel(f"http://[::1]:{server.port}") as channel,
    ):
        channel.read(5).trusted()
        assert server.requests[0][2]["Host"] == f"[::1]:{server.port}"


_LINK_LOCAL = """
import socket, subprocess
from guest_client.channel import Channel
from tests_guest.enabler_server import EnablerServer
subprocess.run(["ip", "link", "add", "enabler0", "type", "bridge"], check=True)
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
subprocess.run(["ip", "link", "set", "enabler0", "up"], check=True)
subprocess.run(["ip", "addr", "add", "fe80::77:1/64", "dev", "enabler0", "nodad"], check=True)
scope = socket.if_nametoindex("enabler0")
with EnablerServer(socket.AF_INET6, ("fe80::77:1", 8777, 0, scope)) as server:
    with Channel("http://[fe80::77:1%25enabler0]:8777") as channel:
        channel.read(5).trusted()
    print(server.requests[0][2]["Host"])
"""


def test_ipv6_link_local_with_its_interface(tmp_path: Path) -> None:
    """In a network namespace of its own, whose only interface has the enabler's address."""
    (tmp_path / "tests_guest").symlink_to(Path(__file__).parent)
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", _LINK_LOCAL],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[fe80::77:1]:8777\n", "")


def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "enabler.sock"
    with EnablerServer(socket.AF_UNIX, str(path)), Channel(f"unix:{path}") as channel:
        channel.read(5).trusted()


# Answers that are final: nothing is asked a second time.


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (answering(b"<html>", kind="text/html"), UntrustedAnswer, "text/html"),
        (answering(b"<html>"), IdentityInvalid, "not JSON"),
        (answering(b"{}"), IdentityInvalid, "is missing"),
        (answering(encoded({"vm.vcpus": "4"})), IdentityInvalid, r"vm\.vcpus"),
        (answering(b" " * 10_000_000), UntrustedAnswer, "64.0 KiB"),
        (answering(b"", 302, Location="http://127.0.0.1:1/"), UntrustedAnswer, "sends us on"),
        (answering(b"", 301, Location="/v1/identity"), UntrustedAnswer, "sends us on"),
        (answering(b"", 304), UntrustedAnswer, "sends us on"),
        (answering(b"{}", 404), UntrustedAnswer, "404"),
        (answering(b"", 201), UntrustedAnswer, "201"),
        (answering(encoded(), Content_Encoding="gzip"), UntrustedAnswer, "coding"),
        (
            raw(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + encoded()),
            UntrustedAnswer,
            "without a length",
        ),
        (problem(403, "caller-unknown", "no VM has 192.0.2.9"), Refused, "caller-unknown: no VM"),
        (problem(401, "token-missing"), Refused, "token-missing"),
        # Nobody but an enabler speaks in problem documents: this is a proxy or a filter.
        (answering(b"Forbidden", 403, "text/plain"), UntrustedAnswer, "403"),
        (
            problem(403, "x", "\x1b[31mred\nsecond line"),
            Refused,
            r"\\x1b\[31mred\\nsecond",
        ),
    ],
)
def test_what_is_not_an_enablers_answer_ends_the_read(
    server: EnablerServer, channel: Channel, answer: Answer, error: type[Exception], says: str
) -> None:
    server.script.append(answer)
    read = channel.read(5)
    with pytest.raises(error, match=says):
        read.trusted()
    assert len(server.requests) == 1
    assert "\n" not in str(read.error)


def test_the_exit_codes_of_errors() -> None:
    assert (NoAnswer.exit_code, UntrustedAnswer.exit_code, Refused.exit_code) == (69, 69, 77)
    assert IdentityInvalid.exit_code == 69


def _endless_body(handler: Handler) -> None:
    while True:
        handler.wfile.write(b"1000\r\n" + b" " * 0x1000 + b"\r\n")


def test_a_body_without_end_is_cut_at_the_limit(server: EnablerServer, channel: Channel) -> None:
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    server.script.append(raw(head, then=_endless_body))
    with pytest.raises(UntrustedAnswer, match="more than"):
        channel.read(5).trusted()


def test_the_longest_answer_that_may_be(server: EnablerServer, channel: Channel) -> None:
    body = encoded()
    server.script.append(answering(body + b" " * (LARGEST_ANSWER - len(body))))
    channel.read(5).trusted()


# Answers that are asked for again.


@pytest.mark.parametrize(
    "answer",
    [
        problem(503, "vm-arriving", Retry_After="0"),
        problem(503, "hypervisor-unavailable"),
        answering(b"", 500, "text/plain"),
        answering(b"", 429),
        answering(b"x" * 100_000, 502, "text/html"),
        raw(b""),
        raw(b"HTTP/1.1 200 OK\r\nContent-Type: applic"),
        raw(b"SSH-2.0-OpenSSH\r\n"),
        raw(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2000\r\n\r\n"
            + encoded()
        ),
        raw(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n5\r\n{    \r\n"
        ),
    ],
)
def test_what_passes_is_asked_again(
    server: EnablerServer, channel: Channel, answer: Answer
) -> None:
    server.script += [answer, answer]
    read = channel.read(20)
    assert read.trusted().as_dict() == document()
    assert len(read.failures) == 2
    assert all(failure.what for failure in read.failures)
    assert len({peer for peer, *_ in server.requests}) == 3


def test_every_failed_try_is_kept_and_told(server: EnablerServer) -> None:
    told: list[FailedTry] = []
    server.script.append(problem(503, "vm-arriving", "it is on its way"))
    with Channel(server.url, on_failure=told.append) as channel:
        read = channel.read(5)
    assert tuple(told) == read.failures
    assert told[0].what == "503 vm-arriving: it is on its way"
    assert read.as_dict()["failed_tries"] == [{"at": told[0].at, "what": told[0].what}]


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def _closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_waits_double_with_jitter_up_to_a_limit_and_stay_within_the_deadline() -> None:
    time = Time()
    with Channel(
        f"http://127.0.0.1:{_closed_port()}", clock=time.clock, sleep=time.sleep, jitter=lambda: 1.0
    ) as channel:
        read = channel.read(30)
    with pytest.raises(NoAnswer, match=r"within 30 s \(.* tries, the last: Connection refused\)"):
        read.trusted()
    assert time.slept[:6] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0])
    assert max(time.slept) == pytest.approx(2.0)
    assert 29.9 <= time.now - 1000 <= 30
    assert len(read.failures) == len(time.slept) or len(read.failures) == len(time.slept) + 1


def test_jitter_halves_a_wait_at_most() -> None:
    time = Time()
    with Channel(
        f"http://127.0.0.1:{_closed_port()}", clock=time.clock, sleep=time.sleep, jitter=lambda: 0.0
    ) as channel:
        channel.read(30)
    assert time.slept[:5] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8])


@pytest.mark.parametrize(
    ("sent", "waited"),
    [("1", 1.0), ("3600", 5.0), ("-1", 0.1), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.1), ("²", 0.1)],
)
def test_retry_after_is_heeded_within_bounds(
    server: EnablerServer, sent: str, waited: float
) -> None:
    time = Time()
    if sent.isascii():
        server.script.append(problem(503, "vm-leaving", Retry_After=sent))
    else:
        head = f"HTTP/1.1 503 No\r\nRetry-After: {sent}\r\nContent-Length: 0\r\n\r\n"
        server.script.append(raw(head.encode("latin-1")))
    with Channel(server.url, clock=time.clock, sleep=time.sleep, jitter=lambda: 1.0) as channel:
        channel.read(30).trusted()
    assert time.slept == pytest.approx([waited])


def _drip(until: threading.Event) -> Answer:
    """A byte at a time for ever, each well within any limit on a single read."""

    def drip(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not until.wait(0.02):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    return drip


def _drip_body(until: threading.Event) -> Answer:
    def drip(handler: Handler) -> None:
        handler.wfile.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n"
        )
        while not until.wait(0.02):
            handler.wfile.write(b" ")
            handler.wfile.flush()

    return drip


def _silence(until: threading.Event) -> Answer:
    def silence(handler: Handler) -> None:
        until.wait()
        handler.close_connection = True

    return silence


@pytest.mark.parametrize("make", [_drip, _drip_body, _silence])
def test_an_answer_that_never_ends_is_cut_by_the_deadline(
    server: EnablerServer, make: object
) -> None:
    assert callable(make)
    over = threading.Event()
    server.otherwise = make(over)
    try:
        # That this returns at all is the test: the server goes on until it has.
        with Channel(server.url) as channel, pytest.raises(NoAnswer, match="in time"):
            channel.read(0.7).trusted()
    finally:
        over.set()


def test_a_try_that_gets_no_reply_leaves_time_for_another(server: EnablerServer) -> None:
    over = threading.Event()
    server.script.append(_silence(over))
    try:
        with Channel(server.url) as channel:
            read = channel.read(30)
    finally:
        over.set()
    assert read.trusted().as_dict() == document()
    assert [failure.what for failure in read.failures] == ["no answer in time"]


def test_nobody_listens_on_the_unix_socket(tmp_path: Path) -> None:
    with Channel(f"unix:{tmp_path}/none.sock") as channel:
        read = channel.read(0.3)
    with pytest.raises(NoAnswer, match="No such file"):
        read.trusted()
    assert json.loads(json.dumps(read.as_dict()))["error"]["reason"] == "no-answer"
