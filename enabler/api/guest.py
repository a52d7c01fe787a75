"""The guest listener: a VM sees itself, and nothing else."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Request, Response

from enabler import errors, tokens
from enabler.api import attestation, history, identity, problems, service, state
from enabler.callers import Channel
from enabler.documents import HistoryDocument, IdentityDocument

router = APIRouter(tags=["guest"], generate_unique_id_function=problems.operation_id)


@router.get(
    "/v1/identity",
    summary="The caller's own identity",
    response_model=IdentityDocument,
    responses=identity.documented(
        errors.CallerUnknown,
        errors.TokenNeeded,
        errors.TokenRefused,
        errors.TooManyWaits,
        errors.HypervisorError,
        errors.VmArriving,
        errors.VmLeaving,
    ),
)
async def own_identity(request: Request, condition: identity.Conditional) -> Response:
    """Tell the calling VM which real machine it runs on."""
    return await _answer(request, await _caller(request), condition)


@router.get(
    "/v1/vms/{vm_uuid}/identity",
    summary="The same by UUID",
    response_model=IdentityDocument,
    responses=identity.documented(
        errors.CallerUnknown,
        errors.TokenNeeded,
        errors.TokenRefused,
        errors.VmNotFound,
        errors.MalformedUuid,
        errors.TooManyWaits,
        errors.HypervisorError,
        errors.VmArriving,
        errors.VmLeaving,
    ),
)
async def identity_by_uuid(
    request: Request, vm_uuid: identity.VmUuid, condition: identity.Conditional
) -> Response:
    """Tell the calling VM the same. Any other VM is not found, whether there is one or not."""
    wanted = identity.canonical_uuid(vm_uuid)
    caller = await _caller(request)
    if wanted != caller:
        raise errors.VmNotFound(f"no VM {wanted} that you may ask about")
    return await _answer(request, caller, condition)


@router.post(
    "/v1/identity/attestation",
    summary="The caller's own identity, signed",
    response_class=Response,
    responses=attestation.documented(errors.CallerUnknown, errors.TokenNeeded, errors.TokenRefused),
    openapi_extra=attestation.REQUEST,
)
async def own_attestation(request: Request) -> Response:
    """Give the calling VM proof, for others, of which real machine it runs on."""
    vm_uuid = await _caller(request)
    try:
        return await attestation.respond(request, vm_uuid)
    except errors.VmNotFound:
        raise _left() from None


@router.get(
    "/v1/identity/history",
    summary="Where the caller has been",
    responses=history.documented(errors.CallerUnknown, errors.TokenNeeded, errors.TokenRefused),
)
async def own_history(request: Request) -> HistoryDocument:
    """Tell the calling VM on which hosts it has been, and when, in their own signed words."""
    vm_uuid = await _caller(request)
    try:
        return await history.history(request, vm_uuid)
    except errors.VmNotFound:
        raise _left() from None


async def _caller(request: Request) -> str:
    found = state.of(request)
    bearer = tokens.of_headers(request.headers.getlist("Authorization"))
    return await found.callers.identify(_channel(request, found), bearer)


def _channel(request: Request, found: state.State) -> Channel:
    client, server = request.client, request.scope.get("server")
    if client is None or server is None:
        raise errors.CallerUnknown("this channel says nothing of its caller")
    if client.host.isdigit():  # a CID, where an IP address has dots or colons
        return Channel(cid=int(client.host))
    return Channel(client.host, found.interfaces.get(server[0], found.interfaces.get("*")))


async def _answer(request: Request, vm_uuid: str, condition: identity.Condition) -> Response:
    try:
        return await identity.respond(request, vm_uuid, condition)
    except errors.VmNotFound:
        raise _left() from None


def _left() -> errors.CallerUnknown:
    # Its address is known here and it is not: it left, or stopped, this very moment.
    return errors.CallerUnknown("the calling VM does not live on this host")


def app(everything: state.State) -> FastAPI:
    """Return the guest listener's app. It serves no documentation: guests are not all friends."""
    made = FastAPI(openapi_url=None)
    state.keep(made, everything)
    made.include_router(router)
    made.include_router(attestation.router)
    made.include_router(service.router)
    problems.install(made)
    return made
