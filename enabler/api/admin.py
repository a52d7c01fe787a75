"""The admin listener, a Unix socket: every VM, and the host. The file system guards it."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, FastAPI, Request, Response

from enabler import errors
from enabler.api import identity, problems, service
from enabler.documents import HostDocument, IdentityDocument, VmListDocument
from enabler.inventory import Inventory


def router(inventory: Inventory, host: Callable[[], HostDocument]) -> APIRouter:
    """Return the routes. ``host`` describes the host as it is now."""
    routes = APIRouter(tags=["admin"])

    @routes.get("/v1/host", summary="This host")
    async def get_host() -> HostDocument:
        """Describe the host: identity, capacity, the state of libvirt."""
        return host()

    @routes.get(
        "/v1/vms",
        summary="The VMs of this host",
        responses=problems.responses(errors.HypervisorError),
    )
    async def get_vms() -> VmListDocument:
        """List every VM that is known here, those that arrive or leave included."""
        if inventory.failure is not None:
            raise inventory.failure
        return VmListDocument(vms=inventory.summaries())

    @routes.get(
        "/v1/vms/{vm_uuid}/identity",
        summary="A VM's identity",
        response_model=IdentityDocument,
        responses=identity.documented(
            errors.VmNotFound,
            errors.MalformedUuid,
            errors.HypervisorError,
            errors.VmArriving,
            errors.VmLeaving,
        ),
    )
    async def get_identity(request: Request, vm_uuid: str) -> Response:
        """Show what the VM itself would be told."""
        answer, observed_at = await inventory.identity(identity.canonical_uuid(vm_uuid))
        return identity.respond(request, answer, observed_at)

    return routes


def app(inventory: Inventory, host: Callable[[], HostDocument]) -> FastAPI:
    """Return the admin listener's app."""
    made = FastAPI(
        title="vm-enabler, admin listener", openapi_url=None, docs_url=None, redoc_url=None
    )
    made.include_router(router(inventory, host))
    made.include_router(service.router(inventory))
    problems.install(made)
    return made
