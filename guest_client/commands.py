"""What ``identity``, ``watch`` and ``doctor`` do, once their arguments are read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from guest_client.channel import Channel, FailedTry
from guest_client.config import Settings
from guest_client.console import say
from guest_client.errors import (
    Unverified,
)
from guest_client.identity import Identity
from guest_client.signals import SignalCatcher
from guest_client.text import printable, size_in_words

if TYPE_CHECKING:
    from guest_client.watcher import Watcher


def identity(settings: Settings, *, as_json: bool, verbose: bool) -> int:
    """Print the identity, for people or as JSON."""
    with SignalCatcher(), open_channel(settings, verbose) as channel:
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
    import threading

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


def open_channel(settings: Settings, verbose: bool = False) -> Channel:
    """Open the way to the enabler; failed tries are told, in full if ``verbose``."""
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
