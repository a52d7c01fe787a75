"""The event's JSON Schema (2020-12, as OpenAPI 3.1 has it) and an example. Pure data.

For the OpenAPI document's ``webhooks``: :func:`webhooks` gives the whole of that member.
"""

from __future__ import annotations

from typing import Any

from guest_client.agent.event import CONTENT_TYPE, event_id, event_type
from guest_client.agent.model import JobState
from guest_client.agent.phases import Phase

_TOLD = [phase for phase in Phase if phase.told]
_TIME = {"type": "string", "format": "date-time", "examples": ["2026-11-23T02:40:01.337Z"]}
_TIME_OR_NULL = {"type": ["string", "null"], "format": "date-time"}
_TEXT_OR_NULL = {"type": ["string", "null"]}


def event_schema() -> dict[str, Any]:
    """Give the schema of the event that goes to the management infrastructure."""
    return _object(
        {
            "specversion": {"const": "1.0"},
            "id": {
                "type": "string",
                "format": "uuid",
                "description": "The same at each try: what has this ID is this event.",
            },
            "source": {
                "type": "string",
                "format": "uri-reference",
                "description": "The VM: urn:uuid: and its UUID.",
            },
            "type": {"enum": [event_type(phase) for phase in _TOLD]},
            "subject": {
                "type": "string",
                "minLength": 1,
                "description": "The agent ID from now on, where there is one.",
            },
            "time": _TIME,
            "datacontenttype": {"const": "application/json"},
            "data": _data(),
        },
        "An agent ID regeneration, as a CloudEvents 1.0 event in structured JSON.",
    )


def _data() -> dict[str, Any]:
    return _object(
        {
            "trigger": _object(
                {
                    "key": {
                        "type": "string",
                        "description": "The same for all who saw this migration.",
                    },
                    "phase": {"enum": [str(phase) for phase in _TOLD]},
                    "reason": {
                        "enum": ["migrated", "returned", "cloned", "reverted", "manual"],
                    },
                    "changes": {
                        "type": "array",
                        "items": {"type": "string"},
                        "description": "All that differs, the weightiest first.",
                    },
                    "sentence": {"type": "string", "description": "The reason, for people."},
                    "source": {"type": "string", "description": "Who saw it: scan, watch, hand."},
                    "detected_at": _TIME,
                    "recorded_at": _TIME,
                    "completed_at": _TIME,
                }
            ),
            "agent_id": _object(
                {
                    "old": _TEXT_OR_NULL,
                    "new": _TEXT_OR_NULL,
                    "regenerated": {"type": "boolean"},
                }
            ),
            "old": _identity("Where the VM was; null if that is not known."),
            "new": _identity("Where the VM is; null if that is not known."),
            "programs": {
                "type": "array",
                "description": "What became of each registered program, in the order of running.",
                "items": _object(
                    {
                        "name": {"type": "string"},
                        "outcome": {
                            "enum": [str(state) for state in JobState if state.resolved],
                            "description": "failed: every try failed.",
                        },
                        "tries": {"type": "integer", "minimum": 0},
                        "exit_code": {
                            "type": ["integer", "null"],
                            "description": "Of the last try; null if a signal ended it.",
                        },
                        "signal": _TEXT_OR_NULL,
                        "problem": _TEXT_OR_NULL,
                        "started_at": _TIME_OR_NULL,
                        "ended_at": _TIME_OR_NULL,
                    }
                ),
            },
        }
    )


def _identity(description: str) -> dict[str, Any]:
    count = {"type": "integer", "minimum": 1}
    text = {"type": "string", "minLength": 1}
    whole = _object(
        {
            "component_id": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"},
            "machine": _object(
                {
                    "manufacturer": _TEXT_OR_NULL,
                    "type": _TEXT_OR_NULL,
                    "model": _TEXT_OR_NULL,
                    "serial_number": text,
                    "uuid": _TEXT_OR_NULL,
                }
            ),
            "capacity": _object(
                {
                    "cpu_model": _TEXT_OR_NULL,
                    "sockets": count,
                    "cores_per_socket": count,
                    "threads_per_core": count,
                    "memory_bytes": count,
                }
            ),
            "vm": _object(
                {
                    "uuid": text,
                    "name": text,
                    "generation_id": _TEXT_OR_NULL,
                    "vcpus": count,
                    "memory_bytes": count,
                }
            ),
            "residency": _object(
                {
                    "id": text,
                    "since": _TIME,
                    "arrived_by": {
                        "enum": ["start", "migration", "restore", "snapshot", "unknown"]
                    },
                }
            ),
        }
    )
    return {"description": description, "oneOf": [whole, {"type": "null"}]}


