"""Registered programs and destinations, as the configuration and the command line have them. Pure.

In the file::

    watch_interval = 5                # seconds
    agent_id_file = "/etc/meter/id"   # whose first line is the agent ID

    [[program]]
    name = "meter"
    command = ["/opt/meter/bin/reset", "--now"]
    on = ["migrated", "cloned"]       # default: ["migrated"]
    timeout = 60                      # seconds; default: 300
    tries = 3                         # default: 5
    user = "meter"                    # default: the agent's own user

    [[destination]]
    url = "https://licences.example.org/events"
    ca_file = "/etc/guest-client/ca.pem"       # default: what the system trusts
    secret_file = "/etc/guest-client/secret"   # default: no signature

With no ``program`` at all the built-in one keeps the agent ID; ``program = []`` is none at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from guest_client.agent.phases import Phase, parse_phases
from guest_client.values import parse_command, parse_path, parse_seconds, parse_text

DEFAULT_TIMEOUT = 300.0
DEFAULT_TRIES = 5
MOST_TRIES = 100

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Program:
    """A program that wants to be run. ``timeout`` is in seconds; ``tries`` counts the first."""

    name: str
    command: tuple[str, ...]
    phases: tuple[Phase, ...] = (Phase.MIGRATED,)
    timeout: float = DEFAULT_TIMEOUT
    tries: int = DEFAULT_TRIES
    user: str | None = None


@dataclass(frozen=True)
class Destination:
    """Where events go. ``secret_file`` holds the key of the signature."""

    url: str
    ca_file: Path | None = None
    secret_file: Path | None = None


def parse_name(text: object) -> str:
    """Read a program's name; raises ``TypeError`` or ``ValueError``."""
    if not isinstance(text, str):
        raise TypeError("should be a string")
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{text!r} is no name: 1 to 64 letters, digits and . _ @ -, a letter or digit first"
        )
    return text


def parse_tries(value: object) -> int:
    """Read how often a program is tried; raises ``TypeError`` or ``ValueError``."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("should be a whole number")
    if not 1 <= value <= MOST_TRIES:
        raise ValueError(f"should be 1 to {MOST_TRIES}")
    return value


def parse_url(value: object) -> str:
    """Read where events go; raises ``TypeError`` or ``ValueError``."""
    text = parse_text(value)
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment:
        raise ValueError(f"{text!r} is no http:// or https:// URL")
    if parts.username is not None:
        raise ValueError("a URL with a password in it would be logged; use secret_file")
    return text


def parse_assignment(text: str) -> Program:
    """Read ``NAME=COMMAND``, the command in the shell's quotes; raises ``ValueError``."""
    name, equals, command = text.partition("=")
    if not equals:
        raise ValueError("should be NAME=COMMAND")
    return Program(parse_name(name), parse_command(command))


def parse_programs(value: object) -> tuple[Program, ...]:
    """Read the array ``program``, or one ``NAME=COMMAND``."""
    if isinstance(value, str):
        return (parse_assignment(value),)
    programs = tuple(_program(table) for table in _tables(value))
    names = [program.name for program in programs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two programs have the name {twice[0]}")
    return programs


def parse_destinations(value: object) -> tuple[Destination, ...]:
    """Read the array ``destination``, or URLs with spaces between."""
    if isinstance(value, str):
        found = tuple(Destination(parse_url(url)) for url in value.split())
    else:
        found = tuple(_destination(table) for table in _tables(value))
    urls = [destination.url for destination in found]
    if len(set(urls)) < len(urls):
        raise ValueError("one URL is there twice")
    return found


def _program(table: Mapping[str, Any]) -> Program:
    members = _members(
        table,
        {
            "name": parse_name,
            "command": parse_command,
            "on": _phases,
            "timeout": parse_seconds,
            "tries": parse_tries,
            "user": parse_text,
        },
        needed=("name", "command"),
    )
    if "on" in members:
        members["phases"] = members.pop("on")
    return Program(**members)


def _destination(table: Mapping[str, Any]) -> Destination:
    readers = {"url": parse_url, "ca_file": parse_path, "secret_file": parse_path}
    return Destination(**_members(table, readers, needed=("url",)))


def _tables(value: object) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(table, Mapping) for table in value):
        raise TypeError("should be an array of tables")
    return value


def _members(
    table: Mapping[str, Any],
    readers: Mapping[str, Callable[[object], Any]],
    needed: tuple[str, ...],
) -> dict[str, Any]:
    for name in needed:
        if name not in table:
            raise ValueError(f"{name} is missing")
    found = {}
    for name, value in table.items():
        if name not in readers:
            raise ValueError(f"unknown key {name!r}; the keys are {', '.join(readers)}")
        try:
            found[name] = readers[name](value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from error
    return found


def _phases(value: object) -> tuple[Phase, ...]:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        value = ",".join(value)
    if not isinstance(value, str):
        raise TypeError("should be an array of phases")
    return parse_phases(value)
