"""An event as the fleet has it: a CloudEvent 1.0 in structured JSON, signed. Pure.

    id         HOST-SPOOL-NUMBER: unique in the fleet, and the same however often it is sent
    source     urn:uuid:HOST
    type       vm-enabler.fleet.KIND.v1
    subject    the VM's UUID; not there if the event is the host's
    time       when it happened, by the host's clock
    data       `enabler.documents.EventDocument`, without what stands above, and more (below)
    signature  a JWS without its content (RFC 7515, appendix F), of the rest of the event in the
               canonical form of RFC 8785; ``typ`` is `TYPE`

The signature is a member beside the others, not a JWS around them, so that everybody can read the
event as it is, and it is not there twice. It covers the envelope too: nobody can give an event
another ID, host or time. What there is in ``data`` beyond the document:

    component_id   the host component ID of the host that says it
    order          the stay's place among the VM's stays (`enabler.history.order`)
    machine        the machine identity                      } arrival, present,
    capacity       what licences count of it                 } host-started, host-seen
    carried        the SHA-256 of the last entry of the history that the VM brought (arrival,
                   present), null if it brought none; ``flaw``, if the history does not hold
    noticed        true: it had happened before the enabler started, at some time until then
    entry          an entry of the VM's history, as the host signed it (recorded)
    host           how the host calls itself, its enabler's version and boot ID (host-started,
                   host-stopped, host-seen)
    interval, vms, waiting, last
                   seconds between two signs of life; VMs here; events that are not sent yet; the
                   number of the last one (host-seen, host-stopped)
    lost           how many events were given up, and of which time (events-lost)

Its subject on NATS is ``enabler.HOST.VM.KIND``, with ``-`` for the VM of the host's own events.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from sys import intern
from typing import Any, NoReturn
from uuid import UUID

from enabler.documents import timestamp

PREFIX = "enabler"
"""What all subjects begin with."""
STREAM = "ENABLER"
VMS = "enabler-vms"
"""The bucket of the VMs: their last event each, by UUID."""
HOSTS = "enabler-hosts"
"""The bucket of the hosts: their last sign of life each, by UUID."""

TYPE = "vm-enabler-event+jws"
"""The ``typ`` of an event's signature."""
CONTENT_TYPE = "application/cloudevents+json"

LARGEST = 64 * 1024
"""Bytes of an event that is read; ours have some 1,500."""
_MOST_BRACKETS = 400
"""In an event that is read; ours have ten and those of a VM's name. More may nest too deep."""
_MOST_SECONDS = 1 << 31
_LARGEST_SIZE = 1 << 63
_SIZES = ("sockets", "cores_per_socket", "threads_per_core", "memory_bytes")

NOBODY = "-"
"""Stands for the VM in the subject of a host's own event."""

ARRIVALS = frozenset({"arrival", "present"})
DEPARTURE = "departure"
RECORDED = "recorded"
HOST_STARTED = "host-started"
HOST_STOPPED = "host-stopped"
HOST_SEEN = "host-seen"
"""A sign of life. In the bucket of the hosts only, not in the stream."""
EVENTS_LOST = "events-lost"
"""The spool was full, and its oldest events made room."""
REFUSED = "refused"
"""The servers refused this host's events for a while."""

_PREFIX, _SUFFIX = "vm-enabler.fleet.", ".v1"


class MalformedEvent(ValueError):
    """What was read is no event of ours."""


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """Which event of a host it is. ``spool`` is when the spool was made: a later one is greater."""

    spool: str
    number: int


