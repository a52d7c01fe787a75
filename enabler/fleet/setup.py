"""What the servers must have: the stream and the two buckets, made or brought to what is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from enabler.errors import FleetError
from enabler.fleet.bus import Bus
from enabler.fleet.event import HOSTS, LARGEST, PREFIX, STREAM, VMS

DAY = 86_400
_SETTINGS = (
    "subjects",
    "num_replicas",
    "max_age",
    "max_bytes",
    "max_msg_size",
    "duplicate_window",
    "max_msgs_per_subject",
    "discard",
    "allow_rollup_hdrs",
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the stream is to be. ``replicas`` None: 3 in a cluster, else 1; ``max_bytes`` None: as
    many as there is room for.
    """

    replicas: int | None = None
    days: int = 400
    max_bytes: int | None = None
    duplicate_minutes: int = 10


@dataclass(frozen=True, slots=True)
class Step:
    """What was done, or would be, to a stream."""

    stream: str
    action: str
    """``create``, ``update`` or ``keep``."""
    changes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Give it for programs."""
        return {"stream": self.stream, "action": self.action, "changes": list(self.changes)}


async def set_up(bus: Bus, wanted: Wanted, *, dry_run: bool) -> list[Step]:
    """Make the stream and the buckets, or change them; what is so already stays.

    Raises `FleetError`.
    """
    from nats.js.errors import APIError, NotFoundError

    replicas = wanted.replicas or (3 if _clustered(bus) else 1)
    steps = []
    for config in _configs(wanted, replicas):
        try:
            info = await bus.ask(bus.jetstream.stream_info(config.name or ""))
        except NotFoundError:
            steps.append(Step(config.name or "", "create"))
            if not dry_run:
                await _do(bus.jetstream.add_stream(config), bus)
            continue
        except APIError as error:
            raise _refusal(error) from error
        differ = _differ(info.config, config)
        changes = tuple(f"{name}: {was} -> {will}" for name, (was, will) in differ.items())
        steps.append(Step(config.name or "", "update" if differ else "keep", changes))
        if differ and not dry_run:
            changed = info.config.evolve(**{name: will for name, (_, will) in differ.items()})
            await _do(bus.jetstream.update_stream(changed), bus)
    return steps


def _differ(is_now: Any, wanted: Any) -> dict[str, tuple[Any, Any]]:
    """Return each setting that is to be changed: what it is, and what it will be."""
    found = {name: (getattr(is_now, name), getattr(wanted, name)) for name in _SETTINGS}
    # No limit is written as -1, 0 or nothing.
    return {
        name: (was, will)
        for name, (was, will) in found.items()
        if (None if was in (-1, 0) else was) != (None if will in (-1, 0) else will)
    }


def _clustered(bus: Bus) -> bool:
    # The server's INFO names its cluster where it has one (NATS client protocol).
    return bool(bus.client._server_info.get("cluster"))


def _configs(wanted: Wanted, replicas: int) -> list[Any]:
    from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

    def config(**more: Any) -> StreamConfig:
        return StreamConfig(
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            num_replicas=replicas,
            deny_delete=True,
            allow_direct=False,
            **more,
        )

    stream = config(
        name=STREAM,
        description="vm-enabler: what happens to VMs on all hosts",
        subjects=[f"{PREFIX}.*.*.*"],
        discard=DiscardPolicy.OLD,
        max_age=wanted.days * DAY,
        max_bytes=wanted.max_bytes or -1,
        max_msg_size=LARGEST,
        duplicate_window=wanted.duplicate_minutes * 60,
    )
    buckets = [
        config(
            name=f"KV_{bucket}",
            description=f"vm-enabler: {what}",
            subjects=[f"$KV.{bucket}.>"],
            discard=DiscardPolicy.NEW,
            max_msgs_per_subject=1,
            max_msg_size=LARGEST,
            # With roll-ups any host that may write one key could wipe the bucket.
            allow_rollup_hdrs=False,
            duplicate_window=120,
        )
        for bucket, what in ((VMS, "where each VM is"), (HOSTS, "how each host is"))
    ]
    return [stream, *buckets]


async def _do(question: Any, bus: Bus) -> None:
    from nats.js.errors import APIError

    try:
        await bus.ask(question)
    except APIError as error:
        raise _refusal(error) from error


def _refusal(error: Any) -> FleetError:
    return FleetError(
        f"the fleet's servers say: {error.description or error} ({error.err_code}); "
        "see that they have room, and as many nodes as --replicas"
    )
