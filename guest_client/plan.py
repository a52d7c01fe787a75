"""Plans: which modules a scan has. From a TOML file, from the command line, or ready-made.

    description = "What this plan is for"             # optional
    include = ["hardware"]                            # optional: ready-made plans that come first

    [[module]]
    name = "packages"                                 # letters, digits and . _ + -
    command = ["dpkg-query", "--show"]                # or text, split as a shell would; no shell
    output = "packages.txt"                           # default: NAME.out
    host_dependent = false                            # default: true, the safe side
    ok_exit_codes = [1]                               # besides 0, which always is; default: none
    optional = true                                   # left out where it is not installed; or false
    description = "Installed packages"                # optional

A key that nobody knows is an error, as in the configuration (``config.py``). ``host_dependent``
says whether the content depends on the real machine: see ``modules.py`` for what hangs on it.

The ready-made plans are in ``plans/``, each named as its file is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from guest_client.compat import parse_toml
from guest_client.config import nearest
from guest_client.errors import ConfigurationError, ScannerError, ScannerNotFound, UsageError
from guest_client.folder import MANIFEST
from guest_client.modules import Module
from guest_client.process import find_program
from guest_client.text import printable
from guest_client.values import parse_command

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}\Z", re.ASCII)
_OUTPUT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}\Z", re.ASCII)


@dataclass(frozen=True)
class PlannedModule:
    """One module: its program, and what is to be known of it."""

    name: str
    command: tuple[str, ...]
    output: str
    """The name of its file in the set's folder."""
    host_dependent: bool = True
    ok_exit_codes: frozenset[int] = frozenset({0})
    optional: bool = False
    """Whether it may be left out when its program is not installed."""
    description: str = ""

    @property
    def module(self) -> Module:
        """The module as the planner knows it."""
        return Module(self.name, self.host_dependent)


@dataclass(frozen=True)
class LeftOut:
    """A module of a plan that is not run, and why."""

    module: PlannedModule
    why: str


@dataclass(frozen=True)
class Plan:
    """Which modules a scan has, in their order; ``name`` as the user gave it, if it has one."""

    name: str | None
    modules: tuple[PlannedModule, ...]
    description: str = ""
    left_out: tuple[LeftOut, ...] = ()
    """What the user does not want of it."""


class _Wrong(ValueError):
    """What is wrong in a plan; whoever asked knows where it stands."""


def load_plan(name: str) -> Plan:
    """Find a plan: with a slash or ``.toml`` in its name it is a file, else a ready-made one.

    Raises :class:`UsageError` when there is no such ready-made plan, and
    :class:`ConfigurationError` when there is no such file, or something is wrong in it.
    """
    if "/" not in name and not name.endswith(".toml"):
        return _parse(ready_made_text(name), name, f"the ready-made plan {name}")
    shown = printable(name)
    try:
        text = Path(name).read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no plan {shown}; write it or name another") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{shown} is not TOML: {error}; mend that place") from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigurationError(
            f"can't read the plan {shown}: {why}; check its mode and owner"
        ) from error
    return _parse(text, name, shown)


def ready_made_names() -> list[str]:
    """List the ready-made plans."""
    from importlib.resources import files

    folder = files("guest_client").joinpath("plans")
    found = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml"))


def ready_made_text(name: str) -> str:
    """Give the text of a ready-made plan; raises :class:`UsageError` when there is none."""
    from importlib.resources import files

    known = ready_made_names()
    if name not in known:
        raise UsageError(
            f"there is no ready-made plan {printable(repr(name))}; {nearest(name, known, 'plans')}"
            " (a plan of your own has a slash or .toml in its name)"
        )
    return files("guest_client").joinpath("plans").joinpath(f"{name}.toml").read_text("utf-8")


