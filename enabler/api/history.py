"""Where a VM has been, as a response."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import Request

from enabler.api import problems, state
from enabler.documents import HistoryDocument
from enabler.errors import (
    EnablerError,
    HypervisorError,
    SigningUnavailable,
    VmArriving,
    VmLeaving,
)


def documented(*refusals: type[EnablerError]) -> dict[int | str, dict[str, Any]]:
    """Return the refusals of a history for the OpenAPI document."""
    return problems.responses(*refusals, HypervisorError, VmArriving, VmLeaving, SigningUnavailable)


async def history(request: Request, vm_uuid: str) -> HistoryDocument:
    """Return the history of a VM that lives here, with this host's statement of it."""
    found = state.of(request)
    carried, stay = await found.inventory.history(vm_uuid)
    statement = found.archive.statement(carried, vm_uuid, stay, datetime.now(UTC))
    return HistoryDocument(
        vm_uuid=vm_uuid,
        checkpoint=carried.checkpoint,
        entries=list(carried.entries),
        statement=statement,
    )
