"""Delivery to real receivers: what each answer means, signatures, TLS, and no proxies."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import subprocess
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest_client.agent.event import encode
from guest_client.agent.event_schema import event_example
from guest_client.agent.model import Delivery
from guest_client.agent.outbox import Answer, Sender, understand
from guest_client.agent.settings import Destination
from guest_client.errors import ConfigurationError
from tests.lab.receiver import DEAD, MUTE, Behaviour, Receiver

NOW = 1_800_000_000.0
IN_A_MINUTE = "Fri, 15 Jan 2027 08:01:00 GMT"
AN_HOUR_AGO = "Fri, 15 Jan 2027 07:00:00 GMT"
EVENT = event_example()


def send(destination: Destination, limit: float = 30.0) -> Answer:
    delivery = Delivery(1, EVENT["id"], destination.url, encode(EVENT), 0)

    async def go() -> Answer:
        async with Sender(destination, limit=limit) as sender:
            return await sender.send(delivery)

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("status", "retry_after", "answer"),
    [
        (200, None, Answer(True)),
        (202, None, Answer(True)),
        (204, "5", Answer(True)),
        (410, None, Answer(False, True, 0, "410: it wants no more events")),
        (429, "120", Answer(False, False, 120, "it answers with status 429")),
        (503, IN_A_MINUTE, Answer(False, False, 60, "it answers with status 503")),
        (503, AN_HOUR_AGO, Answer(False, False, 0, "it answers with status 503")),
        (503, "soon", Answer(False, False, 0, "it answers with status 503")),
        (429, "9" * 400, Answer(False, False, 0, "it answers with status 429")),
        (301, None, Answer(False, False, 0, "it answers with status 301")),
        (400, "7", Answer(False, False, 0, "it answers with status 400")),
        (404, None, Answer(False, False, 0, "it answers with status 404")),
        (500, None, Answer(False, False, 0, "it answers with status 500")),
    ],
)  # fmt: skip
def test_each_answers_meaning(status: int, retry_after: str | None, answer: Answer) -> None:
    assert understand(status, retry_after, NOW) == answer


def test_an_event_arrives_as_it_is(receiver: Receiver) -> None:
    assert send(Destination(receiver.url)) == Answer(True)
    (arrival,) = receiver.arrivals
    assert arrival.event == EVENT
    assert arrival.content_type == "application/cloudevents+json"
    assert arrival.signature == "none"


def test_a_refusal_and_its_wish_are_heard(receiver: Receiver) -> None:
    receiver.behaviour = Behaviour("failing", status=503, retry_after=7)
    assert send(Destination(receiver.url)) == Answer(
        False, retry_after=7, problem="it answers with status 503"
    )


@pytest.mark.parametrize("behaviour", [DEAD, MUTE])
def test_a_receiver_that_hangs_up_has_not_taken_it(
    receiver: Receiver, behaviour: Behaviour
) -> None:
    receiver.behaviour = behaviour
    answer = send(Destination(receiver.url))
    assert not answer.arrived
    assert answer.problem


def test_a_receiver_that_is_not_there_is_told(receiver: Receiver) -> None:
    receiver.close()
    answer = send(Destination(receiver.url))
    assert not answer.arrived
    assert "connection" in (answer.problem or "").lower()


def test_a_receiver_that_never_answers_costs_its_limit_and_no_more(receiver: Receiver) -> None:
    receiver.behaviour = Behaviour("slow", seconds=30)
    assert send(Destination(receiver.url), limit=0.3) == Answer(
        False, problem="no answer within 0.3 s"
    )


def test_one_that_answers_a_byte_at_a_time_does_not_either() -> None:
    over = threading.Event()

    def drip(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 204 No Content\r\nX-Slow: ")
            while not over.wait(0.02):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip, args=(listening,))
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        answer = send(Destination(url), limit=0.3)
        over.set()
        thread.join()
    assert answer == Answer(False, problem="no answer within 0.3 s")


def test_a_redirect_is_not_followed(receiver: Receiver, tmp_path: Path) -> None:
    receiver.behaviour = Behaviour("failing", status=307)
    assert send(Destination(receiver.url)).problem == "it answers with status 307"
    assert len(receiver.arrivals) == 1


def test_a_proxy_in_the_environment_is_not_asked(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert send(Destination(receiver.url)).arrived


class TestSignatures:
    secret = "whsec_" + b64encode(secrets.token_bytes(32)).decode()

    @pytest.fixture
    def signed(self, tmp_path: Path) -> Iterator[Receiver]:
        made = Receiver(tmp_path / "signed.jsonl", secret=self.secret)
        yield made
        made.close()

    def test_the_receiver_can_check_one(self, signed: Receiver, tmp_path: Path) -> None:
        file = tmp_path / "secret"
        file.write_text(self.secret + "\n")
        assert send(Destination(signed.url, secret_file=file)).arrived
        assert signed.arrivals[0].signature == "good"

    def test_and_refuses_what_has_another_or_none(self, signed: Receiver, tmp_path: Path) -> None:
        file = tmp_path / "secret"
        file.write_text("whsec_" + b64encode(b"another key, of another party").decode())
        for destination in (Destination(signed.url, secret_file=file), Destination(signed.url)):
            assert send(destination).problem == "it answers with status 401"
        assert [arrival.signature for arrival in signed.arrivals] == ["bad", "bad"]

    @pytest.mark.parametrize(
        ("content", "why"), [(b"geheim", "does not begin"), (b"\xff", "is not text")]
    )
    def test_a_secret_that_is_none_is_a_matter_of_configuration(
        self, tmp_path: Path, content: bytes, why: str
    ) -> None:
        file = tmp_path / "secret"
        file.write_bytes(content)
        with pytest.raises(ConfigurationError, match=why) as caught:
            send(Destination("http://127.0.0.1:1/", secret_file=file))
        assert "geheim" not in str(caught.value)
        with pytest.raises(ConfigurationError, match="No such file"):
            send(Destination("http://127.0.0.1:1/", secret_file=tmp_path / "none"))


class TestTls:
    @pytest.fixture
    def certificate(self, tmp_path: Path) -> tuple[Path, Path]:
        certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
        subprocess.run(
            [
                "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                "-nodes", "-keyout", str(key), "-out", str(certificate), "-days", "2",
                "-subj", "/CN=licences.example.org", "-addext", "subjectAltName=IP:127.0.0.1",
            ],
            check=True,
            capture_output=True,
        )  # fmt: skip
        return certificate, key

    def test_a_ca_file_makes_a_receiver_trusted_and_nothing_else_does(
        self, certificate: tuple[Path, Path], tmp_path: Path
    ) -> None:
        receiver = Receiver(tmp_path / "tls.jsonl", certificate=certificate)
        assert receiver.url.startswith("https://")
        assert send(Destination(receiver.url, ca_file=certificate[0])).arrived
        refused = send(Destination(receiver.url))
        assert not refused.arrived
        assert "certificate" in (refused.problem or "").lower()
        assert len(receiver.arrivals) == 1
        receiver.close()

    def test_a_ca_file_that_is_none_is_a_matter_of_configuration(self, tmp_path: Path) -> None:
        file = tmp_path / "ca.pem"
        for make in (lambda: None, lambda: file.write_text("no certificate")):
            make()
            with pytest.raises(ConfigurationError, match="ca_file"):
                send(Destination("https://127.0.0.1:1/", ca_file=file))
