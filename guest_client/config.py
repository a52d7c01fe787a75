"""The settings: a TOML file, then the environment, then flags, in that order of rising weight.

Every key is one row of :data:`KEYS`, which the file, the environment, ``--help``, ``doctor`` and
the documentation all share. A key that nobody knows is an error and not a shrug: a misspelt setting
that is silently ignored is worse than none. A variable that is empty counts as not set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guest_client.compat import parse_toml
from guest_client.endpoint import DEFAULT_ENABLER, Endpoint, parse_endpoint
from guest_client.errors import ConfigurationError
from guest_client.token import DEFAULT_TOKEN_FILE, TokenFile
from guest_client.values import parse_command, parse_path, parse_seconds, parse_text

if TYPE_CHECKING:
    from guest_client.agent.settings import Destination, Program

CONFIG_FILE = Path("/etc/guest-client/config.toml")
ENVIRONMENT_PREFIX = "GUEST_CLIENT_"
CONFIG_VARIABLE = "GUEST_CLIENT_CONFIG"
"""Names another configuration file; the one variable that is no key."""

DEFAULT_DEADLINE = 30.0
DEFAULT_STATE_DIR = Path("/var/lib/guest-client")
DEFAULT_WATCH_INTERVAL = 5.0


def _endpoint(value: object) -> Endpoint:
    return parse_endpoint(parse_text(value))


def _programs(value: object) -> tuple[Program, ...]:
    from guest_client.agent.settings import parse_programs  # only where there are any

    return parse_programs(value)


def _destinations(value: object) -> tuple[Destination, ...]:
    from guest_client.agent.settings import parse_destinations

    return parse_destinations(value)


@dataclass(frozen=True)
class Key:
    """One setting: its name in the file, how it is read, and what it is for."""

    name: str
    parse: Callable[[object], Any]
    """Takes what TOML or the environment has; raises ``TypeError`` or ``ValueError``."""
    default: str
    meaning: str

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return ENVIRONMENT_PREFIX + self.name.upper()


KEYS: tuple[Key, ...] = (
    Key(
        "enabler",
        _endpoint,
        DEFAULT_ENABLER,
        "Where the enabler listens: auto (vsock, else the link-local address), vsock://CID:PORT,"
        " http://ADDRESS:PORT (https: for TLS), http://[fe80::77:1%25INTERFACE]:PORT or unix:/PATH",
    ),
    Key(
        "token_file",
        parse_path,
        f"{DEFAULT_TOKEN_FILE}, if there is one",
        "The file, for its owner alone, with the token that the enabler knows this VM by",
    ),
    Key(
        "ca_file",
        parse_path,
        "what the system trusts",
        "Whose certificates (PEM) prove an https:// enabler",
    ),
    Key(
        "deadline",
        parse_seconds,
        f"{DEFAULT_DEADLINE:g}",
        "Seconds that one read of the identity may last, retries included",
    ),
    Key(
        "state_dir",
        parse_path,
        str(DEFAULT_STATE_DIR),
        "Where triggers (and the agent's state) are kept",
    ),
    Key(
        "notify_program",
        parse_command,
        "none",
        "The program that --notify-if-migrated runs, with its arguments",
    ),
    Key(
        "agent_id_file",
        parse_path,
        "STATE_DIR/agent-id",
        "The file whose first line is the agent ID",
    ),
    Key(
        "watch_interval",
        parse_seconds,
        f"{DEFAULT_WATCH_INTERVAL:g}",
        "Seconds between two looks of `agent run --watch` at the enabler",
    ),
    Key(
        "program",
        _programs,
        "the built-in one, which regenerates the agent ID",
        "The programs that the agent registers: tables with name, command, on, timeout, tries,"
        " user; in the environment one NAME=COMMAND",
    ),
    Key(
        "destination",
        _destinations,
        "none",
        "Where the agent sends events: tables with url, ca_file, secret_file; in the environment"
        " URLs with spaces between",
    ),
)


@dataclass(frozen=True)
class Settings:
    """What is in force. ``sources`` says for each key that is not at its default who set it."""

    enabler: Endpoint = field(default_factory=lambda: parse_endpoint(DEFAULT_ENABLER))
    token_file: Path | None = None
    ca_file: Path | None = None
    deadline: float = DEFAULT_DEADLINE
    state_dir: Path = DEFAULT_STATE_DIR
    notify_program: tuple[str, ...] | None = None
    agent_id_file: Path | None = None
    watch_interval: float = DEFAULT_WATCH_INTERVAL
    program: tuple[Program, ...] | None = None
    destination: tuple[Destination, ...] = ()
    file: Path | None = None
    """The configuration file that was read; ``None`` if there is none."""
    sources: Mapping[str, str] = field(default_factory=dict)


def load(
    flags: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
    file: Path | None = None,
) -> Settings:
    """Put the settings together; raises :class:`ConfigurationError`.

    ``flags`` has values that are checked already, by key; ``None`` is a flag that was not given.
    ``file``, or the variable ``GUEST_CLIENT_CONFIG``, names a file that must be there; the default
    one need not.
    """
    path = file or (
        Path(environment[CONFIG_VARIABLE]) if environment.get(CONFIG_VARIABLE) else None
    )
    found = _read_file(path or CONFIG_FILE, must_exist=path is not None)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if found is not None:
        for name, value in found.items():
            key = _key(name, str(path or CONFIG_FILE))
            values[name] = _checked(key, value, f"{path or CONFIG_FILE}: {name}")
            sources[name] = str(path or CONFIG_FILE)
    for variable, text in environment.items():
        if text and variable.startswith(ENVIRONMENT_PREFIX) and variable != CONFIG_VARIABLE:
            key = _variable(variable)
            values[key.name] = _checked(key, text, variable)
            sources[key.name] = variable
    for name, value in flags.items():
        if value is not None:
            values[name] = value
            sources[name] = "the command line"
    read = (path or CONFIG_FILE) if found is not None else None
    settings = Settings(**values, file=read, sources=sources)
    return replace(settings, enabler=_with_credentials(settings))


def _with_credentials(settings: Settings) -> Endpoint:
    token = TokenFile(settings.token_file or DEFAULT_TOKEN_FILE, settings.token_file is not None)
    return replace(settings.enabler, token_file=token, ca_file=settings.ca_file)


def _read_file(path: Path, *, must_exist: bool) -> dict[str, Any] | None:
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        if not must_exist:
            return None
        raise ConfigurationError(
            f"there is no configuration file {path}; write it or name another"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"can't read the configuration file {path}: {error.strerror}; check its mode and owner"
        ) from error
    try:
        return parse_toml(text.decode())
    except ValueError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}; mend that place") from error


def _key(name: str, where: str) -> Key:
    for key in KEYS:
        if key.name == name:
            return key
    raise ConfigurationError(
        f"{where}: unknown key {name!r}; {nearest(name, (k.name for k in KEYS))}"
    )


def _variable(variable: str) -> Key:
    for key in KEYS:
        if key.variable == variable:
            return key
    known = [*(key.variable for key in KEYS), CONFIG_VARIABLE]
    raise ConfigurationError(f"unknown environment variable {variable}; {nearest(variable, known)}")


def nearest(name: str, known: Iterable[str], what: str = "keys") -> str:
    """Say which of the known names somebody may have meant, or what they all are."""
    import difflib

    choices = list(known)
    near = difflib.get_close_matches(name, choices, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"the {what} are {', '.join(choices)}"


def _checked(key: Key, value: object, where: str) -> Any:
    try:
        return key.parse(value)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{where}: {error}") from error
