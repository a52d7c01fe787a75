"""The admin listener, a Unix socket: every VM, and the host. The file system guards it."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Request, Response

from enabler import errors
from enabler.api import attestation, events, history, identity, metrics, problems, service, state
from enabler.documents import HistoryDocument, HostDocument, IdentityDocument, VmListDocument

router = APIRouter(tags=["admin"], generate_unique_id_function=problems.operation_id)


@router.get("/v1/host", summary="This host")
async def get_host(request: Request) -> HostDocument:
    """Describe the host: identity, capacity, the state of libvirt."""
    return state.of(request).host()


@router.get(
    "/v1/vms",
    summary="The VMs of this host",
    responses=problems.responses(errors.HypervisorError),
)
async def get_vms(request: Request) -> VmListDocument:
    """List every VM that is known here, those that arrive or leave included."""
    inventory = state.of(request).inventory
    if inventory.failure is not None:
        raise inventory.failure
    return VmListDocument(vms=inventory.summaries())


@router.get(
    "/v1/vms/{vm_uuid}/identity",
    summary="A VM's identity",
    response_model=IdentityDocument,
    responses=identity.documented(
        errors.VmNotFound,
        errors.MalformedUuid,
        errors.TooManyWaits,
        errors.HypervisorError,
        errors.VmArriving,
        errors.VmLeaving,
    ),
)
async def get_identity(
    request: Request, vm_uuid: identity.VmUuid, condition: identity.Conditional
) -> Response:
    """Show what the VM itself would be told."""
    return await identity.respond(request, identity.canonical_uuid(vm_uuid), condition)


@router.post(
    "/v1/vms/{vm_uuid}/attestation",
    summary="A VM's identity, signed",
    response_class=Response,
    responses=attestation.documented(errors.VmNotFound, errors.MalformedUuid),
    openapi_extra=attestation.REQUEST,
)
async def get_attestation(request: Request, vm_uuid: identity.VmUuid) -> Response:
    """Give what the VM itself would be given."""
    return await attestation.respond(request, identity.canonical_uuid(vm_uuid))


@router.get(
    "/v1/vms/{vm_uuid}/history",
    summary="Where a VM has been",
    responses=history.documented(errors.VmNotFound, errors.MalformedUuid),
)
async def get_history(request: Request, vm_uuid: identity.VmUuid) -> HistoryDocument:
    """Show what the VM itself would be told."""
    return await history.history(request, identity.canonical_uuid(vm_uuid))


def app(everything: state.State) -> FastAPI:
    """Return the admin listener's app."""
    made = FastAPI(openapi_url=None)
    state.keep(made, everything)
    made.include_router(router)
    made.include_router(attestation.router)
    made.include_router(events.router)
    made.include_router(metrics.router)
    made.include_router(service.router)
    problems.install(made)
    return made
