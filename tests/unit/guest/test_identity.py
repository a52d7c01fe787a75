from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_client.errors import IdentityInvalid
from guest_client.identity import Arrival, MigrationState, parse_identity

from .documents import HOST_A, document, encoded, identity


def test_every_member_is_read() -> None:
    found = identity()
    assert found.component_id == HOST_A
    assert found.machine.serial_number == "78AAAAA"
    assert found.capacity.cores_per_socket == 12
    assert found.vm.name == "db01"
    assert found.residency.arrived_by is Arrival.START
    assert found.migration.state is MigrationState.NONE
    assert not found.migrating
    assert found.as_dict() == document()


def test_unknown_members_are_left_alone_and_kept() -> None:
    sent = document() | {"attestation": {"jws": "eyJ"}}
    sent["vm"]["colour"] = "blue"
    found = parse_identity(json.dumps(sent).encode())
    assert found.as_dict() == sent
    assert found == identity()


def test_what_as_dict_gives_is_the_callers_own() -> None:
    found = identity()
    found.as_dict()["vm"]["name"] = "other"
    assert found.as_dict()["vm"]["name"] == "db01"


NULLABLE = [
    "machine.manufacturer",
    "machine.type",
    "machine.model",
    "machine.uuid",
    "capacity.cpu_model",
    "vm.generation_id",
]


@pytest.mark.parametrize("member", NULLABLE)
def test_what_may_be_unknown_may_be_null(member: str) -> None:
    identity({member: None})


def _paths(value: object, path: str = "") -> list[str]:
    if not isinstance(value, dict):
        return [path]
    inner = [p for name, v in value.items() for p in _paths(v, f"{path}.{name}".lstrip("."))]
    return [path, *inner] if path else inner


@pytest.mark.parametrize("member", _paths(document()))
def test_a_missing_member_is_named(member: str) -> None:
    made = document()
    *path, last = member.split(".")
    place = made
    for part in path:
        place = place[part]
    del place[last]
    with pytest.raises(IdentityInvalid) as caught:
        parse_identity(json.dumps(made).encode())
    assert caught.value.path == member
    assert member in str(caught.value)


@pytest.mark.parametrize("member", _paths(document()))
def test_a_null_member_is_named_unless_it_may_be_null(member: str) -> None:
    if member in NULLABLE:
        assert identity({member: None}).as_dict() == document({member: None})
        return
    with pytest.raises(IdentityInvalid) as caught:
        identity({member: None})
    assert caught.value.path == member


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("component_id", "sha256:" + "A" * 64),
        ("component_id", "sha256:" + "a" * 63),
        ("component_id", "sha256:" + "a" * 64 + "\n"),
        ("component_id", 7),
        ("machine", []),
        ("machine.serial_number", ""),
        ("machine.uuid", 5),
        ("capacity.sockets", 0),
        ("capacity.sockets", True),
        ("capacity.sockets", 1.0),
        ("capacity.sockets", "2"),
        ("capacity.memory_bytes", -1),
        ("vm.vcpus", {}),
        ("vm.uuid", ""),
        ("residency.id", ""),
        ("residency.since", "2026-11-23T02:37:29Z"),
        ("residency.since", "2026-11-23T02:37:29.304+00:00"),
        ("residency.since", "2026-13-23T02:37:29.304Z"),
        ("residency.arrived_by", "teleport"),
        ("migration.state", "NONE"),
        ("observed_at", "٢٠٢٦-11-23T02:37:29.304Z"),
    ],
)
def test_an_ill_typed_member_is_named(member: str, value: Any) -> None:
    with pytest.raises(IdentityInvalid) as caught:
        identity({member: value})
    assert caught.value.path == member


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff\xfe",
        b"[" * 60_000,
        b"NaN",
        b"[]",
        b"null",
        encoded()[:-1],
        encoded().replace(b": 4,", b": NaN,"),
        encoded()[:-1] + b', "unknown": 1e999}',
        encoded().replace(b": 4,", b": " + b"9" * 5000 + b","),
    ],
)
def test_what_is_no_document_is_refused(body: bytes) -> None:
    with pytest.raises(IdentityInvalid):
        parse_identity(body)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with pytest.raises(IdentityInvalid):
        parse_identity(body)


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(st.sampled_from(_paths(document())), _json)
def test_any_value_anywhere_is_read_or_refused_by_its_name(member: str, value: Any) -> None:
    wrong: str | None = None
    try:
        assert identity({member: value}).as_dict() == document({member: value})
    except IdentityInvalid as error:
        wrong = error.path
    assert wrong is None or wrong.startswith(member)
