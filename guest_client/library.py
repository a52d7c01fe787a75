"""The guard for scanners written in Python. ``guest_client`` itself offers all of this.

    import guest_client

    with guest_client.guarding() as guard:          # reads the identity, or raises
        data = scan()
    report(data, guard.verdict)                     # reached only with a consistent verdict

    result = guest_client.guarded(scan, repeat=2)   # runs scan() up to three times
    report(result.value, result.verdict)

    result = guest_client.guarded_modules(          # runs again only what a change made untrue
        {"hardware": read_hardware, "packages": guest_client.host_independent(list_packages)},
        repeat=2,
    )
    report(result.values["hardware"], result.values["packages"], result.identity)

    for change in guest_client.watch():             # the present first, then each change at once
        log(change["change"], change["sentence"])

The enabler's address and the deadline come from where the command has them, too: the configuration
file and the environment (``config.py``), unless they are given.

A ``with`` block can't be skipped, so :func:`guarding` raises when there is no trusted identity to
begin with, whatever ``raising`` is: rule 5 of ``guard.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any, Generic, TypeVar

from guest_client.channel import Channel, Read
from guest_client.config import Settings, load
from guest_client.endpoint import parse_endpoint
from guest_client.errors import ConfigurationError, InconsistentScan
from guest_client.guard import Guard, Verdict
from guest_client.identity import Identity
from guest_client.modules import Again, End, Module, ModuleSet, Run
from guest_client.values import parse_seconds

T = TypeVar("T")


class GuardedBlock:
    """What :func:`guarding` gives: the verdict and the two reads, each once there is one."""

    def __init__(self) -> None:
        self.before: Read | None = None
        self.after: Read | None = None
        self.verdict: Verdict | None = None


@dataclass(frozen=True)
class Guarded(Generic[T]):
    """What a guarded function gave: its value, the verdict on it, and how often it was run."""

    value: T
    verdict: Verdict
    attempts: int


class host_independent(Generic[T]):  # noqa: N801 - a decorator, and named as one
    """Mark a module's function: what it finds does not depend on the real machine.

    Its result stands when the VM is migrated, unless that fell inside its own run: installed
    packages, yes; hardware, no. Used around a function, or as its decorator.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        update_wrapper(self, function)

    def __call__(self) -> T:
        """Call the function."""
        return self._function()


@dataclass(frozen=True)
class GuardedModules(Generic[T]):
    """What a set of guarded functions gave: the values by name, all of them true together."""

    values: Mapping[str, T]
    verdict: Verdict
    identity: Identity
    """The machine that every value which depends on it was found on."""
    runs: tuple[tuple[str, Again | None], ...]
    """Each call, in order: the name, and why it was called again (``None`` the first time)."""


def read_identity(enabler: str | None = None, *, deadline: float | None = None) -> Identity:
    """Read the identity once; raises :class:`~guest_client.errors.Unverified` or a kind of it.

    ``deadline`` is in seconds, retries included.
    """
    with _opened(enabler, deadline, None) as (channel, seconds):
        return channel.read(seconds).trusted()


def watch(
    enabler: str | None = None, *, deadline: float | None = None, interval: float | None = None
) -> Iterator[dict[str, Any]]:
    """Give the present identity, then each change at once: what ``guest-client watch`` prints.

    The members are ``at``, ``change`` (a word of :class:`~guest_client.news.Change`), ``sentence``,
    ``previous`` (``component_id`` and ``residency_id``) and ``identity`` (the document; ``None`` in
    an ``unverified`` one). ``deadline`` is in seconds and for each read; ``interval`` is the time
    between two looks at an enabler that lets nobody wait. It ends when it is closed.
    """
    from guest_client.watcher import Watcher, told

    settings = _settings(enabler, deadline, interval)
    watcher = Watcher(settings.enabler, settings.deadline, settings.watch_interval)
    return told(watcher.reads())


@contextmanager
def guarding(
    enabler: str | None = None,
    *,
    deadline: float | None = None,
    raising: bool = True,
    channel: Channel | None = None,
) -> Iterator[GuardedBlock]:
    """Guard the ``with`` block as a scan.

    Unless ``raising`` is false, a block that was crossed raises
    :class:`~guest_client.errors.InconsistentScan` at its end, and one whose after-read brought no
    trusted answer an :class:`~guest_client.errors.Unverified`. An exception of the block's own
    passes, and there is no verdict then.

    ``deadline`` is in seconds and for each read. ``channel`` is one that is open already, for
    several scans in turn.
    """
    with _opened(enabler, deadline, channel) as (way, seconds):
        guard, block = Guard(), GuardedBlock()
        block.before = way.read(seconds)
        block.before.trusted()
        guard.before(block.before.reading)
        yield block
        block.after = way.read(seconds)
        block.verdict = guard.after(block.after.reading)
        if raising:
            block.after.trusted()
            if not block.verdict.consistent:
                raise InconsistentScan(block.verdict)


