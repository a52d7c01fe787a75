"""The event: CloudEvents as its schema says, one ID for ever, signed as receivers check it."""

from __future__ import annotations

import base64
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_client.agent.event import Account, compose, encode, event_id
from guest_client.agent.event_schema import event_example, event_schema, webhooks
from guest_client.agent.model import (
    JobState,
    NewTrigger,
    Outcome,
    Result,
    Run,
    Trigger,
    TriggerState,
)
from guest_client.agent.phases import Phase
from guest_client.agent.signing import parse_secret, signature_headers

from ..guest.documents import MIGRATED, document

T0, T1 = "2026-11-23T02:37:30.112Z", "2026-11-23T02:37:31.870Z"
VALIDATOR = jsonschema.Draft202012Validator(
    event_schema(), format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
)


def trigger(**changes: Any) -> Trigger:
    what = {
        "key": "k1", "phase": Phase.MIGRATED, "reason": "migrated", "changes": ("host",),
        "sentence": "it moved", "detected_at": T0, "source": "watch",
        "before": document(), "after": document(MIGRATED), **changes,
    }  # fmt: skip
    return Trigger(1, TriggerState.PLANNED, NewTrigger(**what), T0, old_agent_id="old")


RUN = Run("r", 1, "meter", 1, T0, T1, Result(Outcome.FAILED, exit_code=3, problem="exit code 3"))


def test_the_schema_is_one_and_the_example_fits_it() -> None:
    jsonschema.Draft202012Validator.check_schema(event_schema())
    VALIDATOR.validate(event_example())
    post = webhooks()["agentIdRegenerated"]["post"]
    assert post["requestBody"]["content"].keys() == {"application/cloudevents+json"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"before": None, "after": None, "reason": "manual", "changes": ()},
        {"phase": Phase.CLONED, "reason": "cloned"},
        {"phase": Phase.REVERTED, "reason": "reverted"},
        {"after": document({"vm.uuid": "not a UUID / at all"})},
    ],
)
def test_every_event_fits_the_schema(changes: dict[str, Any]) -> None:
    accounts = [
        Account("meter", JobState.FAILED, (RUN,)),
        Account("late", JobState.CANCELLED, ()),
    ]
    event = compose(trigger(**changes), accounts, "new", T1, "node1")
    VALIDATOR.validate(json.loads(encode(event)))
    assert event["data"]["programs"][0]["exit_code"] == 3
    assert event["data"]["agent_id"] == {"old": "old", "new": "new", "regenerated": True}


def test_a_schema_that_lets_nothing_else_pass() -> None:
    event = event_example()
    del event["data"]["agent_id"]
    assert not VALIDATOR.is_valid(event)
    event = event_example()
    event["type"] = "vm-enabler.agent.migrating.v1"
    assert not VALIDATOR.is_valid(event)


def test_it_says_the_true_machines_and_its_vm() -> None:
    event = compose(trigger(), [], None, T1, "node1")
    assert event["source"] == "urn:uuid:11111111-0000-4000-8000-000000000001"
    assert event["type"] == "vm-enabler.agent.migrated.v1"
    assert event["subject"] == "old"
    assert event["data"]["old"]["machine"]["serial_number"] == "78AAAAA"
    assert event["data"]["new"]["machine"]["serial_number"] == "78BBBBB"
    assert not event["data"]["agent_id"]["regenerated"]


@given(st.text(min_size=1), st.text(min_size=1))
def test_an_event_id_is_the_triggers_own(one: str, other: str) -> None:
    assert event_id(one) == event_id(one)
    assert (event_id(one) == event_id(other)) == (one == other)


def test_the_signature_is_the_conventions() -> None:
    # The convention's own test vector, as its libraries have it.
    key = parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")
    headers = signature_headers(
        key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "does not begin"),
        ("whsec_!!!", "not base64"),
        ("whsec_" + base64.b64encode(b"short").decode(), "has 5 bytes"),
        ("whsec_" + base64.b64encode(bytes(65)).decode(), "has 65 bytes"),
    ],
)
def test_a_bad_secret_is_refused_without_being_told(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        parse_secret(text)
    assert text.removeprefix("whsec_") not in str(caught.value)
