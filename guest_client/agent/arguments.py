"""The arguments of ``guest-client agent …`` and ``guest-client agent-id …``.

Nothing here loads more than the parser needs: the commands themselves are imported when one runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guest_client.agent import settings
from guest_client.agent.phases import Phase, parse_phases
from guest_client.config import DEFAULT_STATE_DIR, Settings
from guest_client.values import parse_path, parse_seconds

AddCommand = Callable[..., argparse.ArgumentParser]
LoadSettings = Callable[[argparse.Namespace], Settings]

_PHASES = """\
phases (--on):
  migrated   the VM has arrived on another machine, or has come back to one
  migrating  a migration has begun; the VM still runs on the old host
  aborted    that migration has ended, and the VM is where it was
  cloned     this is another VM than the one that the agent knows
  reverted   the VM went back to a snapshot, or was duplicated
"""


def add_agent_commands(commands: Any, add_command: AddCommand, load: LoadSettings) -> None:
    """Add ``agent`` and ``agent-id`` to the commands of a parser.

    ``add_command`` adds one with the options that all have; ``load`` reads the settings.
    """
    agent = commands.add_parser(
        "agent",
        help="act on migrations: run registered programs, tell the management infrastructure",
        description="Acts on migrations: runs registered programs, tells the management"
        " infrastructure.",
        allow_abbrev=False,
    )
    of_agent = agent.add_subparsers(
        title="commands", metavar="COMMAND", required=True, dest="agent_command"
    )
    _Adder(of_agent, add_command, load).add_all()
    agent_id = commands.add_parser(
        "agent-id",
        help="show or regenerate the agent ID",
        description="Keeps an agent ID, a UUID in a file.",
        allow_abbrev=False,
    )
    of_id = agent_id.add_subparsers(
        title="commands", metavar="COMMAND", required=True, dest="agent_id_command"
    )
    _add_agent_id(of_id, add_command, load)


class _Adder:
    def __init__(self, commands: Any, add_command: AddCommand, load: LoadSettings) -> None:
        self._commands = commands
        self._add_command = add_command
        self._load = load

    def _add(self, name: str, summary: str, **more: Any) -> argparse.ArgumentParser:
        parser = self._add_command(self._commands, name, summary, **more)
        parser.add_argument(
            "--state-dir",
            metavar="DIR",
            type=_checked(parse_path),
            help=f"where the agent keeps its state (default: {DEFAULT_STATE_DIR})",
        )

        def run(options: argparse.Namespace) -> int:
            from guest_client.agent import commands

            function = "list_programs" if name == "list" else name
            command: Callable[[argparse.Namespace, Settings], int] = getattr(commands, function)
            return command(options, self._load(options))

        parser.set_defaults(run=run)
        return parser

    def add_all(self) -> None:
        add = self._add("run", "be the agent, until told to stop").add_argument
        add("--watch", action="store_true", help="ask the enabler, too, and not the scans alone")
        add(
            "--once",
            action="store_true",
            help="do what there is to be done, try once to deliver what there is to be told, and"
            " end: 0, or 75 if an event still waits",
        )
        add(
            "--register",
            metavar="NAME=COMMAND",
            action="append",
            default=[],
            type=_checked(settings.parse_assignment),
            help="register this program for as long as the agent runs",
        )
        self._add("stop", "tell the agent to end, and wait until it has")
        self._add_register()
        self._add("deregister", "deregister a program").add_argument(
            "name", metavar="NAME", type=_checked(settings.parse_name)
        )
        _json(self._add("list", "print the registered programs"))
        _json(self._add("status", "print how things stand; 3 if no agent runs"))
        self._add_trigger()
        self._add_history()
        self._add_outbox()

    def _add_register(self) -> None:
        parser = self._add(
            "register",
            "register a program, for good",
            usage="guest-client agent register NAME [options] -- COMMAND [ARGUMENT...]",
            epilog=_PHASES,
        )
        parser.set_defaults(takes_command=True)
        add = parser.add_argument
        add("name", metavar="NAME", type=_checked(settings.parse_name))
        add(
            "--on",
            metavar="PHASE,...",
            type=_checked(parse_phases),
            default=(Phase.MIGRATED,),
            help="when to run it (default: migrated)",
        )
        add(
            "--timeout",
            metavar="SECONDS",
            type=_checked(parse_seconds),
            default=settings.DEFAULT_TIMEOUT,
            help=f"how long it may take (default: {settings.DEFAULT_TIMEOUT:g})",
        )
        add(
            "--tries",
            metavar="TIMES",
            type=_checked(settings.parse_tries),
            default=settings.DEFAULT_TRIES,
            help=f"how often it is tried until it ends well (default: {settings.DEFAULT_TRIES})",
        )
        add("--user", metavar="USER", help="run it as this user (default: the agent's own)")

    def _add_trigger(self) -> None:
        parser = self._add("trigger", "record a trigger by hand", epilog=_PHASES)
        add = parser.add_argument
        add("--reason", metavar="TEXT", help="why, in a sentence for people")
        add(
            "--phase",
            metavar="PHASE",
            type=_checked(Phase),
            help="whose programs are run (default: migrated, or what the enabler tells if the"
            " agent does not know it yet)",
        )
        add(
            "--key",
            metavar="KEY",
            type=_checked(settings.parse_name),
            help="what this is about: a second trigger with the same key does nothing",
        )
        _json(parser)

    def _add_history(self) -> None:
        parser = self._add("history", "print the latest triggers and what became of them")
        parser.add_argument(
            "--limit",
            metavar="NUMBER",
            type=_checked(_count),
            default=20,
            help="how many (default: 20)",
        )
        _json(parser)

    def _add_outbox(self) -> None:
        parser = self._add("outbox", "print the events that wait to be delivered")
        which = parser.add_mutually_exclusive_group()
        which.add_argument(
            "--retry",
            action="store_true",
            help="try again now, also where a destination wanted no more (410)",
        )
        which.add_argument(
            "--discard", metavar="EVENT-ID", help="take an event out, and let those behind it pass"
        )
        _json(parser)


def _add_agent_id(commands: Any, add_command: AddCommand, load: LoadSettings) -> None:
    for name, function, summary in (
        ("show", "show_id", "print the agent ID; a first one is made if there is none"),
        ("regenerate", "regenerate_id", "make a new agent ID and print it"),
    ):
        parser = add_command(commands, name, summary)
        parser.add_argument(
            "--file",
            metavar="FILE",
            type=_checked(_path),
            help=f"where it is kept (default: {DEFAULT_STATE_DIR / 'agent-id'})",
        )
        _json(parser)

        def run(options: argparse.Namespace, function: str = function) -> int:
            from guest_client.agent import commands

            command: Callable[[argparse.Namespace, Callable[[], Settings]], int]
            command = getattr(commands, function)
            return command(options, lambda: load(options))

        parser.set_defaults(run=run)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1_000_000):
        raise ValueError(f"should be 1 or more, not {text!r}")
    return int(text)


def _path(text: str) -> Path:
    if not text:
        raise ValueError("should be a file's name")
    return Path(text)


def _checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Let argparse show what a parser has to say; it hides the words of a mere ``ValueError``."""

    def parse_argument(text: str) -> Any:
        try:
            return parse(text)
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse_argument
