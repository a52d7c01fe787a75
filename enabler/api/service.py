"""What both listeners answer about the enabler itself."""

from __future__ import annotations

from fastapi import APIRouter

from enabler.api.problems import responses
from enabler.documents import HealthDocument
from enabler.errors import HypervisorError
from enabler.inventory import Inventory


def router(inventory: Inventory) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["service"])

    @routes.get("/healthz", summary="Alive")
    async def healthz() -> HealthDocument:
        """Answer as long as the process does."""
        return HealthDocument()

    @routes.get("/readyz", summary="Able to tell the truth", responses=responses(HypervisorError))
    async def readyz() -> HealthDocument:
        """Answer 200 if libvirt answers and every VM has been looked at; else 503, and why."""
        await inventory.ready()
        return HealthDocument()

    return routes
