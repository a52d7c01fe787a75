"""Tokens, their records in domain XML, and what of that XML is not read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from enabler import domains, safexml, tokens
from enabler.config import load
from enabler.errors import ConfigurationError

HASH = tokens.sha256_of("vme_one")
DOMAIN = """<domain><uuid>11111111-0000-4000-8000-000000000001</uuid><name>a</name>
<memory>1024</memory><vcpu>1</vcpu><metadata>{metadata}</metadata>
<devices>{devices}</devices></domain>"""


def facts(metadata: str = "", devices: str = "") -> domains.VmFacts:
    return domains.parse(DOMAIN.format(metadata=metadata, devices=devices))


def test_a_token_is_new_random_and_a_bearer_token() -> None:
    made = {tokens.make() for _ in range(100)}
    assert len(made) == 100
    # RFC 6750, 2.1: b64token. 43 characters of base64 are 256 bits.
    assert all(re.fullmatch(r"vme_[A-Za-z0-9_-]{43}", token) for token in made)


def test_what_matches() -> None:
    assert tokens.matches("vme_one", HASH)
    assert not tokens.matches("vme_two", HASH)
    assert not tokens.matches("vme_one", "")
    assert not tokens.matches("", "")


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ([], None),
        (["Basic dXNlcjpwYXNz"], None),
        (["Bearer vme_x"], "vme_x"),
        (["bearer   vme_x "], "vme_x"),
        (["Bearer"], ""),
        (["Bearer vme_x vme_y"], ""),
        (["Bearer vme_x", "Bearer vme_y"], ""),
        (["Bearer vme_\xe9"], ""),
        (["Bearer a\tb"], ""),
    ],
)
def test_authorization_headers(headers: list[str], token: str | None) -> None:
    assert tokens.of_headers(headers) == token


def test_a_record_is_read_as_it_was_written() -> None:
    record = domains.token_record(HASH).replace(
        "<token", f'<x:token xmlns:x="{domains.TOKEN_NAMESPACE}"'
    )
    assert facts(record).token_sha256 == HASH


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        f"<token sha256='{HASH}'/>",  # not ours
        f"<token xmlns='{domains.TOKEN_NAMESPACE}'/>",
        f"<token xmlns='{domains.TOKEN_NAMESPACE}' sha256='{HASH[:-1]}'/>",
        f"<token xmlns='{domains.TOKEN_NAMESPACE}' sha256='{HASH.upper()}'/>",
        f"<token xmlns='{domains.TOKEN_NAMESPACE}' sha256='{HASH}'/>" * 2,
    ],
)
def test_a_mangled_record_is_none(metadata: str) -> None:
    assert facts(metadata).token_sha256 is None


@pytest.mark.parametrize(
    ("cid", "found"),
    [
        ("<cid auto='yes' address='7'/>", 7),
        ("<cid auto='no' address='4294967294'/>", 4294967294),
        ("<cid auto='yes'/>", None),
        ("<cid address='2'/>", None),
        ("<cid address='-7'/>", None),
        ("<cid address='\u0667'/>", None),
    ],
)
def test_a_vsock(cid: str, found: int | None) -> None:
    assert facts(devices=f"<vsock model='virtio'>{cid}</vsock>").cid == found
    assert facts().cid is None


@pytest.mark.parametrize(
    "metadata",
    [
        "<a>" * 100 + "</a>" * 100,
        f"<a xmlns='urn:x'>{'x' * safexml.LONGEST}</a>",
    ],
    ids=["deep", "long"],
)
def test_metadata_that_is_too_much(metadata: str) -> None:
    with pytest.raises(domains.MalformedDomain, match="is refused"):
        facts(metadata)


@pytest.mark.parametrize(
    "declaration",
    [
        '<!DOCTYPE domain [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>',
        '<!DOCTYPE domain SYSTEM "file:///etc/passwd">',
    ],
)
def test_entities_are_never_defined(declaration: str) -> None:
    with pytest.raises(domains.MalformedDomain, match="document type"):
        domains.parse(declaration + DOMAIN.format(metadata="", devices=""))


def test_the_ways_in_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "enabler.toml"
    file.write_text("")
    assert load(file, {}, {}).callers == ("vsock", "token", "address")
    assert load(file, {"ENABLER_CALLERS": "token, vsock"}, {}).callers == ("token", "vsock")
    for wrong in ("token, token", "", "mac"):
        with pytest.raises(ConfigurationError, match="callers"):
            load(file, {"ENABLER_CALLERS": wrong}, {})
