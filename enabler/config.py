"""Settings: the TOML file, the environment and the flags, in that order of rising weight.

A key ``libvirt_uri`` of the file is ``ENABLER_LIBVIRT_URI`` in the environment; ``[machine]
serial_number`` is ``ENABLER_MACHINE__SERIAL_NUMBER``. A list in the environment is separated by
commas. An unknown key is an error wherever it stands: a setting that is silently ignored is worse
than none.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from enabler import listen as listening
from enabler.errors import ConfigurationError

CONFIG_FILE = Path("/etc/enabler/enabler.toml")

ENV_PREFIX = "ENABLER_"


class MachineSettings(BaseModel):
    """``[machine]``: what this machine is, in so many words, where its firmware does not say it or
    says it wrong.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    manufacturer: str | None = Field(None, description="The maker of the machine.")
    type: str | None = Field(None, description="The machine type, where the maker has one.")
    model: str | None = Field(None, description="The model, or the product name.")
    serial_number: str | None = Field(None, description="The serial number on the machine's label.")
    uuid: str | None = Field(None, description="The machine's UUID (SMBIOS System UUID).")


class LimitSettings(BaseModel):
    """``[limits]``: how much a guest may ask for. The guest listener's alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_second: float = Field(
        100, ge=0, description="Requests of one caller, in the long run. 0: any number."
    )
    burst: int = Field(200, ge=1, description="Requests of one caller at once.")
    connections_per_caller: int = Field(64, ge=1, description="Connections of one caller.")
    connections: int = Field(20_000, ge=1, description="Connections in all.")
    request_seconds: float = Field(
        10, gt=0, description="Seconds within which a request must be here whole."
    )
    idle_seconds: int = Field(75, ge=1, description="Seconds that an unused connection is kept.")
    header_bytes: int = Field(
        16_384, ge=1024, description="The longest request line and header together."
    )
    body_bytes: int = Field(16_384, ge=0, description="The longest request body.")


class FleetSettings(BaseModel):
    """``[fleet]``: where this host publishes what happens on it, and ``enabler fleet`` asks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    servers: tuple[str, ...] = Field(
        (), description="NATS servers: nats://HOST:PORT or tls://HOST:PORT. None: no fleet."
    )
    credentials: Path | None = Field(
        None, description="A NATS credentials file (.creds), or the seed of an nkey."
    )
    ca: Path | None = Field(None, description="Who signs the servers' certificates, PEM.")
    certificate: Path | None = Field(None, description="Our certificate for the servers, PEM.")
    key: Path | None = Field(None, description="The certificate's key, PEM.")
    host: str | None = Field(
        None, description="This host's UUID in the fleet. Unset: libvirt's host UUID."
    )
    spool: Path = Field(
        Path("/var/lib/enabler/fleet"),
        description="Where events are kept until the servers have them.",
    )
    spool_megabytes: int = Field(
        64, ge=1, description="The most that is kept; what is more, the oldest makes room for."
    )
    heartbeat_seconds: float = Field(
        30, ge=1, le=3600, description="Seconds between two signs of life of this host."
    )

    @field_validator("servers", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("servers")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for server in value:
            parts = urlsplit(server)
            if parts.scheme not in ("nats", "tls") or not parts.hostname:
                raise ValueError(f"{server!r} should be nats://HOST:PORT or tls://HOST:PORT")
        return value

    @field_validator("host")
    @classmethod
    def _canonical(cls, value: str | None) -> str | None:
        return None if value is None else str(UUID(value))


class Settings(BaseModel):
    """All settings of the enabler."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    libvirt_uri: str = Field(
        "qemu:///system", description="The hypervisor of this host, as libvirt names it."
    )
    listen: tuple[str, ...] = Field(
        (
            "http://169.254.77.1:8777",
            "http://[fe80::77:1%25enabler0]:8777",
            "unix:/run/enabler/admin.sock",
        ),
        description="Where to listen: http://ADDRESS:PORT or vsock:PORT for guests, unix:/PATH for "
        "the admin.",
        min_length=1,
    )
    callers: tuple[Literal["vsock", "token", "address"], ...] = Field(
        ("vsock", "token", "address"),
        description="How a guest is known: the ways that count, the strongest first.",
        min_length=1,
    )
    admin_mode: str = Field(
        "0660", pattern="^0?[0-7]{3}$", description="Access mode of the admin socket, octal."
    )
    admin_group: str | None = Field(
        None, description="Group of the admin socket. Unset: the enabler's own group."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="What is logged, to standard error."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="How: text for people, or a JSON object a line."
    )
    metrics: str | None = Field(
        None,
        description="ADDRESS:PORT of a listener for Prometheus (GET /metrics), such as "
        "127.0.0.1:9177. Unset: the admin socket alone has it.",
    )
    keys_directory: Path = Field(
        Path("/var/lib/enabler/keys"),
        description="Where the signing key is made and kept, and all public keys until now.",
    )
    signing_key: Path | None = Field(
        None, description="A signing key that is given: an Ed25519 key as JWK or PEM."
    )
    attestation_days: int = Field(
        400, ge=1, le=3660, description="Days until an attestation expires."
    )
    tls_certificate: Path | None = Field(
        None, description="The certificate of https:// listeners and its chain, PEM."
    )
    tls_key: Path | None = Field(None, description="The certificate's key, PEM.")
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="Names that a guest's request may have in Host, beside the listener's address.",
    )
    machine: MachineSettings = Field(
        MachineSettings(), description="The machine identity, where it must be given."
    )
    limits: LimitSettings = Field(LimitSettings(), description="How much a guest may ask for.")
    fleet: FleetSettings = Field(
        FleetSettings(), description="Where this host publishes what happens on it."
    )

    @field_validator("listen", "callers", "allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("callers")
    @classmethod
    def _once_each(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("each way is named once")
        return value

    @property
    def addresses(self) -> list[listening.Address]:
        """What ``listen`` names. Raises `ConfigurationError`."""
        return [listening.parse(text) for text in self.listen]

    @property
    def metrics_address(self) -> listening.HttpAddress | None:
        """What ``metrics`` names: nothing that guests can reach. Raises `ConfigurationError`."""
        if self.metrics is None:
            return None
        try:
            address = listening.parse(f"http://{self.metrics}")
        except ConfigurationError:
            raise ConfigurationError(
                f"metrics {self.metrics!r} is no IP address and port; write 127.0.0.1:9177"
            ) from None
        assert isinstance(address, listening.HttpAddress)
        host = ip_address(address.host)
        guests = {each.host for each in self.addresses if isinstance(each, listening.HttpAddress)}
        if not host.is_loopback and (
            host.is_unspecified or host.is_link_local or address.host in guests
        ):
            raise ConfigurationError(
                f"metrics {self.metrics!r}: guests could read there what is the admin's; write "
                "127.0.0.1:9177, or this host's address on the network of its Prometheus"
            )
        return address


_TABLES: dict[str, type[BaseModel]] = {
    "machine": MachineSettings,
    "limits": LimitSettings,
    "fleet": FleetSettings,
}


def load(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Settings:
    """Return the settings. ``file`` None means `CONFIG_FILE`, if it is there; a flag that is None
    was not given; a flag ``fleet.servers`` is a key of a table.

    Raises `ConfigurationError`, whose message names the key and the place it was found in.
    """
    path = file or CONFIG_FILE
    values = _from_file(path, must_exist=file is not None)
    _check(values, path)
    from_environment = _from_environment(environment)
    given = {key: value for key, value in flags.items() if value is not None}
    tables = {name: {**values.get(name, {}), **from_environment.pop(name, {})} for name in _TABLES}
    for flag in [name for name in given if "." in name]:
        table, _, key = flag.partition(".")
        tables[table][key] = given.pop(flag)
    settings = _validate({**values, **from_environment, **given, **tables}, "the settings")
    _ = settings.addresses, settings.metrics_address
    return settings


def _from_file(path: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        with path.open("rb") as opened:
            return tomllib.load(opened)
    except FileNotFoundError:
        if must_exist:
            raise ConfigurationError(f"there is no configuration file {path}") from None
        return {}
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} can't be read: {error}") from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in environment.items():
        if not name.startswith(ENV_PREFIX):
            continue
        key, _, inner = name.removeprefix(ENV_PREFIX).lower().partition("__")
        if inner:
            values.setdefault(key, {})[inner] = value
        else:
            values[key] = value
    _check(values, f"the environment ({ENV_PREFIX}…)")
    return values


def _check(values: Mapping[str, Any], where: object) -> None:
    """Check one source by itself, so that a mistake is reported where it was made."""
    _unknown(values, Settings.model_fields, where, "")
    for name, table in _TABLES.items():
        inner = values.get(name, {})
        if isinstance(inner, Mapping):
            _unknown(inner, table.model_fields, where, f"{name}.")
    _validate(dict(values), where)


def _unknown(given: Mapping[str, Any], known: Iterable[str], where: object, prefix: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, list(known), n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(known)}"
            raise ConfigurationError(f"{where}: unknown key {prefix}{key}; {hint}")


def _validate(values: dict[str, Any], where: object) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"{where}: {key}: {first['msg']}") from error