def command_line_modules(
    given: Sequence[str], host_independent: Iterable[str]
) -> tuple[PlannedModule, ...]:
    """Make modules of ``NAME=COMMAND`` words; raises :class:`UsageError`."""
    independent = set(host_independent)
    modules = []
    for text in given:
        name, equals, command = text.partition("=")
        shown = printable(text, 80)
        if not equals:
            raise UsageError(f"--module {shown}: should be NAME=COMMAND, as in cpu='lscpu --json'")
        try:
            _check_name(name)
            modules.append(
                PlannedModule(name, parse_command(command), f"{name}.out", name not in independent)
            )
        except ValueError as error:
            raise UsageError(f"--module {shown}: {error}") from error
    unknown = sorted(independent - {module.name for module in modules})
    if unknown:
        raise UsageError(
            f"--host-independent {printable(unknown[0])}: there is no --module of that name; in a"
            " plan, write host_dependent = false"
        )
    return tuple(modules)


def joined(plan: Plan | None, more: Sequence[PlannedModule]) -> Plan:
    """Add modules to a plan; raises :class:`UsageError` when two have the same name."""
    modules = (*(plan.modules if plan is not None else ()), *more)
    try:
        _check_apart(modules)
    except _Wrong as error:
        raise UsageError(f"--module: {error}") from error
    return Plan(plan.name if plan else None, modules, plan.description if plan else "")


def without(plan: Plan, names: Sequence[str]) -> Plan:
    """Leave modules out of a plan; raises :class:`UsageError`."""
    known = [module.name for module in plan.modules]
    for name in names:
        if name not in known:
            raise UsageError(f"--leave-out {printable(name)}: {nearest(name, known, 'modules')}")
    left = tuple(module for module in plan.modules if module.name not in names)
    if not left:
        raise UsageError("--leave-out: no module is left; leave out fewer")
    out = (LeftOut(module, "--leave-out") for module in plan.modules if module.name in names)
    return Plan(plan.name, left, plan.description, tuple(out))


def choose(plan: Plan) -> tuple[tuple[PlannedModule, ...], tuple[LeftOut, ...]]:
    """Part a plan's modules into those to be run here, and those that are to be left out.

    Raises :class:`ScannerNotFound` or :class:`ScannerError` when the program of a module that is
    not optional can't be run, or when no module is left.
    """
    chosen, left_out = [], []
    for module in plan.modules:
        try:
            find_program(module.command[0], f"{module.name} module's program")
        except ScannerError as error:
            if not module.optional:
                raise
            left_out.append(LeftOut(module, str(error)))
        else:
            chosen.append(module)
    if not chosen:
        programs = dict.fromkeys(printable(module.command[0], 40) for module in plan.modules)
        raise ScannerNotFound(
            f"none of the plan's programs is installed here; install one of {', '.join(programs)}"
        )
    return tuple(chosen), tuple(left_out)


def _parse(text: str, name: str, where: str) -> Plan:
    try:
        document = parse_toml(text)
    except ValueError as error:
        raise ConfigurationError(f"{where} is not TOML: {error}; mend that place") from error
    except RecursionError as error:
        raise ConfigurationError(f"{where} is nested too deeply; mend it") from error
    try:
        return plan_of(document, name)
    except _Wrong as error:
        raise ConfigurationError(f"{where}: {error}") from error


def plan_of(document: Mapping[str, Any], name: str) -> Plan:
    """Make a plan of what TOML has; raises ``ValueError``, which says what is wrong in it."""
    _check_keys(document, ("description", "include", "module"), "")
    description = _value(document, "description", "", _text)
    modules = [
        module
        for plan in _value(document, "include", (), _names)
        for module in _included(plan).modules
    ]
    tables = document.get("module", [])
    if isinstance(tables, dict):
        raise _Wrong("[module] should be [[module]], with two brackets: there can be several")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise _Wrong("module should be tables, each begun with [[module]]")
    modules += [_module(table, number) for number, table in enumerate(tables, 1)]
    if not modules:
        raise _Wrong("there is no [[module]] in it; a plan has one or more")
    _check_apart(modules)
    return Plan(name, tuple(modules), description)


