"""The guest listener: a VM sees itself, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter, FastAPI, Request, Response

from enabler import errors
from enabler.api import identity, problems, service
from enabler.callers import Callers, Channel
from enabler.documents import IdentityDocument
from enabler.inventory import Inventory

Interfaces = Mapping[str, int | None]
"""The interface index behind each local address that is listened on."""


def router(inventory: Inventory, callers: Callers, interfaces: Interfaces) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["guest"])

    async def caller_of(request: Request) -> str:
        client, server = request.client, request.scope.get("server")
        if client is None or server is None:
            raise errors.CallerUnknown("this channel says nothing of its caller")
        index = interfaces.get(server[0], interfaces.get("*"))
        return await callers.identify(Channel(client.host, index))

    async def answer(request: Request, vm_uuid: str) -> Response:
        try:
            found, observed_at = await inventory.identity(vm_uuid)
        except errors.VmNotFound:
            # Its address is known here and it is not: it left, or stopped, this very moment.
            raise errors.CallerUnknown("the calling VM does not live on this host") from None
        return identity.respond(request, found, observed_at)

    @routes.get(
        "/v1/identity",
        summary="The caller's own identity",
        response_model=IdentityDocument,
        responses=identity.documented(
            errors.CallerUnknown, errors.HypervisorError, errors.VmArriving, errors.VmLeaving
        ),
    )
    async def own_identity(request: Request) -> Response:
        """Tell the calling VM which real machine it runs on."""
        return await answer(request, await caller_of(request))

    @routes.get(
        "/v1/vms/{vm_uuid}/identity",
        summary="The same by UUID",
        response_model=IdentityDocument,
        responses=identity.documented(
            errors.CallerUnknown,
            errors.VmNotFound,
            errors.MalformedUuid,
            errors.HypervisorError,
            errors.VmArriving,
            errors.VmLeaving,
        ),
    )
    async def identity_by_uuid(request: Request, vm_uuid: str) -> Response:
        """Tell the calling VM the same; 404 for any other VM than itself, whether there is one or
        not.
        """
        wanted = identity.canonical_uuid(vm_uuid)
        caller = await caller_of(request)
        if wanted != caller:
            raise errors.VmNotFound(f"no VM {wanted} that you may ask about")
        return await answer(request, caller)

    return routes


def app(inventory: Inventory, callers: Callers, interfaces: Interfaces) -> FastAPI:
    """Return the guest listener's app. It serves no documentation: guests are not all friends."""
    made = FastAPI(
        title="vm-enabler, guest listener", openapi_url=None, docs_url=None, redoc_url=None
    )
    made.include_router(router(inventory, callers, interfaces))
    made.include_router(service.router(inventory))
    problems.install(made)
    return made