@dataclass(frozen=True)
class Event:
    """One event. Two with the same `id` are the same event."""

    id: str
    host: str
    kind: str
    vm: str | None
    time: datetime
    mark: Mark
    data: Mapping[str, Any]
    signature: str | None = None

    def with_signature(self, signature: str | None) -> Event:
        """Return it with another signature."""
        return replace(self, signature=signature)

    @property
    def residency(self) -> str | None:
        """The ID of the stay that it tells of."""
        stay = self.data.get("residency")
        return None if stay is None else str(stay["id"])

    @property
    def name(self) -> str | None:
        """The VM's name."""
        vm = self.data.get("vm")
        return None if vm is None else str(vm["name"])

    @property
    def component_id(self) -> str:
        """The host component ID of the host that says it."""
        return str(self.data["component_id"])

    @cached_property
    def since(self) -> datetime:
        """When the stay began."""
        return moment(self.data["residency"]["since"])

    @property
    def claim(self) -> tuple[int, str, Mark]:
        """What of two events of a VM the later one has more of, whichever came first.

        The later stay counts (`order`), and of one stay the host's later word. It is a total
        order: whoever takes the greatest of some events gets the same one however they came.
        """
        return int(self.data["order"]), self.residency or "", self.mark

    @property
    def here(self) -> bool:
        """Whether the VM is on the host after this event, so far as the host knows."""
        return self.kind != DEPARTURE

    @property
    def topic(self) -> str:
        """The subject it is published to."""
        return f"{PREFIX}.{self.host}.{self.vm or NOBODY}.{self.kind}"

    def content(self) -> bytes:
        """Return what is signed: all but the signature, in canonical form.

        RFC 8785 for what there is in it: objects with ASCII names, texts, whole numbers, true,
        false, null.
        """
        return json.dumps(
            self._envelope(), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()

    def encode(self) -> bytes:
        """Return it as JSON."""
        content = self._envelope()
        if self.signature is not None:
            content["signature"] = self.signature
        return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()

    def _envelope(self) -> dict[str, Any]:
        content: dict[str, Any] = {
            "specversion": "1.0",
            "id": self.id,
            "source": f"urn:uuid:{self.host}",
            "type": f"{_PREFIX}{self.kind}{_SUFFIX}",
        }
        if self.vm is not None:
            content["subject"] = self.vm
        return content | {
            "time": timestamp(self.time),
            "datacontenttype": "application/json",
            "data": self.data,
        }


def make(
    host: str, vm: str | None, kind: str, time: datetime, mark: Mark, data: Mapping[str, Any]
) -> Event:
    """Return a new event, not signed."""
    return Event(f"{host}-{mark.spool}-{mark.number}", host, kind, vm, time, mark, data)


def parse(raw: bytes) -> Event:
    """Read what `Event.encode` gave, and see that all is there that makes it an event.

    Whoever has a host's credentials can send anything: what is returned every reader can take.
    Its signature is verified elsewhere (`enabler.fleet.audit`). Raises `MalformedEvent`.
    """
    if len(raw) > LARGEST:
        raise MalformedEvent(f"it has {len(raw)} bytes")
    if raw.count(b"[") + raw.count(b"{") > _MOST_BRACKETS:
        raise MalformedEvent("it is nested too deep")
    try:
        content = json.loads(raw, parse_constant=_refuse)
        if b"\\ud" in raw.lower():  # ours has none: half a character can be read, not written
            json.dumps(content, ensure_ascii=False).encode()
        kind = _between(content["type"], _PREFIX, _SUFFIX)
        host = str(UUID(_between(content["source"], "urn:uuid:", "")))
        vm = content.get("subject")
        spool, _, number = _between(content["id"], f"{host}-", "").partition("-")
        if not (number.isascii() and number.isdecimal()):
            raise MalformedEvent("its ID has no number")
        event = Event(
            id=content["id"],
            host=host,
            kind=kind,
            vm=None if vm is None else str(UUID(vm)),
            time=moment(content["time"]),
            mark=Mark(intern(spool), int(number)),
            data=_checked(content["data"], vm is not None and kind != RECORDED),
            signature=_typed(content.get("signature"), str),
        )
    except MalformedEvent:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MalformedEvent(f"it is not as an event is ({error!r:.80})") from error
    return event


def moment(text: str) -> datetime:
    """Return a time that was written as RFC 3339. Raises `ValueError`."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    try:
        return at.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{text} is out of range") from error


def _checked(data: Any, of_stay: bool) -> Mapping[str, Any]:
    if not isinstance(data["component_id"], str):
        raise MalformedEvent("it names no host component ID")
    if of_stay:
        stay, order = data["residency"], data["order"]
        texts = (stay["id"], stay["arrived_by"], data["vm"]["name"])
        if type(order) is not int or not all(isinstance(text, str) for text in texts):
            raise MalformedEvent("it names no stay")
        moment(stay["since"])
    for part in ("machine", "host", "migration"):
        _typed(data.get(part), dict)
    capacity = _typed(data.get("capacity"), dict)
    if capacity is not None and not all(
        type(capacity[size]) is int and 0 <= capacity[size] < _LARGEST_SIZE for size in _SIZES
    ):
        raise MalformedEvent("its capacity is none")
    interval = _typed(data.get("interval"), int | float)
    if interval is not None and not 0 <= interval <= _MOST_SECONDS:
        raise MalformedEvent("its interval is none")
    return dict(data)


def _typed(value: Any, kind: Any) -> Any:
    """Return what is of a kind, or None."""
    if value is not None and not isinstance(value, kind):
        raise MalformedEvent(f"{value!r:.80} is out of place in it")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _between(text: str, before: str, after: str) -> str:
    if not (text.startswith(before) and text.endswith(after)):
        raise MalformedEvent(f"{text!r:.80} is not {before}…{after}")
    return text[len(before) : len(text) - len(after)]