def _included(plan: str) -> Plan:
    names = ready_made_names()
    if plan not in names:
        raise _Wrong(f"include: {plan!r} is no ready-made plan; {nearest(plan, names, 'plans')}")
    return load_plan(plan)


def _module(table: Mapping[str, Any], number: int) -> PlannedModule:
    name = table.get("name")
    where = f"[[module]] {number}" + (f" ({printable(name, 40)})" if isinstance(name, str) else "")
    _check_keys(
        table,
        (
            "name",
            "command",
            "output",
            "host_dependent",
            "ok_exit_codes",
            "optional",
            "description",
        ),
        f"{where}: ",
    )
    for key in ("name", "command"):
        if key not in table:
            raise _Wrong(f"{where}: {key} is missing; each module has one")
    read = _Table(table, where)
    plain = read("name", "", _name)
    return PlannedModule(
        name=plain,
        command=read("command", (), parse_command),
        output=read("output", f"{plain}.out", _output),
        host_dependent=read("host_dependent", True, _flag),
        ok_exit_codes=read("ok_exit_codes", frozenset(), _exit_codes) | {0},
        optional=read("optional", False, _flag),
        description=read("description", "", _text),
    )


class _Table:
    """Reads one module's table, and says of which module it speaks."""

    def __init__(self, table: Mapping[str, Any], where: str) -> None:
        self._table = table
        self._where = where

    def __call__(self, key: str, default: Any, parse: Callable[[object], Any]) -> Any:
        try:
            return _value(self._table, key, default, parse)
        except _Wrong as error:
            raise _Wrong(f"{self._where}: {error}") from error


def _value(table: Mapping[str, Any], key: str, default: Any, parse: Callable[[object], Any]) -> Any:
    if key not in table:
        return default
    try:
        return parse(table[key])
    except (TypeError, ValueError) as error:
        raise _Wrong(f"{key}: {error}") from error


def _check_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise _Wrong(f"{where}unknown key {key!r}; {nearest(key, known)}")


def _check_apart(modules: Sequence[PlannedModule]) -> None:
    for what in ("name", "output"):
        seen: set[str] = set()
        for module in modules:
            # A file system may take two names for one that differ in their case alone.
            value = getattr(module, what)
            if value.casefold() in seen:
                raise _Wrong(f"two modules have the {what} {value!r}; give each its own")
            seen.add(value.casefold())


def _check_name(name: str) -> None:
    if not _NAME.match(name):
        raise _Wrong(
            f"{printable(repr(name), 80)} is no module's name; it may have letters, digits and"
            " . _ + - (64 at most), and begins with one of the first two"
        )


def _name(value: object) -> str:
    _check_name(_text(value))
    return _text(value)


def _output(value: object) -> str:
    name = _text(value)
    if not _OUTPUT.match(name):
        raise _Wrong(
            f"{printable(repr(name), 80)} is no output's name; it is a file in the set's folder,"
            " without a path: letters, digits and . _ + - (128 at most), no dot at the beginning"
        )
    if name.casefold() == MANIFEST:
        raise _Wrong(f"{MANIFEST} is the set's own; name another file")
    return name


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("should be a string")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("should be true or false")
    return value


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        _refuse('should be an array of names, as in ["hardware"]')
    if not all(isinstance(name, str) for name in value):
        _refuse('should be an array of names, as in ["hardware"]')
    return tuple(value)


def _exit_codes(value: object) -> frozenset[int]:
    wrong = "should be an array of exit codes, each from 0 to 255, as in [1, 2]"
    if not isinstance(value, list):
        _refuse(wrong)
    for code in value:
        if isinstance(code, bool) or not isinstance(code, int) or not 0 <= code <= 255:
            _refuse(wrong)
    return frozenset(value)


def _refuse(what: str) -> NoReturn:
    raise _Wrong(what)
