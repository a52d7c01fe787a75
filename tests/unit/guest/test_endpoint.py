from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_client.endpoint import DEFAULT_ENABLER, LINK_LOCAL, VSOCK, Kind, parse_endpoint


@pytest.mark.parametrize(
    ("text", "host", "port", "base", "canonical"),
    [
        (LINK_LOCAL, "169.254.77.1", 8777, LINK_LOCAL, LINK_LOCAL),
        (
            "https://e.example:443",
            "e.example",
            443,
            "https://e.example:443",
            "https://e.example:443",
        ),
        (
            "https://[fe80::1%25eth0]:8777",
            "fe80::1%eth0",
            8777,
            "https://[fe80::1]:8777",
            "https://[fe80::1%25eth0]:8777",
        ),
        ("http://localhost:1/", "localhost", 1, "http://localhost:1", "http://localhost:1"),
        (
            "http://[fe80::77:1%25eth0]:8777",
            "fe80::77:1%eth0",
            8777,
            "http://[fe80::77:1]:8777",
            "http://[fe80::77:1%25eth0]:8777",
        ),
        (
            "http://[FE80::77:1%enp1s0]:8777",
            "fe80::77:1%enp1s0",
            8777,
            "http://[fe80::77:1]:8777",
            "http://[fe80::77:1%25enp1s0]:8777",
        ),
        ("http://[::1]:80", "::1", 80, "http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_http_addresses(text: str, host: str, port: int, base: str, canonical: str) -> None:
    endpoint = parse_endpoint(text)
    assert (endpoint.kind, endpoint.host, endpoint.port) == (Kind.TCP, host, port)
    assert endpoint.base_url == base
    assert str(endpoint) == canonical
    assert parse_endpoint(str(endpoint)) == endpoint
    assert endpoint.tls == text.startswith("https:")


@pytest.mark.parametrize("text", [VSOCK, "vsock://1:8777/", "vsock://4294967294:1"])
def test_vsock(text: str) -> None:
    endpoint = parse_endpoint(text)
    assert endpoint.kind is Kind.VSOCK
    assert f"vsock://{endpoint.host}:{endpoint.port}" == str(endpoint) == text.rstrip("/")
    assert endpoint.base_url == "http://localhost"


def test_the_default_stands_for_others() -> None:
    endpoint = parse_endpoint(DEFAULT_ENABLER)
    assert endpoint.kind is Kind.AUTO
    # Over TCP it is a listener that knows its own name.
    assert endpoint.base_url == LINK_LOCAL


@pytest.mark.parametrize("text", ["unix:/run/e.sock", "unix:///run/e.sock"])
def test_unix_sockets(text: str) -> None:
    endpoint = parse_endpoint(text)
    assert (endpoint.kind, endpoint.path) == (Kind.UNIX, "/run/e.sock")
    assert str(endpoint) == "unix:/run/e.sock"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no address"),
        ("169.254.77.1:8777", "no address"),
        ("ftp://169.254.77.1:8777", "no address"),
        ("https://169.254.77.1", "no port"),
        ("vsock:8777", "no vsock address"),
        ("vsock://host:8777", "no vsock address"),
        ("vsock://2", "no vsock address"),
        ("vsock://2:8777/v1", "no vsock address"),
        ("vsock://\u0662:8777", "no vsock address"),
        ("vsock://0:8777", "are 1 to"),
        ("vsock://4294967295:8777", "are 1 to"),
        ("vsock://2:0", "are 1 to"),
        ("http://169.254.77.1", "no port"),
        ("http://169.254.77.1:", "no port"),
        ("http://169.254.77.1:0", "1 to 65535"),
        ("http://169.254.77.1:65536", "1 to 65535"),
        ("http://169.254.77.1:" + "9" * 5000, "1 to 65535"),
        ("http://169.254.77.256:8777", "169.254.77.256"),
        ("http://:8777", "no host"),
        ("http://user:secret@h:1", "nothing may follow"),
        ("http://h:1/v1/identity", "nothing may follow"),
        ("http://h:1?x", "nothing may follow"),
        ("http://[fe80::77:1]:8777", "needs its interface"),
        ("http://[fe80::77:1%25]:8777", "interface's name"),
        ("http://[fe80::xyz%25eth0]:8777", "fe80::xyz"),
        ("unix:", "full path"),
        ("unix:relative", "full path"),
        ("unix:/", "full path"),
        ("unix:/" + "a" * 107, "107 bytes"),
    ],
)
def test_what_is_no_address_says_why(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says.replace(".", r"\.")):
        parse_endpoint(text)


@given(st.text(max_size=40) | st.text(max_size=30).map(lambda t: f"http://{t}:1"))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        endpoint = parse_endpoint(text)
    except ValueError:
        return
    assert parse_endpoint(str(endpoint)) == endpoint
