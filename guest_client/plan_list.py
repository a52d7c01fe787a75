"""What ``guest-client plans`` prints: the ready-made plans, and what of them is installed here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from typing import Any

from guest_client.plan import (
    Plan,
    PlannedModule,
    load_plan,
    ready_made_names,
    ready_made_text,
)


def print_plans(name: str | None, *, as_json: bool) -> int:
    """List all of them, or print the one that is named; gives the exit code.

    Raises :class:`~guest_client.errors.UsageError` when there is no plan of that name.
    """
    text = None if name is None else ready_made_text(name)
    plans = [load_plan(known) for known in ready_made_names() if name in (None, known)]
    if as_json:
        print(json.dumps(as_document(plans), indent=2))
    elif text is not None:
        print(text, end="")
    else:
        print(as_text(plans))
    return 0


def as_document(plans: Sequence[Plan]) -> dict[str, Any]:
    """Give the list as JSON has it."""
    return {
        "plans": [
            {
                "name": plan.name,
                "description": plan.description,
                "modules": [_entry(module) for module in plan.modules],
            }
            for plan in plans
        ]
    }


def as_text(plans: Sequence[Plan]) -> str:
    """Give the list for people: a line for each plan, and for each of its modules."""
    width = max(len(module.name) for plan in plans for module in plan.modules)
    lines = []
    for plan in plans:
        lines.append(f"{plan.name}: {plan.description}")
        for module in plan.modules:
            here = "installed" if _installed(module) else "-"
            about = "of the machine" if module.host_dependent else "of the VM"
            lines.append(f"  {module.name:<{width}}  {here:<9}  {about:<14}  {module.description}")
    return "\n".join(lines)


def _entry(module: PlannedModule) -> dict[str, Any]:
    return {
        "name": module.name,
        "description": module.description,
        "command": list(module.command),
        "output": module.output,
        "host_dependent": module.host_dependent,
        "optional": module.optional,
        "installed": _installed(module),
    }


def _installed(module: PlannedModule) -> bool:
    return shutil.which(module.command[0]) is not None
