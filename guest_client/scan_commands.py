"""``guest-client scan``: what its arguments ask for, put together and run."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from guest_client.commands import open_channel
from guest_client.config import Settings
from guest_client.console import say
from guest_client.errors import ConfigurationError, OutputError, ScannerError, UsageError
from guest_client.output import STDOUT_NAMES, Destination, FileDestination, destination
from guest_client.process import find_program
from guest_client.reactions import Reactions, SignalTarget
from guest_client.scan import GuardedScan, ScanRequest
from guest_client.session import Session, Terms
from guest_client.signals import SignalCatcher

if TYPE_CHECKING:
    from guest_client.folder import FolderDestination


def scan(options: argparse.Namespace, settings: Settings) -> int:
    """Run a guarded scan. All that can be checked beforehand is, before anything is read."""
    if options.stdout_missing and (options.output is None or options.output in STDOUT_NAMES):
        raise OutputError("the standard output is closed; use --output FILE")
    output = destination(options.output)
    report = None if options.report is None else destination(options.report)
    keep = None if options.keep_inconsistent is None else destination(options.keep_inconsistent)
    _refuse_same(("--output", output), ("--report", report), ("--keep-inconsistent", keep))
    request = ScanRequest(command=tuple(options.command), output=output, keep=keep)
    with _session(options, settings, report) as session:
        return GuardedScan(request, session).run()


def scan_modules(options: argparse.Namespace, settings: Settings) -> int:
    """Run a modular scan. All that can be checked beforehand is, before anything is read."""
    from guest_client.folder import FolderDestination
    from guest_client.modular import ModularScan, SetRequest
    from guest_client.plan import command_line_modules, joined, load_plan, without

    modules = command_line_modules(options.module, options.host_independent)
    plan = joined(None if options.plan is None else load_plan(options.plan), modules)
    plan = without(plan, options.leave_out)
    report = None if options.report is None else destination(options.report)
    output = FolderDestination(options.output)
    keep = None
    if options.keep_inconsistent is not None:
        keep = FolderDestination(options.keep_inconsistent)
    _refuse_same(("--output", output), ("--report", report), ("--keep-inconsistent", keep))
    with _session(options, settings, report) as session:
        return ModularScan(SetRequest(plan, output, keep), session).run()


@contextmanager
def _session(
    options: argparse.Namespace, settings: Settings, report: Destination | None
) -> Iterator[Session]:
    terms = Terms(
        settings.deadline,
        report,
        options.repeat_if_migrated,
        options.wait_if_migrating,
        options.attest,
        options.attest_nonce,
    )
    with SignalCatcher() as catcher, open_channel(settings, options.verbose) as channel:
        box, program = None, None
        if options.notify_if_migrated:
            from guest_client.triggers import TriggerBox

            box, program = TriggerBox(settings.state_dir), settings.notify_program
            _check_notify_program(settings)
        target = None
        if options.signal_if_migrated is not None:
            target = SignalTarget(options.signal_if_migrated, options.signal_pid or os.getppid())
        reactions = Reactions(catcher, say, box=box, program=program, target=target)
        yield Session(terms, channel, catcher, reactions, say)


def _check_notify_program(settings: Settings) -> None:
    if settings.notify_program is None:
        return
    try:
        find_program(settings.notify_program[0], "notify program")
    except ScannerError as error:
        where = settings.sources.get("notify_program", "")
        if where == "the command line":
            raise UsageError(f"--notify-program: {error}") from error
        raise ConfigurationError(f"{where}: notify_program: {error}") from error


def _refuse_same(*named: tuple[str, Destination | FolderDestination | None]) -> None:
    """Refuse two outputs at one place: the one would overwrite the other, or both be mixed."""
    taken: dict[Path | str, str] = {}
    folders: dict[Path, str] = {}
    for flag, place in named:
        if place is None or (place.name == os.devnull):
            continue
        where: Path | str = place.shown
        if not isinstance(place, Destination) or isinstance(place, FileDestination):
            where = place.path
        if where in taken:
            raise UsageError(f"{taken[where]} and {flag} both go to {where}; name two places")
        taken[where] = flag
        if not isinstance(place, Destination):
            folders[place.path] = flag
    for where, flag in taken.items():
        for folder in Path(where).parents:
            if folder in folders:
                raise UsageError(
                    f"{flag} goes into the folder that {folders[folder]} replaces; name a place"
                    " outside of it"
                )
