"""What the routes of an app work with, and how they come by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fastapi import FastAPI, Request

from enabler.api.waiting import Waits
from enabler.attestation import Attestor
from enabler.callers import Callers
from enabler.documents import HostDocument
from enabler.history import Archive
from enabler.inventory import Inventory


@dataclass(frozen=True, slots=True)
class State:
    """Everything behind the routes, made once by `enabler.service`."""

    inventory: Inventory
    callers: Callers
    interfaces: Mapping[str, int | None]
    """The interface index behind each local address that is listened on; ``*`` for a wildcard."""
    host: Callable[[], HostDocument]
    """Describes the host as it is now."""
    attestor: Attestor
    archive: Archive
    waits: Waits = field(default_factory=Waits)


def keep(app: FastAPI, state: State) -> None:
    """Give the state to an app."""
    app.state.enabler = state


def of(request: Request) -> State:
    """Return the state of the app that a request came to."""
    state: State = request.app.state.enabler
    return state
