"""The arguments of ``guest-client scan`` and ``guest-client plans``, and how arguments are read."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guest_client import config
from guest_client.errors import UsageError
from guest_client.values import parse_command, parse_path, parse_seconds

_NONCE = re.compile(r"[A-Za-z0-9_.~+/=-]{16,256}")

AddCommand = Callable[..., argparse.ArgumentParser]

SCAN_USAGE = """\
guest-client scan [options] -- COMMAND [ARGUMENT...]
       guest-client scan [options] --output DIR --plan PLAN
       guest-client scan [options] --output DIR --module NAME=COMMAND..."""


def add_scan(commands: Any, add_command: AddCommand, exit_codes: str) -> argparse.ArgumentParser:
    """Add ``scan`` to the commands of a parser."""
    parser = add_command(
        commands,
        "scan",
        "run a scanner, and let its output pass only if the machine was the same throughout",
        usage=SCAN_USAGE,
        epilog=exit_codes,
    )
    _add_modules(parser.add_argument_group("modules, instead of one command"))
    _add_outputs(parser.add_argument_group("what becomes of the output"))
    _add_reactions(parser.add_argument_group("if the machine changes"))
    return parser


def _add_modules(group: Any) -> None:
    add = group.add_argument
    add(
        "--plan",
        metavar="PLAN",
        help="run the modules of a plan: a file (with a slash or .toml in its name), or a"
        " ready-made one (see `guest-client plans`)",
    )
    add(
        "--module",
        metavar="NAME=COMMAND",
        action="append",
        default=[],
        help="run this module, its command in the shell's quotes; after the plan's if there is"
        " one. May be repeated",
    )
    add(
        "--host-independent",
        metavar="NAME",
        action="append",
        default=[],
        help="what this --module finds does not depend on the real machine: a migration that does"
        " not cross it leaves it standing. May be repeated",
    )
    add(
        "--leave-out",
        metavar="NAME",
        action="append",
        default=[],
        help="do not run this module of the plan. May be repeated",
    )


def _add_outputs(group: Any) -> None:
    add = group.add_argument
    add(
        "--output",
        metavar="FILE",
        help="where the output goes (default: the standard output); of modules, the folder that is"
        " replaced as a whole by their outputs and a manifest.json",
    )
    add("--report", metavar="FILE", help="write a JSON report there, whatever comes of the scan")
    add(
        "--keep-inconsistent",
        metavar="FILE",
        help="put an output that is not published there (of modules, into a folder) instead of"
        " discarding it",
    )
    add(
        "--attest",
        action="store_true",
        help="have the host sign both reads, bound to the output: an auditor can then check the"
        " report with `guest-client verify`",
    )
    add(
        "--attest-nonce",
        metavar="NONCE",
        type=checked(parse_nonce),
        help="the auditor's nonce for the first of them, by which this scan is told from an older"
        " one (16 to 256 letters and digits; default: random)",
    )


def _add_reactions(group: Any) -> None:
    add = group.add_argument
    add(
        "--repeat-if-migrated",
        metavar="TIMES",
        nargs="?",
        type=checked(_times),
        const=3,
        default=0,
        help="when the machine changed inside the scan, repeat it (of modules, those that the"
        " change made untrue), up to TIMES (default: 3) times",
    )
    add(
        "--notify-if-migrated",
        action="store_true",
        help="when the VM was migrated (cloned, reverted), record a trigger and run the notify"
        " program, if there is one",
    )
    add(
        "--notify-program",
        metavar="COMMAND",
        type=checked(parse_command),
        help="the program to run for a trigger, one word in the shell's quotes with its arguments;"
        " it has the facts as JSON on its standard input and as TRIGGER_... in its environment",
    )
    add(
        "--state-dir",
        metavar="DIR",
        type=checked(parse_path),
        help=f"where triggers are kept (default: {config.DEFAULT_STATE_DIR})",
    )
    add(
        "--signal-if-migrated",
        metavar="SIG",
        type=checked(_signal),
        help="when the VM was migrated (cloned, reverted), send this signal, SIGHUP for one",
    )
    add(
        "--signal-pid",
        metavar="PID",
        type=checked(_pid),
        help="the process to signal (default: the parent)",
    )
    add(
        "--wait-if-migrating",
        metavar="SECONDS",
        type=checked(parse_seconds),
        help="while a migration is in progress, wait up to SECONDS for its end before the scan (of"
        " modules, before each); end with 75 and without it if that takes longer",
    )


def add_plans(commands: Any) -> argparse.ArgumentParser:
    """Add ``plans`` to the commands of a parser."""
    summary = "list the ready-made plans, and which of their programs are installed here"
    parser: argparse.ArgumentParser = commands.add_parser(
        "plans",
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        allow_abbrev=False,
    )
    parser.add_argument(
        "plan", metavar="PLAN", nargs="?", help="print this plan, to make one of your own of it"
    )
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    return parser


def check_scan(options: argparse.Namespace) -> bool:
    """See that the options go together; is it a modular scan? Raises :class:`UsageError`."""
    modular = options.plan is not None or bool(
        options.module or options.host_independent or options.leave_out
    )
    if modular and options.command is not None:
        raise UsageError("a scan is modules, or one command after --; leave out either")
    if modular and options.plan is None and not options.module:
        raise UsageError("there is no module to be run; name some with --plan or --module")
    if modular and options.output is None:
        raise UsageError("a set of modules goes to a folder; name it with --output DIR")
    if not modular and options.command is None:
        raise UsageError(
            "put the scanner after --, as in `guest-client scan -- lshw -json`, or name modules"
            " with --plan or --module"
        )
    if not modular and not options.command:
        raise UsageError("nothing follows the --; name the scanner there, with its arguments")
    if options.signal_pid is not None and options.signal_if_migrated is None:
        raise UsageError("--signal-pid needs --signal-if-migrated, which says the signal")
    if options.notify_program is not None and not options.notify_if_migrated:
        raise UsageError("--notify-program needs --notify-if-migrated, which says when")
    if options.attest_nonce is not None and not options.attest:
        raise UsageError("--attest-nonce needs --attest, which asks for attestations")
    if options.attest and options.report is None:
        raise UsageError("attestations go into the report; name it with --report FILE")
    if options.attest and modular:
        raise UsageError("--attest covers the output of one command; put it after --")
    return modular


def checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Let argparse show what a parser has to say; it hides the words of a mere ``ValueError``."""

    def parse_argument(text: str) -> Any:
        try:
            return parse(text)
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse_argument


def file_name(text: str) -> Path:
    """Read the name of a file."""
    if not text:
        raise ValueError("should be a file's name")
    return Path(text)


def _times(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1000):
        raise ValueError(f"should be 1 to 1000 times, not {text!r}")
    return int(text)


def _pid(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1 << 22):
        raise ValueError(f"{text!r} is no process number")
    return int(text)


def parse_nonce(text: str) -> str:
    """Read a nonce, as the contract has it."""
    if not _NONCE.fullmatch(text):
        raise ValueError("should be 16 to 256 letters and digits, and of -_.~+/= as well")
    return text


def _signal(text: str) -> Any:
    from guest_client.signals import find_signal

    return find_signal(text)
