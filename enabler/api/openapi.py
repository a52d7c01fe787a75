"""The contract as one OpenAPI 3.1 document, made from the routes of both listeners."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi

from enabler.api import (
    admin,
    attestation,
    connection,
    events,
    front,
    guest,
    metrics,
    problems,
    service,
)
from enabler.api.problems import MEDIA_TYPE
from enabler.documents import (
    AttestationClaims,
    AttestationRequest,
    EventDocument,
    ProblemDocument,
)
from enabler.errors import EnablerError

_GUEST = {
    "url": "http://169.254.77.1:8777",
    "description": "Guest listener: the same address, with the same MAC, on every host. "
    "A VM is known by its address and sees itself alone.",
}
_ADMIN = {
    "url": "http://localhost",
    "description": "Admin listener: the Unix socket /run/enabler/admin.sock, as in "
    "`curl --unix-socket /run/enabler/admin.sock http://localhost/v1/vms`.",
}
_INFO = {
    "description": "Tells each virtual machine on a hypervisor host which real machine it runs on. "
    "Errors are problem details (RFC 9457). Readers must ignore members they do not know.",
    "license_info": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
}


def document() -> dict[str, Any]:
    """Return the OpenAPI document."""
    merged = _describe([], **_INFO)
    merged["paths"] = {}
    schemas = merged.setdefault("components", {}).setdefault("schemas", {})
    for server, routers in (
        (_GUEST, [guest.router, attestation.router, service.router, problems.router]),
        (
            _ADMIN,
            [
                admin.router,
                events.router,
                metrics.router,
                attestation.router,
                service.router,
                problems.router,
            ],
        ),
    ):
        part = _describe(routers)
        if server is _GUEST:
            for item in part["paths"].values():
                for operation in item.values():
                    _add(operation["responses"], front.REFUSALS, connection.REFUSALS)
        for path, item in part["paths"].items():
            # A path on both listeners is described once, as guests meet it.
            known = merged["paths"].setdefault(path, {**item, "servers": []})
            known["servers"].append(server)
        schemas |= part["components"]["schemas"]
    # What no route has as its own: read, signed, or streamed, by hand.
    for model in (ProblemDocument, AttestationRequest, AttestationClaims, EventDocument):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return merged


def _add(
    responses: dict[str, Any],
    kinds: tuple[type[EnablerError], ...],
    others: dict[int, str],
) -> None:
    """Add what any request may be answered, whatever it asks for."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    more = problems.responses(*kinds) | {
        status: {"description": name, "content": content} for status, name in others.items()
    }
    for status, added in more.items():
        known = responses.setdefault(str(status), added | {"description": ""})
        told = [*known["description"].split(", "), *added["description"].split(", ")]
        known["description"] = ", ".join(dict.fromkeys(filter(None, told)))


def _describe(routers: list[APIRouter], **info: Any) -> dict[str, Any]:
    routes = [route for router in routers for route in router.routes]
    described = get_openapi(title="vm-enabler", version="1", routes=routes, **info)
    for item in described["paths"].values():
        for operation in item.values():
            # What is wrong with a parameter is a 400 of ours, a problem like all others.
            if operation["responses"].pop("422", None) is not None:
                problem = {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}
                bad = operation["responses"].setdefault("400", {"content": {MEDIA_TYPE: problem}})
                told = (bad.get("description") or "").split(", ")
                bad["description"] = ", ".join(dict.fromkeys(filter(None, [*told, "bad-request"])))
    return described
