"""The guest listener: a VM sees itself, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterable

from fastapi import APIRouter, FastAPI, Request, Response

from enabler import errors, tokens
from enabler.api import attestation, history, identity, problems, service, state, waiting
from enabler.api.connection import Connection
from enabler.api.front import Front
from enabler.documents import HistoryDocument, IdentityDocument

_STRANGER_COST = 9
"""Requests that being refused costs, beside the one it is: strangers make more work than VMs."""

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
    return await _answer(request, await caller(request), condition)


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
    own = await caller(request)
    if wanted != own:
        raise errors.VmNotFound(f"no VM {wanted} that you may ask about")
    return await _answer(request, own, condition)


@router.post(
    "/v1/identity/attestation",
    summary="The caller's own identity, signed",
    response_class=Response,
    responses=attestation.documented(errors.CallerUnknown, errors.TokenNeeded, errors.TokenRefused),
    openapi_extra=attestation.REQUEST,
)
async def own_attestation(request: Request) -> Response:
    """Give the calling VM proof, for others, of which real machine it runs on."""
    vm_uuid = await caller(request)
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
    vm_uuid = await caller(request)
    try:
        return await history.history(request, vm_uuid)
    except errors.VmNotFound:
        raise _left() from None


async def caller(request: Request) -> str:
    """Return the UUID of the VM that is asking.

    Raises what `Callers.identify` raises, `TooManyRequests` and `TooManyConnections`.
    """
    vm_uuid = await _identified(request)
    connection: Connection = request.state.connection
    seconds = connection.allowance.take(time.monotonic()) if connection.allowance else 0
    if seconds:
        raise errors.TooManyRequests(seconds)
    return vm_uuid


async def _identified(request: Request) -> str:
    found = state.of(request)
    connection: Connection = request.state.connection
    token = tokens.of_headers(request.headers.getlist("authorization"))
    vm_uuid = found.known_caller(connection, token)
    if vm_uuid is None:
        version = found.callers.version(connection.channel)
        try:
            vm_uuid = await found.callers.identify(connection.channel, token)
        except (errors.CallerUnknown, errors.TokenNeeded, errors.TokenRefused):
            connection.stranger_allowance.drain(time.monotonic(), _STRANGER_COST)
            raise
        found.door.recognise(connection, vm_uuid)
        # The version from before: if it changed meanwhile, the next request finds out anew.
        connection.settle(version, token, vm_uuid)
    return vm_uuid


async def _answer(request: Request, vm_uuid: str, condition: identity.Condition) -> Response:
    async def still() -> None:
        # While it waited, its token may have been made void, or its address another's.
        if await _identified(request) != vm_uuid:
            raise _left()

    try:
        return await identity.respond(request, vm_uuid, condition, _as_left, still)
    except errors.VmNotFound as error:
        raise _as_left(error) from None


def _as_left(error: errors.EnablerError) -> errors.EnablerError:
    return _left() if isinstance(error, errors.VmNotFound) else error


def _left() -> errors.CallerUnknown:
    # Its address is known here and it is not: it left, or stopped, this very moment.
    return errors.CallerUnknown("the calling VM does not live on this host")


def app(everything: state.State, allowed_hosts: Iterable[str] = ()) -> Front:
    """Return the guest listener's app. It serves no documentation: guests are not all friends."""
    made = FastAPI(openapi_url=None)
    state.keep(made, everything)
    made.include_router(router)
    made.include_router(attestation.router)
    made.include_router(service.router)
    problems.install(made)
    return Front(waiting.Holding(made), everything, allowed_hosts)
