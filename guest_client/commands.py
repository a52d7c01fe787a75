"""What each command does, once its arguments are read: the wiring of channel, scan and doctor."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from guest_client.channel import Channel, FailedTry
from guest_client.config import Settings
from guest_client.console import say
from guest_client.errors import (
    ConfigurationError,
    OutputError,
    ScannerError,
    Unverified,
    UsageError,
)
from guest_client.folder import FolderDestination
from guest_client.identity import Identity
from guest_client.modular import ModularScan, SetRequest
from guest_client.output import STDOUT_NAMES, Destination, FileDestination, destination
from guest_client.plan import command_line_modules, joined, load_plan, without
from guest_client.process import find_program
from guest_client.reactions import Reactions, SignalTarget
from guest_client.scan import GuardedScan, ScanRequest
from guest_client.session import Session, Terms
from guest_client.signals import SignalCatcher
from guest_client.text import printable, size_in_words
from guest_client.triggers import TriggerBox

if TYPE_CHECKING:
    from guest_client.watcher import Watcher


def identity(settings: Settings, *, as_json: bool, verbose: bool) -> int:
    """Print the identity, for people or as JSON."""
    with SignalCatcher(), _channel(settings, verbose) as channel:
        found = channel.read(settings.deadline).trusted()
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        print(_describe(found))
    return 0


def watch(settings: Settings, *, once: bool, timeout: float | None, verbose: bool) -> int:
    """Print the identity and each change; 0 after ``timeout``, or after one change if ``once``."""
    from guest_client.news import NO_CHANGE
    from guest_client.watcher import Watcher, told

    watcher = Watcher(
        settings.enabler,
        settings.deadline,
        settings.watch_interval,
        _failure_teller(settings, verbose),
    )
    with SignalCatcher(), _stopping(watcher, timeout):
        for line in told(watcher.reads()):
            print(json.dumps(line, ensure_ascii=False), flush=True)
            if once and line["change"] not in NO_CHANGE:
                return 0
    return Unverified.exit_code if once else 0


@contextmanager
def _stopping(watcher: Watcher, seconds: float | None) -> Iterator[None]:
    """Stop a watcher after some time, if it is given any."""
    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, watcher.stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def doctor(settings: Callable[[], Settings], *, as_json: bool) -> int:
    """Examine the guest, and print what was found; 0 if all is well."""
    from guest_client.doctor import as_document, as_text, examine, exit_code

    with SignalCatcher():
        findings = examine(settings)
    print(json.dumps(as_document(findings), indent=2) if as_json else as_text(findings))
    return exit_code(findings)


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
    terms = Terms(settings.deadline, report, options.repeat_if_migrated, options.wait_if_migrating)
    with SignalCatcher() as catcher, _channel(settings, options.verbose) as channel:
        box, program = None, None
        if options.notify_if_migrated:
            box, program = TriggerBox(settings.state_dir), settings.notify_program
            _check_notify_program(settings)
        target = None
        if options.signal_if_migrated is not None:
            target = SignalTarget(options.signal_if_migrated, options.signal_pid or os.getppid())
        reactions = Reactions(catcher, say, box=box, program=program, target=target)
        yield Session(terms, channel, catcher, reactions, say)


def _channel(settings: Settings, verbose: bool) -> Channel:
    return Channel(settings.enabler, on_failure=_failure_teller(settings, verbose))


def _failure_teller(settings: Settings, verbose: bool) -> Callable[[FailedTry], None]:
    told = False

    def tell(failure: FailedTry) -> None:
        nonlocal told
        if verbose:
            say(f"{failure.at} {settings.enabler}: {failure.what}")
        elif not told and sys.stderr.isatty():
            say(f"no answer yet ({failure.what}); trying for {settings.deadline:g} s")
            told = True

    return tell


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
        if isinstance(place, FileDestination | FolderDestination):
            where = place.path
        if where in taken:
            raise UsageError(f"{taken[where]} and {flag} both go to {where}; name two places")
        taken[where] = flag
        if isinstance(place, FolderDestination):
            folders[place.path] = flag
    for where, flag in taken.items():
        for folder in Path(where).parents:
            if folder in folders:
                raise UsageError(
                    f"{flag} goes into the folder that {folders[folder]} replaces; name a place"
                    " outside of it"
                )


def _describe(found: Identity) -> str:
    machine, capacity, vm = found.machine, found.capacity, found.vm
    cores = capacity.sockets * capacity.cores_per_socket
    rows = [
        ("host component ID", found.component_id),
        ("manufacturer", machine.manufacturer),
        ("type", machine.type),
        ("model", machine.model),
        ("serial number", machine.serial_number),
        ("machine UUID", machine.uuid),
        ("CPU", capacity.cpu_model),
        (
            "capacity",
            f"{capacity.sockets} sockets, {cores} cores,"
            f" {cores * capacity.threads_per_core} threads, {size_in_words(capacity.memory_bytes)}",
        ),
        ("virtual machine", f"{vm.name} ({vm.uuid})"),
        ("its allocation", f"{vm.vcpus} vCPUs, {size_in_words(vm.memory_bytes)}"),
        ("generation ID", vm.generation_id),
        (
            "residency",
            f"{found.residency.id} since {found.residency.since} (by {found.residency.arrived_by})",
        ),
        ("migration", str(found.migration.state)),
        ("observed at", found.observed_at),
    ]
    return "\n".join(f"{name:<18} {printable(value or 'not known')}" for name, value in rows)
