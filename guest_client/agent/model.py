"""What the state holds, as values. Pure.

Times of day that people see are RFC 3339; moments that are compared are seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guest_client.agent.phases import Phase
from guest_client.agent.settings import Program
from guest_client.compat import StrEnum
from guest_client.identity import Identity


class Owner(StrEnum):
    """Who registered a program, which is who deregisters it."""

    PERSON = "person"
    """`agent register`; stays until `agent deregister`."""
    RUN = "run"
    """The configuration, the command line of `agent run`, or what is built in: stays while that
    agent runs."""


@dataclass(frozen=True)
class Registration:
    """A registered program."""

    program: Program
    owner: Owner
    registered_at: str


@dataclass(frozen=True)
class Known:
    """The identity that was last seen, and what was going on with it."""

    identity: Identity
    migrating: bool = False
    """A migration away was seen to begin, and not to end."""
    attempts: int = 0
    """How many migrations were seen to begin in this residency."""
    noted_at: str = ""
    """When it was put into the state; empty before."""


@dataclass(frozen=True)
class NewTrigger:
    """A reason to act, before it is in the state.

    ``key`` is the same for whoever sees the same migration. ``before`` and ``after`` are whole
    identity documents; a trigger by hand may have neither.
    """

    key: str
    phase: Phase
    reason: str
    changes: tuple[str, ...]
    sentence: str
    detected_at: str
    source: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


class TriggerState(StrEnum):
    """How far a trigger has come."""

    RECORDED = "recorded"
    """On disk; who is to be run for it is not settled."""
    PLANNED = "planned"
    """Its jobs are on disk."""
    DONE = "done"
    """Every job has come to its end, and the event is in the outbox."""
    SUPERSEDED = "superseded"
    """It belongs to the VM that this one was cloned from, which deals with it itself."""


@dataclass(frozen=True)
class Trigger:
    """A trigger in the state. ``seq`` is its place in the order of recording."""

    seq: int
    state: TriggerState
    what: NewTrigger
    recorded_at: str
    old_agent_id: str | None = None
    new_agent_id: str | None = None
    planned_at: str | None = None
    completed_at: str | None = None
    event_id: str | None = None


class JobState(StrEnum):
    """How far one program has come for one trigger."""

    DUE = "due"
    RUNNING = "running"
    OK = "ok"
    FAILED = "failed"
    """It has had all its tries."""
    CANCELLED = "cancelled"
    """It was deregistered by a person first."""

    @property
    def resolved(self) -> bool:
        """Whether nothing more will come of it."""
        return self not in (JobState.DUE, JobState.RUNNING)


@dataclass(frozen=True)
class Job:
    """One program to be run for one trigger: once, however often it is tried."""

    trigger: int
    position: int
    name: str
    state: JobState
    tries: int
    """How many runs were begun."""
    tries_allowed: int
    not_before: float = 0.0
    """Seconds since 1970."""


class Outcome(StrEnum):
    """What became of one run."""

    RUNNING = "running"
    OK = "ok"
    FAILED = "failed"
    """An exit code other than 0, or a signal."""
    TIMEOUT = "timeout"
    UNSTARTED = "unstarted"
    """It could not be started: no such program, no such user."""
    INTERRUPTED = "interrupted"
    """The agent ended, or died, before the program did."""


@dataclass(frozen=True)
class Result:
    """How one run ended; all but ``outcome`` can be unknown."""

    outcome: Outcome
    exit_code: int | None = None
    signal: str | None = None
    problem: str | None = None
    """One line for people; ``None`` when all went well."""
    output: str = ""
    """The end of what it printed."""


@dataclass(frozen=True)
class Run:
    """One run in the state."""

    id: str
    trigger: int
    name: str
    number: int
    """1 for the first try."""
    started_at: str
    ended_at: str | None
    result: Result


@dataclass(frozen=True)
class Event:
    """An event as it is sent: its ID, and the bytes of the whole."""

    id: str
    body: bytes


@dataclass(frozen=True)
class Delivery:
    """One event on its way to one destination."""

    seq: int
    event_id: str
    url: str
    body: bytes
    tries: int


@dataclass(frozen=True)
class Road:
    """How things stand with one destination: what is undelivered, and why."""

    url: str
    waiting: int = 0
    failures: int = 0
    """Tries that failed since the last that did not."""
    not_before: float = 0.0
    gone: bool = False
    """It answered 410: no more is sent until a person says so."""
    problem: str | None = None