def guarded(
    function: Callable[..., T],
    /,
    *args: Any,
    repeat: int = 0,
    enabler: str | None = None,
    deadline: float | None = None,
    channel: Channel | None = None,
    **kwargs: Any,
) -> Guarded[T]:
    """Call ``function(*args, **kwargs)`` as a scan, and up to ``repeat`` times more while crossed.

    Raises :class:`~guest_client.errors.InconsistentScan` when every run was crossed,
    :class:`~guest_client.errors.Unverified` when a read brought no trusted answer. The function's
    own exceptions pass. The four names above are ours; a function that has one of them as a keyword
    goes through ``functools.partial``.
    """
    if repeat < 0:
        raise ValueError(f"repeat is {repeat}; it can't be less than 0")
    with _opened(enabler, deadline, channel) as (way, seconds):
        attempts = 0
        while True:
            attempts += 1
            with guarding(deadline=seconds, raising=False, channel=way) as block:
                value = function(*args, **kwargs)
            assert block.after is not None
            assert block.verdict is not None
            block.after.trusted()
            if block.verdict.consistent:
                return Guarded(value, block.verdict, attempts)
            if attempts > repeat:
                raise InconsistentScan(block.verdict)


def guarded_modules(
    functions: Mapping[str, Callable[[], T]],
    *,
    repeat: int = 0,
    enabler: str | None = None,
    deadline: float | None = None,
    channel: Channel | None = None,
) -> GuardedModules[T]:
    """Call each function as a module of one scan, in their order, with a read between them.

    N quiet functions cost N + 1 reads. When the machine changed, only what that made untrue is
    called again (``modules.py`` has the rules), at most ``repeat`` times. A function depends on the
    machine unless it is marked :class:`host_independent`.

    Raises :class:`~guest_client.errors.InconsistentScan` when no repeat is left, and
    :class:`~guest_client.errors.Unverified` when a read brought no trusted answer. The functions'
    own exceptions pass. ``deadline`` is in seconds and for each read.
    """
    if repeat < 0:
        raise ValueError(f"repeat is {repeat}; it can't be less than 0")
    modules = ModuleSet(
        [Module(name, not isinstance(f, host_independent)) for name, f in functions.items()],
        repeat=repeat,
    )
    values: dict[str, T] = {}
    runs: list[tuple[str, Again | None]] = []
    with _opened(enabler, deadline, channel) as (way, seconds):
        read = way.read(seconds)
        step = modules.first(read.reading).step
        while isinstance(step, Run):
            name = step.module.name
            runs.append((name, step.because))
            values[name] = functions[name]()
            read = way.read(seconds)
            step = modules.ran(read.reading).step
    if isinstance(step, End):
        read.trusted()
        raise InconsistentScan(step.verdict)
    in_order = {name: values[name] for name in functions}
    return GuardedModules(in_order, step.verdict, step.identity, tuple(runs))


@contextmanager
def _opened(
    enabler: str | None, deadline: float | None, channel: Channel | None
) -> Iterator[tuple[Channel, float]]:
    """Give a channel and a deadline, as the arguments and the configuration have it."""
    if channel is not None and deadline is not None:
        yield channel, deadline
        return
    settings = _settings(enabler, deadline)
    if channel is not None:
        yield channel, settings.deadline
        return
    with Channel(settings.enabler) as own:
        yield own, settings.deadline


def _settings(
    enabler: str | None, deadline: float | None, interval: float | None = None
) -> Settings:
    """Put the settings together; raises :class:`~guest_client.errors.ConfigurationError`."""
    try:
        return load(
            {
                "enabler": None if enabler is None else parse_endpoint(enabler),
                "deadline": None if deadline is None else parse_seconds(deadline),
                "watch_interval": None if interval is None else parse_seconds(interval),
            }
        )
    except (TypeError, ValueError) as error:
        raise ConfigurationError(str(error)) from error
