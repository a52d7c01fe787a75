"""The arguments of ``enabler fleet``. Nothing of the fleet is loaded by them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_FILES: dict[str, Any] = {"type": Path, "nargs": "+", "action": "extend", "metavar": "FILE"}


def add(commands: Any, parents: Sequence[argparse.ArgumentParser]) -> None:
    """Add each command of ``enabler fleet``; ``fleet_command`` in the options names it."""

    def command(name: str, summary: str, more: str = "") -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(
            name,
            parents=list(parents),
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.{' ' if more else ''}{more}",
        )
        parser.set_defaults(fleet_command=name)
        return parser

    where = command(
        "where",
        "show on which machine a VM is, or was at some time",
        "Exit code 1 if it is known on none.",
    )
    where.add_argument("vm", metavar="VM", help="its UUID or name")
    where.add_argument("--at", type=moment, metavar="TIME", help="then (RFC 3339), not now")

    vms = command("vms", "show all VMs, and on which machine each is")
    vms.add_argument("--host", metavar="HOST", help="those of this host: its UUID or name")
    vms.add_argument(
        "--gone", action="store_true", help="also those that are nowhere: stopped, or taken away"
    )

    history = command("history", "show on which machines a VM was, and when")
    history.add_argument("vm", metavar="VM", help="its UUID or name")
    history.add_argument("--events", action="store_true", help="show each event, not the stays")

    command("hosts", "show all hosts, and which of them are heard of")

    watch = command("watch", "show what happens in the fleet, as it happens")
    watch.add_argument("--host", metavar="HOST", help="on this host: its UUID or name")
    watch.add_argument("--vm", metavar="VM", help="to this VM: its UUID or name")

    capacity = command(
        "capacity",
        "show, for each VM and hour, the largest machine that it ran on",
        "What sub-capacity licences are billed by. Hours are of UTC.",
    )
    capacity.add_argument("--from", dest="begin", type=moment, required=True, metavar="TIME")
    capacity.add_argument("--to", dest="end", type=moment, metavar="TIME", help="(default: now)")
    capacity.add_argument("--csv", action="store_true", help="print CSV")
    capacity.add_argument(
        "--jwks",
        **_FILES,
        help="the hosts' public keys, from `enabler keys export`: what none of them signed does "
        "not count; without, every event is taken at its word",
    )

    audit = command(
        "audit",
        "hold what the hosts told against their signatures, each other, and the VMs' histories",
        "Exit code 1 if something does not fit.",
    )
    audit.add_argument(
        "--jwks",
        **_FILES,
        help="the hosts' public keys, from `enabler keys export`; without, signatures are only "
        "looked for",
    )
    audit.add_argument(
        "--tolerance",
        type=_positive,
        default=5,
        metavar="SECONDS",
        help="by how much two hosts' clocks may differ (default: 5)",
    )
    audit.add_argument(
        "--history",
        **_FILES,
        default=[],
        help="what VMs gave out (`guest-client history --json`): held against what hosts told",
    )
    audit.add_argument("--vm", metavar="VM", help="only what was told of this VM")
    audit.add_argument(
        "--since",
        type=moment,
        metavar="TIME",
        help="only what did not fit from then on (RFC 3339): what was before has been looked at",
    )

    forget = command(
        "forget",
        "take VMs that are gone, or hosts that were scrapped, out of the present",
        "Their history stays. For who may set up the servers. What is here after all is told anew.",
    )
    forget.add_argument("names", nargs="*", metavar="VM", help="its UUID or name")
    forget.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="HOST",
        help="a host that is not up, and the VMs that were last on it: its UUID or name",
    )
    forget.add_argument("--dry-run", action="store_true", help="say what would be done; do nothing")

    setup = command(
        "setup",
        "make the stream and the buckets on the servers, or change them to what is asked for",
        "What is so already stays. No event is lost but to a shorter --days or --max-bytes.",
    )
    setup.add_argument("--dry-run", action="store_true", help="say what would be done; do nothing")
    setup.add_argument(
        "--replicas",
        type=int,
        choices=range(1, 6),
        metavar="N",
        help="copies of everything, 1 to 5 (default: 3 in a cluster, else 1)",
    )
    setup.add_argument(
        "--days", type=_positive, default=400, metavar="N", help="keep events for (default: 400)"
    )
    setup.add_argument(
        "--max-bytes",
        type=_positive,
        metavar="N",
        help="keep no more than that; the oldest make room (default: any number)",
    )
    setup.add_argument(
        "--duplicate-minutes",
        type=_positive,
        default=10,
        metavar="N",
        help="know an event that is sent again for that long (default: 10); readers always know it",
    )


def moment(text: str) -> datetime:
    """Read a time: RFC 3339, UTC if it says nothing else; a date is its first moment."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time such as 2026-11-25T12:00:00Z or 2026-11-25"
        ) from None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return number
