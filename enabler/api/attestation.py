"""An attestation as a response, and the keys to verify it with."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from enabler.api import problems, state
from enabler.documents import AttestationRequest, KeySetDocument
from enabler.errors import (
    ContentTooLarge,
    EnablerError,
    HypervisorError,
    MalformedRequest,
    SigningUnavailable,
    VmArriving,
    VmLeaving,
)

MEDIA_TYPE = "application/jose"
"""A JWS in compact form (RFC 7515, 9.2.1)."""

LARGEST_BODY = 4096
"""Bytes; the longest request that the contract allows has some 450."""

_EXAMPLE = "eyJhbGciOiJFZERTQSIsImtpZCI6Imd…fQ.eyJpc3MiOiJzaGEyNTY6M2YwYzF…fQ.bL2m1Zq0qS9y8v…"

REQUEST: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/AttestationRequest"}}
        },
    }
}
"""For ``openapi_extra``: the body is read here, within a limit, and not by FastAPI."""

router = APIRouter(tags=["service"], generate_unique_id_function=problems.operation_id)


@router.get(
    "/.well-known/jwks.json",
    summary="The keys to verify attestations with",
    responses=problems.responses(SigningUnavailable),
)
async def jwks(request: Request) -> KeySetDocument:
    """Give the public half of every key that this host signs or ever signed with (RFC 7517).

    The present one is the first. Whoever audits takes them by a way that no guest can touch, such
    as `enabler keys export`.
    """
    return KeySetDocument.model_validate({"keys": state.of(request).attestor.public_keys()})


def documented(*refusals: type[EnablerError]) -> dict[int | str, dict[str, Any]]:
    """Return the responses of an attestation for the OpenAPI document."""
    return {
        200: {
            "description": "A JWS in compact form (RFC 7515), algorithm EdDSA (Ed25519), `typ` "
            "`vm-enabler-attestation+jwt`. Its payload has the schema AttestationClaims.",
            "content": {MEDIA_TYPE: {"schema": {"type": "string"}, "example": _EXAMPLE}},
        },
        **problems.responses(
            *refusals,
            MalformedRequest,
            ContentTooLarge,
            HypervisorError,
            VmArriving,
            VmLeaving,
            SigningUnavailable,
        ),
    }


async def respond(request: Request, vm_uuid: str) -> Response:
    """Return 200 with the attestation of a VM's identity, for what the request's body asks."""
    asked = await _asked(request)
    found = state.of(request)
    answer, observed_at = await found.inventory.identity(vm_uuid)
    token = found.attestor.attest(answer, observed_at, asked, datetime.now(UTC))
    return Response(token, 200, {"Cache-Control": "no-store"}, MEDIA_TYPE)


async def _asked(request: Request) -> AttestationRequest:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > LARGEST_BODY:
            raise ContentTooLarge(
                f"a request for an attestation has at most {LARGEST_BODY} bytes; "
                'send {"nonce": "…"}, and a digest in place of the report'
            )
    try:
        return AttestationRequest.model_validate_json(bytes(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise MalformedRequest(
            f'{where}: {first["msg"]}; send {{"nonce": "…"}} with 16 to 256 letters and digits'
        ) from error
