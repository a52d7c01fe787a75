"""What the routes of an app work with, and how they come by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request

from enabler.api.connection import Connection, Door
from enabler.api.figures import Figures
from enabler.api.streams import Streams
from enabler.api.waiting import Waits
from enabler.attestation import Attestor
from enabler.callers import Callers
from enabler.documents import HostDocument
from enabler.history import Archive
from enabler.inventory import Inventory
from enabler.tally import Tally

if TYPE_CHECKING:
    from enabler.fleet.counters import Counters


@dataclass(frozen=True, slots=True)
class State:
    """Everything behind the routes, made once by `enabler.service`."""

    inventory: Inventory
    callers: Callers
    door: Door
    """The guests' connections."""
    host: Callable[[], HostDocument]
    """Describes the host as it is now."""
    attestor: Attestor
    archive: Archive
    waits: Waits = field(default_factory=Waits)
    streams: Streams = field(default_factory=Streams)
    tally: Tally = field(default_factory=Tally)
    figures: Figures = field(default_factory=Figures)
    fleet: Counters | None = None
    """What the publisher counts; None without ``--fleet``."""

    def known_caller(self, connection: Connection, bearer: str | None) -> str | None:
        """Return the VM that is asking, if nothing need be found out for it; else None.

        Raises `TooManyConnections` if this connection is one too many of it.
        """
        version = self.callers.version(connection.channel)
        vm_uuid = connection.caller(version, bearer)
        if vm_uuid is None:
            vm_uuid = self.callers.known(connection.channel, bearer, version)
            if vm_uuid is not None:
                self.door.recognise(connection, vm_uuid)
                connection.settle(version, bearer, vm_uuid)
        return vm_uuid


def keep(app: FastAPI, state: State) -> None:
    """Give the state to an app."""
    app.state.enabler = state


def of(request: Request) -> State:
    """Return the state of the app that a request came to."""
    state: State = request.app.state.enabler
    return state
