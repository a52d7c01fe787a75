"""The arguments of ``guest-client verify``."""

from __future__ import annotations

import argparse
import re
import time
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

from guest_client.arguments import AddCommand, checked, file_name, parse_nonce
from guest_client.errors import UsageError

EXIT_CODES = """\
exit codes:
  0          proven
  1          refused: what was found is said, with a short word for programs
  64         the command line is wrong
  66         a file can't be read
  78         a file of keys is none, or the extra audit is not installed
"""
_AGE = re.compile(r"(\d{1,9})([smhd]?)", re.ASCII)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def add_verify(commands: Any) -> argparse.ArgumentParser:
    """Add ``verify`` to the commands of a parser."""
    summary = "prove a scan's report by its attestations; for the auditor, offline"
    parser: argparse.ArgumentParser = commands.add_parser(
        "verify",
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}. Says what was proven, and what was not.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("report", metavar="REPORT", type=checked(file_name), help="the report (scan --report)")
    add_keys(parser, required=True)
    add("--output", metavar="FILE", type=checked(file_name), help="the scan's output, to compare")
    add("--vm", metavar="UUID", type=checked(_uuid), help="the VM that it must be of")
    add("--nonce", metavar="NONCE", type=checked(parse_nonce), help="as in scan --attest-nonce")
    add(
        "--max-age",
        metavar="AGE",
        type=checked(_age),
        help="refuse attestations that are older: 90d, 12h, 30m or seconds",
    )
    add(
        "--at",
        metavar="TIME",
        type=checked(_at),
        default=None,
        help="the time at which they must be good (RFC 3339; default: now)",
    )
    add("--json", action="store_true", help="print what was found as JSON")
    return parser


def add_history(commands: Any, add_command: AddCommand) -> argparse.ArgumentParser:
    """Add ``history`` to the commands of a parser."""
    parser = add_command(
        commands,
        "history",
        "show where this VM has been, and when, as its hosts have signed it",
        epilog=EXIT_CODES.replace("proven\n", "shown; with --verify, whole and verified\n")
        .replace("refused:", "with --verify, not whole:")
        .replace("  66 ", "  69, 77     as with scan\n  66 "),
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        type=checked(file_name),
        help="read it from what --json printed before, not from the enabler",
    )
    parser.add_argument(
        "--verify", action="store_true", help="verify signatures and links, with the keys of --jwks"
    )
    add_keys(parser, required=False)
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the document as it was sent; with --verify, what was found",
    )
    return parser


def check_history(options: argparse.Namespace) -> None:
    """See that the options go together; raises :class:`UsageError`."""
    if options.verify and not options.jwks:
        raise UsageError("--verify needs the hosts' public keys; name them with --jwks FILE")
    if options.jwks and not options.verify:
        raise UsageError("--jwks needs --verify, which says what for")


def add_keys(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add ``--jwks``."""
    parser.add_argument(
        "--jwks",
        metavar="FILE",
        nargs="+",
        action="extend",
        required=required,
        default=None,
        type=checked(file_name),
        help="the hosts' public keys, from `enabler keys export`; may be repeated",
    )


def now_unless(at: float | None) -> float:
    """Give the time that was named, or that of day."""
    return time.time() if at is None else at


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise ValueError(f"should be a UUID, not {text!r}") from None


def _age(text: str) -> float:
    match = _AGE.fullmatch(text)
    if match is None:
        raise ValueError(f"should be an age such as 90d, 12h, 30m or 600, not {text!r}")
    return float(match[1]) * _SECONDS[match[2]]


def _at(text: str) -> float:
    try:
        moment = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))  # Python 3.11 can itself
    except ValueError:
        raise ValueError(f"should be a time such as 2026-11-25T12:00:00Z, not {text!r}") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
