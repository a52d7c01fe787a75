"""The event that the management infrastructure gets: CloudEvents 1.0, structured JSON. Pure.

Its ID is made from the trigger's key, so that it is the same at each try, after each restart, and
in a VM that was reverted to before it was sent: a receiver that knows the ID has the event already.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from guest_client.agent.model import JobState, Run, Trigger
from guest_client.agent.phases import Phase

CONTENT_TYPE = "application/cloudevents+json"
TYPE_PREFIX = "vm-enabler.agent."
TYPE_SUFFIX = ".v1"

_NAMESPACE = uuid.UUID("6f1d6e0a-5b6b-4c0e-9a51-0d6f3d0c7a41")
_IDENTITY_MEMBERS = ("component_id", "machine", "capacity", "vm", "residency")


@dataclass(frozen=True)
class Account:
    """What became of one program: its job, and the runs that there were, in order."""

    name: str
    state: JobState
    runs: tuple[Run, ...]


def event_id(key: str) -> str:
    """Give the ID of the event of a trigger."""
    return str(uuid.uuid5(_NAMESPACE, key))


def event_type(phase: Phase) -> str:
    """Give an event's type."""
    return f"{TYPE_PREFIX}{phase}{TYPE_SUFFIX}"


def compose(
    trigger: Trigger,
    accounts: Sequence[Account],
    new_agent_id: str | None,
    completed_at: str,
    node: str,
) -> dict[str, Any]:
    """Compose the event of a trigger whose programs have all come to their end.

    ``node`` names this guest where no identity does.
    """
    what = trigger.what
    vm = (what.after or {}).get("vm", {})
    return {
        "specversion": "1.0",
        "id": event_id(what.key),
        "source": _source(vm.get("uuid"), node),
        "type": event_type(what.phase),
        "subject": new_agent_id or trigger.old_agent_id or vm.get("name") or node,
        "time": completed_at,
        "datacontenttype": "application/json",
        "data": {
            "trigger": {
                "key": what.key,
                "phase": str(what.phase),
                "reason": what.reason,
                "changes": list(what.changes),
                "sentence": what.sentence,
                "source": what.source,
                "detected_at": what.detected_at,
                "recorded_at": trigger.recorded_at,
                "completed_at": completed_at,
            },
            "agent_id": {
                "old": trigger.old_agent_id,
                "new": new_agent_id,
                "regenerated": new_agent_id is not None and new_agent_id != trigger.old_agent_id,
            },
            "old": _identity(what.before),
            "new": _identity(what.after),
            "programs": [_program(account) for account in accounts],
        },
    }


def encode(event: Mapping[str, Any]) -> bytes:
    """Write an event down, once and for all: what is signed and sent is these bytes."""
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def _source(vm_uuid: object, node: str) -> str:
    if isinstance(vm_uuid, str):
        try:
            return uuid.UUID(vm_uuid).urn
        except ValueError:
            return f"//guest-client/vm/{quote(vm_uuid, safe='')}"
    return f"//guest-client/node/{quote(node, safe='')}"


def _identity(document: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if document is None:
        return None
    return {member: document[member] for member in _IDENTITY_MEMBERS}


def _program(account: Account) -> dict[str, Any]:
    last = account.runs[-1] if account.runs else None
    return {
        "name": account.name,
        "outcome": str(account.state),
        "tries": len(account.runs),
        "exit_code": last.result.exit_code if last else None,
        "signal": last.result.signal if last else None,
        "problem": last.result.problem if last else None,
        "started_at": account.runs[0].started_at if account.runs else None,
        "ended_at": last.ended_at if last else None,
    }