def _object(properties: dict[str, Any], description: str | None = None) -> dict[str, Any]:
    """Make an object all of whose members are there; more may come in time."""
    made: dict[str, Any] = {
        "type": "object",
        "required": list(properties),
        "properties": properties,
    }
    return made if description is None else {"description": description, **made}


def event_example() -> dict[str, Any]:
    """Give one event as it is sent: a VM that moved from one host to another."""
    key = "6c9d1f2b7a3e4850b1c2d3e4f5a60718"
    return {
        "specversion": "1.0",
        "id": event_id(key),
        "source": "urn:uuid:11111111-2222-4333-8444-555555555555",
        "type": event_type(Phase.MIGRATED),
        "subject": "0a51c6f8-3f0e-4c0b-9a0e-1b7d5a3c9e42",
        "time": "2026-11-23T02:37:31.870Z",
        "datacontenttype": "application/json",
        "data": {
            "trigger": {
                "key": key,
                "phase": "migrated",
                "reason": "migrated",
                "changes": ["host", "residency"],
                "sentence": "the VM moved to another host: IBM 9040-MR9 78ABCDE, then IBM 9040-MR9"
                " 78FGHIJ",
                "source": "watch",
                "detected_at": "2026-11-23T02:37:30.112Z",
                "recorded_at": "2026-11-23T02:37:30.113Z",
                "completed_at": "2026-11-23T02:37:31.870Z",
            },
            "agent_id": {
                "old": "d4b6f7e0-6d39-4a5d-8f51-2f0c3b9a7e11",
                "new": "0a51c6f8-3f0e-4c0b-9a0e-1b7d5a3c9e42",
                "regenerated": True,
            },
            "old": _example_identity("3f", "78ABCDE", "aaaaaaaa", "2026-11-20T08:00:00.000Z"),
            "new": _example_identity("9b", "78FGHIJ", "bbbbbbbb", "2026-11-23T02:37:29.304Z"),
            "programs": [
                {
                    "name": "agent-id",
                    "outcome": "ok",
                    "tries": 1,
                    "exit_code": 0,
                    "signal": None,
                    "problem": None,
                    "started_at": "2026-11-23T02:37:30.120Z",
                    "ended_at": "2026-11-23T02:37:30.302Z",
                },
                {
                    "name": "meter",
                    "outcome": "ok",
                    "tries": 2,
                    "exit_code": 0,
                    "signal": None,
                    "problem": None,
                    "started_at": "2026-11-23T02:37:30.310Z",
                    "ended_at": "2026-11-23T02:37:31.866Z",
                },
            ],
        },
    }


def _example_identity(digest: str, serial: str, uuid: str, since: str) -> dict[str, Any]:
    return {
        "component_id": f"sha256:{digest * 32}",
        "machine": {
            "manufacturer": "IBM",
            "type": "9040",
            "model": "MR9",
            "serial_number": serial,
            "uuid": f"{uuid}-0000-4000-8000-000000000001",
        },
        "capacity": {
            "cpu_model": "POWER10",
            "sockets": 2,
            "cores_per_socket": 12,
            "threads_per_core": 8,
            "memory_bytes": 1 << 40,
        },
        "vm": {
            "uuid": "11111111-2222-4333-8444-555555555555",
            "name": "db01",
            "generation_id": "23542354-0000-4000-8000-000000000001",
            "vcpus": 4,
            "memory_bytes": 8 << 30,
        },
        "residency": {
            "id": f"stay-{serial}",
            "since": since,
            "arrived_by": "start" if serial == "78ABCDE" else "migration",
        },
    }


def webhooks() -> dict[str, Any]:
    """Give the member ``webhooks`` of an OpenAPI 3.1 document."""
    header = {"in": "header", "required": False, "schema": {"type": "string"}}
    signed = "With a secret_file only: the Standard Webhooks convention."
    return {
        "agentIdRegenerated": {
            "post": {
                "operationId": "agentIdRegenerated",
                "summary": "A guest's registered programs have been run for a migration, a clone or"
                " a revert",
                "description": "Sent at least once, in order for each destination, until it is"
                " answered with 2xx. An event whose id is known has come before: answer 2xx and"
                " drop it. 410 ends the sending; after every other answer it is sent again.",
                "parameters": [
                    {"name": "webhook-id", "description": signed, **header},
                    {"name": "webhook-timestamp", "description": signed, **header},
                    {"name": "webhook-signature", "description": signed, **header},
                ],
                "requestBody": {
                    "required": True,
                    "content": {
                        CONTENT_TYPE: {
                            "schema": event_schema(),
                            "examples": {"migrated": {"value": event_example()}},
                        }
                    },
                },
                "responses": {
                    "2XX": {"description": "It has arrived."},
                    "410": {"description": "No more events are wanted."},
                    "429": {"description": "Too many; Retry-After is heeded, as it is with 503."},
                },
            }
        }
    }
