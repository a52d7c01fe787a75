"""What a program is told: the same facts as JSON on its standard input and in its environment.

Pure. The names are those that a scan's notify program gets (``triggers.py``), so that one program
serves both: ``TRIGGER_KEY``, ``_REASON``, ``_DETECTED_AT``, ``_VM_UUID``, ``_VM_NAME``, and with
``OLD`` and ``NEW``: ``_COMPONENT_ID``, ``_MANUFACTURER``, ``_TYPE``, ``_MODEL``,
``_SERIAL_NUMBER``, ``_UUID``, ``_RESIDENCY_ID``, ``_GENERATION_ID``. The agent adds
``TRIGGER_PHASE``, ``_SENTENCE``, ``_SOURCE``, ``_PROGRAM``, ``_TRY`` and ``_RUN``. What is not
known is an empty string.

They don't begin with ``GUEST_CLIENT_``, as those are settings, and an unknown setting is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guest_client.agent.model import NewTrigger
from guest_client.text import printable
from guest_client.triggers import VERSION

RUN_VARIABLE = "TRIGGER_RUN"
"""Marks every process of a run, so that an agent finds what a dead one left behind."""
KEY_VARIABLE = "TRIGGER_KEY"

_NOT_OURS_TO_GIVE = (
    # systemd's to the agent alone: a program that spoke to these would speak for the agent.
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
)


def facts(trigger: NewTrigger, program: str, number: int) -> dict[str, Any]:
    """Give the facts as a program reads them; ``number`` is 1 for its first try."""
    return {
        "trigger_version": VERSION,
        "key": trigger.key,
        "phase": str(trigger.phase),
        "reason": trigger.reason,
        "changes": list(trigger.changes),
        "sentence": trigger.sentence,
        "detected_at": trigger.detected_at,
        "source": trigger.source,
        "before": trigger.before,
        "after": trigger.after,
        "program": program,
        "try": number,
    }


def environment(
    inherited: Mapping[str, str], trigger: NewTrigger, program: str, number: int, run_id: str
) -> dict[str, str]:
    """Give the environment that a program runs in."""
    found: dict[str, str | None] = {
        "KEY": trigger.key,
        "PHASE": str(trigger.phase),
        "REASON": trigger.reason,
        "SENTENCE": trigger.sentence,
        "DETECTED_AT": trigger.detected_at,
        "SOURCE": trigger.source,
        "PROGRAM": program,
        "TRY": str(number),
        "VM_UUID": _member(trigger.after, "vm", "uuid"),
        "VM_NAME": _member(trigger.after, "vm", "name"),
    }
    for when, document in (("OLD", trigger.before), ("NEW", trigger.after)):
        found[f"{when}_COMPONENT_ID"] = _member(document, "component_id")
        for member in ("manufacturer", "type", "model", "serial_number", "uuid"):
            found[f"{when}_{member.upper()}"] = _member(document, "machine", member)
        found[f"{when}_RESIDENCY_ID"] = _member(document, "residency", "id")
        found[f"{when}_GENERATION_ID"] = _member(document, "vm", "generation_id")
    ours = {f"TRIGGER_{name}": printable(value or "", 4096) for name, value in found.items()}
    rest = {name: value for name, value in inherited.items() if name not in _NOT_OURS_TO_GIVE}
    return {**rest, **ours, RUN_VARIABLE: run_id}


def _member(document: Mapping[str, Any] | None, *path: str) -> str | None:
    value: Any = document
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else None
