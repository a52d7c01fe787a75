"""Every error as a problem document (RFC 9457), and the pages that its ``type`` refers to."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from enabler import errors
from enabler.api import watching
from enabler.documents import ProblemDocument

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

MEDIA_TYPE = "application/problem+json"

_PAGES: dict[str, str] = {
    "caller-unknown": (
        "403. The address that the request came from belongs to no virtual machine that lives on "
        "this host, or to more than one. Ask from inside a VM: over vsock, over its interface on "
        "the host-only network, or with a token. The host's admin finds the reason in its "
        "log and can run 'enabler doctor'."
    ),
    "token-needed": (
        "401. Callers are known by a token alone here, and the request showed none. Send "
        "'Authorization: Bearer TOKEN'; the host's admin makes a token with 'enabler enroll VM'."
    ),
    "token-refused": (
        "401. The token is no virtual machine's that lives on this host, or another's than the "
        "caller's. After 'enabler enroll VM' only the new token is good. The host's admin finds "
        "the reason in the enabler's log."
    ),
    "forwarded-request": (
        "403. The request carries Forwarded, Via, X-Forwarded-… or X-Real-IP: it went through a "
        "proxy, and whom it comes from can't be told any more. Ask directly."
    ),
    "malformed-host": "400. A request names the host it is meant for, once (RFC 9112, 3.2).",
    "misdirected-request": (
        "421. The request's Host is not this listener's address, as happens when a name that "
        "somebody else owns leads here. Ask by the address, as in http://169.254.77.1:8777; "
        "the host's admin can allow further names (allowed_hosts)."
    ),
    "too-many-requests": (
        "429. Each caller may ask so many times a second. Retry-After says when to ask again; "
        "who wants to know of a change at once waits for it (Prefer: wait=N)."
    ),
    "too-many-connections": (
        "503. A caller may hold a few connections, and all together a great many. "
        "Close one, or ask again later."
    ),
    "request-timeout": "408. The request was not complete in time. Send it at once.",
    "uri-too-long": "414. The request's target is longer than any there is here.",
    "header-fields-too-large": "431. The request's header is longer than is taken here.",
    "vm-not-found": (
        "404. There is no such virtual machine, as far as the caller may know. "
        "A guest may ask for itself alone."
    ),
    "malformed-uuid": "400. A VM's UUID has the form 11111111-2222-3333-4444-555555555555.",
    "too-many-waits": (
        "429. Each VM may have a few requests that wait for a change, and the host a great many. "
        "End one, or ask without waiting."
    ),
    "too-many-streams": (
        "429. As many programs read this host's events as may at a time. End one."
    ),
    "vm-arriving": (
        "503. The VM is migrating to this host and does not run here yet. Ask again in a second."
    ),
    "vm-leaving": (
        "503. The VM has been switched over to another host. "
        "Ask again: the next answer comes from there."
    ),
    "hypervisor-unavailable": (
        "503. Libvirt can't be asked, and an old answer is not repeated. Ask again in a second; "
        "if it stays, the host's admin should run 'enabler doctor'."
    ),
    "signing-unavailable": (
        "503. The host has no signing key that can be used, so that nothing can be attested; "
        "its identity is told as ever. The host's admin finds the reason with 'enabler keys list'."
    ),
    "content-too-large": "413. The request's body is longer than the contract allows.",
    "not-found": "404. There is no such resource. Guests read /v1/identity.",
    "method-not-allowed": ("405. The resource can't be asked that way; the Allow header says how."),
    "bad-request": "400. The request is not what the OpenAPI document says.",
    "internal-error": "500. The enabler failed. Its log has the details.",
}


class Problem(Response):
    """A problem as a response: counted and logged as it goes out, with its request's ID."""

    def __init__(self, content: str, status: int, headers: dict[str, str], name: str) -> None:
        super().__init__(content, status, headers, MEDIA_TYPE)
        self.name = name
        self.reason = ""
        """What the log is told."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        listener = watching.of(scope)
        if listener is not None:
            given = listener.refused(scope, self.status_code, self.name, self.reason)
            self.raw_headers.append((watching.REQUEST_ID, given))
        await super().__call__(scope, receive, send)


def problem(
    status: int, name: str, title: str, detail: str, headers: dict[str, str] | None = None
) -> Problem:
    """Return a problem as a response."""
    document = ProblemDocument(type=f"/problems/{name}", title=title, status=status, detail=detail)
    all_headers = {"Cache-Control": "no-store"} | (headers or {})
    made = Problem(document.model_dump_json(), status, all_headers, name)
    made.reason = detail
    return made


def of_error(error: errors.EnablerError) -> Problem:
    """Return one of our errors as a response."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.challenge is not None:
        headers["WWW-Authenticate"] = error.challenge
    made = problem(error.status, error.problem, error.title, str(error), headers)
    made.reason = error.reason or made.reason
    return made


def responses(*kinds: type[errors.EnablerError]) -> dict[int | str, dict[str, Any]]:
    """Return these errors as the OpenAPI document wants them: one entry per status."""
    found: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        names = [each.problem for each in kinds if each.status == kind.status]
        found[kind.status] = {
            "description": ", ".join(dict.fromkeys(names)),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
        }
        if kind.challenge is not None:
            found[kind.status]["headers"] = {
                "WWW-Authenticate": {
                    "description": "`Bearer`, as RFC 6750 has it.",
                    "schema": {"type": "string"},
                }
            }
        if kind.retry_after is not None:
            found[kind.status]["headers"] = {
                "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}
            }
    return found


def operation_id(route: APIRoute) -> str:
    """Return the OpenAPI ``operationId`` of a route: its function's name."""
    return route.name


router = APIRouter(tags=["service"], generate_unique_id_function=operation_id)


@router.get(
    "/problems/{name}",
    response_class=PlainTextResponse,
    summary="What a problem's `type` means",
    responses=responses(errors.VmNotFound) | {404: {"description": "not-found"}},
)
async def page(name: str) -> Response:
    """Describe a kind of problem, in plain text."""
    if name not in _PAGES:
        return problem(404, "not-found", "Not found", f"there is no problem {name!r}")
    return PlainTextResponse(_PAGES[name] + "\n")


def install(app: FastAPI) -> None:
    """Make every error of ``app`` a problem document."""
    app.include_router(router)
    app.add_exception_handler(errors.EnablerError, _on_enabler_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_bug)


async def _on_enabler_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, errors.EnablerError)
    return of_error(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    name = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "bad-request")
    detail = {
        404: f"there is nothing at {request.url.path} on this listener",
        405: f"{request.method} is not possible here",
    }.get(error.status_code, str(error.detail))
    made = problem(error.status_code, name, title, detail, dict(error.headers or {}))
    made.reason = title  # a path may be anything
    return made


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return problem(400, "bad-request", "Bad request", f"{where}: {first['msg']}")


async def _on_bug(_: Request, __: Exception) -> Response:
    return problem(500, "internal-error", "The enabler failed", "the enabler's log has the details")
