"""What both listeners answer about the enabler itself."""

from __future__ import annotations

from fastapi import APIRouter, Request

from enabler.api import state
from enabler.api.problems import operation_id, responses
from enabler.documents import HealthDocument
from enabler.errors import HypervisorError

router = APIRouter(tags=["service"], generate_unique_id_function=operation_id)


@router.get("/healthz", summary="Alive")
async def healthz() -> HealthDocument:
    """Answer as long as the process does."""
    return HealthDocument()


@router.get("/readyz", summary="Able to tell the truth", responses=responses(HypervisorError))
async def readyz(request: Request) -> HealthDocument:
    """Answer 200 if libvirt answers and every VM has been looked at; else 503, and why."""
    await state.of(request).inventory.ready()
    return HealthDocument()
