"""The command ``guest-client``: arguments in, exit code out; the work is done elsewhere.

What a command needs is imported when it runs: ``--help`` and a usage error come without httpx.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from guest_client import config
from guest_client.arguments import add_plans, add_scan, check_scan, checked, file_name
from guest_client.console import say
from guest_client.endpoint import DEFAULT_ENABLER, LINK_LOCAL, VSOCK, parse_endpoint
from guest_client.errors import GuestClientError, Interrupted, OutputWriteError, UsageError
from guest_client.token import DEFAULT_TOKEN_FILE
from guest_client.values import parse_path, parse_seconds

EXIT_CODES = """\
exit codes:
  0, 1, ...  the scanner's own, when the scan is consistent (128 + N: killed by signal N);
             of modules, 0, or that of the first one that failed
  64         the command line is wrong
  69         unverified: no identity that can be trusted; the output was held back
  73, 74     an output can't be created, can't be written
  75         inconsistent: the machine changed inside the scan; the output was discarded
  77         refused: the enabler says that this is no VM of its host
  78         the configuration is wrong
  126, 127   the scanner can't be run, can't be found
  128 + N    ended by signal N
"""


class _Parser(argparse.ArgumentParser):
    """Raises :class:`UsageError` where argparse prints its usage and exits with 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code. Errors are one line on the standard error."""
    missing = _open_what_is_closed()
    try:
        code = _dispatch(list(sys.argv[1:] if arguments is None else arguments), missing)
        sys.stdout.flush()
    except GuestClientError as error:
        say(str(error))
        code = error.exit_code
    except BrokenPipeError:
        say("can't write the standard output: its reader has gone")
        code = OutputWriteError.exit_code
        _drop_stdout()
    except Interrupted as interruption:
        code = interruption.exit_code
    except KeyboardInterrupt:
        code = 130
    except OSError as error:
        if error.filename is not None:
            raise
        say(f"can't write the standard output: {error.strerror}")
        code = OutputWriteError.exit_code
        _drop_stdout()
    return code


def _dispatch(arguments: list[str], stdout_missing: bool) -> int:
    before, command = _split(arguments)
    parser = build_parser(before[0] if before else None)
    options = parser.parse_args(before)
    if options.command_name == "scan":
        options.command = command
        options.stdout_missing = stdout_missing
    elif getattr(options, "takes_command", False):
        options.command = command
    elif command is not None:
        raise UsageError(f"`guest-client {options.command_name}` takes no command after --")
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)


def _split(arguments: list[str]) -> tuple[list[str], list[str] | None]:
    """Part our own arguments from the scanner's at the first ``--``."""
    if "--" not in arguments:
        return arguments, None
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Make the parser of the whole command line, or, to be quick, of one ``command`` alone."""
    parser = _Parser(
        prog="guest-client",
        description="Tells which real machine this VM runs on, and guards scans against a change.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="print the version and end")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, dest="command_name"
    )
    for add in (_COMMANDS[command],) if command in _COMMANDS else dict.fromkeys(_COMMANDS.values()):
        add(commands)
    return parser


def _add_command(commands: Any, name: str, summary: str, **more: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **more,
    )
    parser.add_argument(
        "--enabler",
        metavar="URL",
        type=checked(parse_endpoint),
        help=f"where the enabler listens (default: {DEFAULT_ENABLER}: {VSOCK} where this VM has"
        f" vsock, else {LINK_LOCAL})",
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=checked(parse_path),
        help="the token that the enabler knows this VM by, in a file for its owner alone (default:"
        f" {DEFAULT_TOKEN_FILE}, if there is one)",
    )
    parser.add_argument(
        "--ca-file",
        metavar="FILE",
        type=checked(parse_path),
        help="whose certificates prove an https:// enabler (default: what the system trusts)",
    )
    parser.add_argument(
        "--deadline",
        metavar="SECONDS",
        type=checked(parse_seconds),
        help="how long one read of the identity may take, retries included"
        f" (default: {config.DEFAULT_DEADLINE:g})",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=checked(file_name),
        help=f"the configuration file (default: {config.CONFIG_FILE})",
    )
    parser.add_argument("--verbose", action="store_true", help="tell of every failed try")
    return parser


def _add_identity(commands: Any) -> None:
    parser = _add_command(commands, "identity", "print which real machine this VM runs on")
    parser.add_argument("--json", action="store_true", help="print the document as it was sent")
    parser.set_defaults(run=_identity)


def _add_watch(commands: Any) -> None:
    parser = _add_command(
        commands,
        "watch",
        "print the identity, and each change of it at once, as lines of JSON",
        epilog="exit codes: 0 a change came (--once), or the time is up; 69 with --once: the time"
        " is up, and no change came; 128 + N ended by signal N; 64, 74, 78 as in `guest-client"
        " --help`",
    )
    parser.add_argument("--once", action="store_true", help="end at the first change")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=checked(parse_seconds),
        help="end after so long (default: never)",
    )
    parser.set_defaults(run=_watch)


def _add_doctor(commands: Any) -> None:
    parser = _add_command(
        commands, "doctor", "check each thing that must be right in this VM, and say how to mend it"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=_doctor)


def _add_scan(commands: Any) -> None:
    add_scan(commands, _add_command, EXIT_CODES).set_defaults(run=_scan)


def _add_plans(commands: Any) -> None:
    add_plans(commands).set_defaults(run=_plans)


def _add_verify(commands: Any) -> None:
    from guest_client.verify.arguments import add_verify

    add_verify(commands).set_defaults(run=_verify)


def _add_history(commands: Any) -> None:
    from guest_client.verify.arguments import add_history

    add_history(commands, _add_command).set_defaults(run=_history)


def _add_agent(commands: Any) -> None:
    from guest_client.agent.arguments import add_agent_commands

    add_agent_commands(commands, _add_command, _settings)


_COMMANDS: dict[str, Callable[[Any], None]] = {
    "identity": _add_identity,
    "watch": _add_watch,
    "scan": _add_scan,
    "plans": _add_plans,
    "verify": _add_verify,
    "history": _add_history,
    "doctor": _add_doctor,
    "agent": _add_agent,
    "agent-id": _add_agent,
}


def _identity(options: argparse.Namespace) -> int:
    from guest_client.commands import identity

    return identity(_settings(options), as_json=options.json, verbose=options.verbose)


def _watch(options: argparse.Namespace) -> int:
    from guest_client.commands import watch

    return watch(
        _settings(options), once=options.once, timeout=options.timeout, verbose=options.verbose
    )


def _doctor(options: argparse.Namespace) -> int:
    from guest_client.commands import doctor

    return doctor(lambda: _settings(options), as_json=options.json)


def _scan(options: argparse.Namespace) -> int:
    modular = check_scan(options)
    from guest_client import scan_commands

    work = scan_commands.scan_modules if modular else scan_commands.scan
    return work(options, _settings(options))


def _plans(options: argparse.Namespace) -> int:
    from guest_client.plan_list import print_plans

    return print_plans(options.plan, as_json=options.json)


def _verify(options: argparse.Namespace) -> int:
    from guest_client.verify.commands import verify_report

    return verify_report(options)


def _history(options: argparse.Namespace) -> int:
    from guest_client.verify.arguments import check_history

    check_history(options)
    from guest_client.verify.commands import history

    return history(options, lambda: _settings(options))


def _settings(options: argparse.Namespace) -> config.Settings:
    flags = {key.name: getattr(options, key.name, None) for key in config.KEYS}
    return config.load(flags, file=options.config)


class _Version(argparse.Action):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(nargs=0, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from guest_client.version import client_version

        print(f"guest-client {client_version()}")
        parser.exit()


def _open_what_is_closed() -> bool:
    """Fill descriptors 0 to 2, so that no file of ours gets their numbers; was 1 closed?"""
    closed = []
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(fd, True)
            closed.append(fd)
    if 2 in closed or sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the rest of our life
    if 1 in closed or sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the rest of our life
    return 1 in closed


def _drop_stdout() -> None:
    """Keep Python from failing once more on what it still holds for a lost standard output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    sys.exit(main())
