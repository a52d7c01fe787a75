"""The identity document, as the guest reads it: checked and frozen. Pure.

The norm is ``openapi/openapi.yaml``. A document with a missing or ill-typed member is refused
whole: a scan must not be called consistent on the word of something half understood. Members that
this client does not know are left alone, since the contract may grow; :meth:`Identity.as_dict` has
them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, NoReturn, TypeVar

from guest_client.compat import StrEnum
from guest_client.errors import IdentityInvalid
from guest_client.times import parse_time

_COMPONENT_ID = re.compile(r"sha256:[0-9a-f]{64}\Z", re.ASCII)
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\Z", re.ASCII)


_Choice = TypeVar("_Choice", bound=StrEnum)


class Arrival(StrEnum):
    """How a VM came to be on its host."""

    START = "start"
    MIGRATION = "migration"
    RESTORE = "restore"
    SNAPSHOT = "snapshot"
    UNKNOWN = "unknown"


class MigrationState(StrEnum):
    """What is going on with the VM; whichever it is, the VM runs on this host."""

    NONE = "none"
    OUTGOING = "outgoing"
    """A migration away has begun and has not switched over."""
    POSTCOPY = "postcopy"
    """The VM runs here while its memory is still arriving."""


@dataclass(frozen=True)
class Machine:
    """The real machine: what its component ID is made of."""

    manufacturer: str | None
    type: str | None
    model: str | None
    serial_number: str
    uuid: str | None


@dataclass(frozen=True)
class Capacity:
    """What licences count on the real machine. ``memory_bytes`` is in bytes."""

    cpu_model: str | None
    sockets: int
    cores_per_socket: int
    threads_per_core: int
    memory_bytes: int


@dataclass(frozen=True)
class Vm:
    """The virtual machine that asked, and what it has been allotted of the real one."""

    uuid: str
    name: str
    generation_id: str | None
    vcpus: int
    memory_bytes: int


@dataclass(frozen=True)
class Residency:
    """One unbroken stay of the VM on the host. ``id`` is opaque: equal or not, nothing else."""

    id: str
    since: str
    arrived_by: Arrival


@dataclass(frozen=True)
class Migration:
    """The migration that is under way, if one is."""

    state: MigrationState


@dataclass(frozen=True)
class Identity:
    """One identity document. Times are RFC 3339, UTC, with milliseconds, as they were sent."""

    component_id: str
    machine: Machine
    capacity: Capacity
    vm: Vm
    residency: Residency
    migration: Migration
    observed_at: str
    raw: bytes = field(repr=False, compare=False)
    """The document's own bytes."""

    def as_dict(self) -> dict[str, Any]:
        """Give the whole document as it was read, members unknown here included."""
        document: dict[str, Any] = json.loads(self.raw)
        return document

    @property
    def migrating(self) -> bool:
        """Whether a migration was in progress when this was said."""
        return self.migration.state is not MigrationState.NONE


def parse_identity(raw: bytes) -> Identity:
    """Check a document and freeze it; raises :class:`IdentityInvalid` naming what is wrong."""
    try:
        document = json.loads(raw.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise IdentityInvalid("", f"is not JSON ({reason})") from error
    top = _Reader(document, "")
    machine, capacity, vm = top.object("machine"), top.object("capacity"), top.object("vm")
    residency, migration = top.object("residency"), top.object("migration")
    return Identity(
        component_id=top.matching(
            "component_id", _COMPONENT_ID, "is not sha256: and 64 hex digits"
        ),
        machine=Machine(
            manufacturer=machine.text_or_null("manufacturer"),
            type=machine.text_or_null("type"),
            model=machine.text_or_null("model"),
            serial_number=machine.text("serial_number"),
            uuid=machine.text_or_null("uuid"),
        ),
        capacity=Capacity(
            cpu_model=capacity.text_or_null("cpu_model"),
            sockets=capacity.count("sockets"),
            cores_per_socket=capacity.count("cores_per_socket"),
            threads_per_core=capacity.count("threads_per_core"),
            memory_bytes=capacity.count("memory_bytes"),
        ),
        vm=Vm(
            uuid=vm.text("uuid"),
            name=vm.text("name"),
            generation_id=vm.text_or_null("generation_id"),
            vcpus=vm.count("vcpus"),
            memory_bytes=vm.count("memory_bytes"),
        ),
        residency=Residency(
            id=residency.text("id"),
            since=residency.timestamp("since"),
            arrived_by=residency.one_of("arrived_by", Arrival),
        ),
        migration=Migration(state=migration.one_of("state", MigrationState)),
        observed_at=top.timestamp("observed_at"),
        raw=bytes(raw),
    )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _finite(text: str) -> float:
    """Refuse 1e999: Python makes an infinity of it, which no report could write as JSON again."""
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text} is too large a number")
    return number


class _Reader:
    """Takes members out of one JSON object and says by full path what is wrong with one."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, Mapping):
            raise IdentityInvalid(path, f"should be an object, not {_kind(value)}")
        self._value: Mapping[str, object] = value
        self._path = path

    def _name(self, member: str) -> str:
        return f"{self._path}.{member}" if self._path else member

    def _take(self, member: str) -> object:
        if member not in self._value:
            raise IdentityInvalid(self._name(member), "is missing")
        return self._value[member]

    def object(self, member: str) -> _Reader:
        return _Reader(self._take(member), self._name(member))

    def text(self, member: str) -> str:
        value = self._take(member)
        if not isinstance(value, str):
            raise IdentityInvalid(self._name(member), f"should be a string, not {_kind(value)}")
        if not value:
            raise IdentityInvalid(self._name(member), "is empty")
        return value

    def text_or_null(self, member: str) -> str | None:
        value = self._take(member)
        if value is not None and not isinstance(value, str):
            problem = f"should be a string or null, not {_kind(value)}"
            raise IdentityInvalid(self._name(member), problem)
        return value

    def count(self, member: str) -> int:
        value = self._take(member)
        # JSON's true is an int to Python; it is no count to anyone.
        if not isinstance(value, int) or isinstance(value, bool):
            raise IdentityInvalid(
                self._name(member), f"should be a whole number, not {_kind(value)}"
            )
        if value < 1:
            raise IdentityInvalid(self._name(member), "should be 1 or more")
        return value

    def matching(self, member: str, pattern: re.Pattern[str], problem: str) -> str:
        value = self.text(member)
        if not pattern.match(value):
            raise IdentityInvalid(self._name(member), problem)
        return value

    def timestamp(self, member: str) -> str:
        problem = "is not a UTC time like 2026-11-23T02:37:29.304Z"
        value = self.matching(member, _TIMESTAMP, problem)
        try:
            parse_time(value)
        except ValueError as error:
            raise IdentityInvalid(self._name(member), problem) from error
        return value

    def one_of(self, member: str, allowed: type[_Choice]) -> _Choice:
        value = self.text(member)
        try:
            return allowed(value)
        except ValueError as error:
            problem = f"should be one of {', '.join(allowed)}"
            raise IdentityInvalid(self._name(member), problem) from error


def _kind(value: object) -> str:
    kinds: dict[type, str] = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number with a fraction",
    }
    return "null" if value is None else kinds[type(value)]
