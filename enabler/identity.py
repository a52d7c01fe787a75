"""Machine identity: which real machine this is. Pure: no I/O but the packaged list of fillers.

A `Claim` is what one source (SMBIOS through libvirt, sysfs, the device tree …) says, raw.
`identify` turns claims and what the administrator configured into one `MachineIdentity`, or says
why it can't: DESIGN rule 2, an identity is never invented, and a vendor's filler is none.

What goes in, and what does not. The component ID must stay the same for the machine's life and
differ from every other machine's. So it holds the manufacturer, the type, the model, the serial
number and the UUID, which a maker writes once, and none of what a firmware update rewrites: no BIOS
version or date, no SMBIOS Version, SKU or Family.

The UUID's byte order. SMBIOS before 2.6 left open in which order the first three fields are stored;
since 2.6 they are little-endian (DSP0134 7.2.1). dmidecode (which libvirt runs) and Linux
(``drivers/firmware/dmi_scan.c``) follow one rule: swapped from 2.6 on, as stored before. We take
what they print, so that what the enabler shows is what any tool on the host shows. The consequence:
an update that raises a pre-2009 machine from SMBIOS 2.5 or older to 2.6 or newer changes the
printed UUID and with it the component ID; ``[machine] uuid`` in the configuration pins the old one.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
import uuid as uuids
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from enabler.errors import IdentityError
from enabler.fillers import Fillers, default_fillers

FIELDS = ("manufacturer", "type", "model", "serial_number", "uuid")
"""The five facts, by the names that the contract, the configuration and a claim give them."""

CONFIGURATION = "configuration"
"""The source named where no source but the configuration gave anything."""

_CONFIG_FILE = "/etc/enabler/enabler.toml"
_DROPPED_CATEGORIES = frozenset({"Cc", "Cf", "Cs"})  # control, format (invisible), lone surrogates


@dataclass(frozen=True, slots=True)
class MachineIdentity:
    """The facts that say which real machine this is, in canonical form. Made by `identify`."""

    serial_number: str
    manufacturer: str | None = None
    type: str | None = None
    model: str | None = None
    uuid: str | None = None

    @property
    def canonical_json(self) -> bytes:
        """The five members in RFC 8785's form: sorted keys, no white space, UTF-8; null if unknown.

        (Canonical values hold no control character, so JSON escapes only quotes and backslashes.)
        """
        members = {field: getattr(self, field) for field in FIELDS}
        text = json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return text.encode()

    @property
    def component_id(self) -> str:
        """The host component ID: ``sha256:`` and the SHA-256, in hex, of `canonical_json`.

        Anybody can compute it again from the published document::

            enabler identity --json | jq -cjS .machine | sha256sum
        """
        return "sha256:" + hashlib.sha256(self.canonical_json).hexdigest()


@dataclass(frozen=True, slots=True)
class Claim:
    """What one source says of the machine: raw values, None where it says nothing.

    `withheld` are facts that the source has and did not let us read; an identity that lacked one of
    them would be another identity, so `identify` never builds on such a claim unless the
    configuration gives those facts. `note` says in a few words why there is nothing, or less than
    there could be.
    """

    source: str
    manufacturer: str | None = None
    type: str | None = None
    model: str | None = None
    serial_number: str | None = None
    uuid: str | None = None
    withheld: frozenset[str] = frozenset()
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Identified:
    """A machine identity, and where it is from."""

    machine: MachineIdentity
    source: str
    """The claim that it rests on, or `CONFIGURATION`."""
    configured: tuple[str, ...] = ()
    """The facts that the configuration gave, in the order of `FIELDS`."""


def canonical(text: str | None) -> str | None:
    """`text` in canonical form, or None when nothing is left.

    Unicode NFC, without control and invisible characters, trimmed, each run of white space one
    blank.
    """
    if text is None:
        return None
    visible = "".join(
        " " if char.isspace() else char
        for char in text
        if char.isspace() or unicodedata.category(char) not in _DROPPED_CATEGORIES
    )
    return " ".join(unicodedata.normalize("NFC", visible).split()) or None


def canonical_uuid(text: str | None) -> str | None:
    """`text` as a UUID in lower case with hyphens, or None when it is no UUID."""
    text = canonical(text)
    if text is None:
        return None
    try:
        return str(uuids.UUID(text))
    except ValueError:
        return None


def identify(
    claims: Sequence[Claim],
    configured: Mapping[str, str | None] | None = None,
    fillers: Fillers | None = None,
) -> Identified:
    """The machine's identity out of what the sources claim, in their order, and of the
    configuration.

    The first claim with a serial number that can be trusted wins, whole: facts of two sources are
    never mixed. What is configured (keys of `FIELDS`) then takes the claim's place, fact by fact;
    an empty value counts as not configured. When the serial number is configured and no source has
    one, the other facts come from the first source that knows the manufacturer or the UUID.

    Raises:
        IdentityError: no serial number that can be trusted; or one without either a manufacturer
            or a UUID beside it (a serial number is unique within one maker only); or a configured
            value is a filler, or no UUID. The message says what was found where and, after the
            last semicolon, what to do.
    """
    fillers = fillers or default_fillers()
    given = _check_configured(configured or {}, fillers)
    read = [_Reading.of(claim, fillers) for claim in claims]
    base = _choose(read, given)
    facts = {**(base.facts if base else {}), **given}
    if "serial_number" not in facts:
        raise IdentityError(
            f"no serial number of this machine can be trusted ({_findings(read)}); "
            + _remedy("serial_number", "the one on the machine's label", example="78ABCDE")
        )
    withheld = (base.claim.withheld if base else frozenset()) - given.keys()
    if base and withheld:
        raise IdentityError(
            f"{base.claim.source} does not let this user read the machine's {_names(withheld)}; "
            f"run the enabler as root, or write the value in {_CONFIG_FILE} under [machine]"
        )
    if "manufacturer" not in facts and "uuid" not in facts:
        raise IdentityError(
            f"serial number {facts['serial_number']!r} has neither a manufacturer nor a UUID "
            f"beside it ({_findings(read)}), and alone it is unique within one maker only; "
            + _remedy("manufacturer", "the maker's name", example="IBM")
        )
    return Identified(
        machine=MachineIdentity(**facts),
        source=base.claim.source if base else CONFIGURATION,
        configured=tuple(field for field in FIELDS if field in given),
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    """A claim, its trusted facts in canonical form, and why the rest is not trusted."""

    claim: Claim
    facts: dict[str, str]
    doubts: tuple[str, ...]

    @staticmethod
    def of(claim: Claim, fillers: Fillers) -> _Reading:
        facts: dict[str, str] = {}
        doubts: list[str] = []
        for field in FIELDS:
            raw = canonical(getattr(claim, field))
            if raw is None:
                continue
            reason = fillers.reason(field, raw)
            value = canonical_uuid(raw) if field == "uuid" else raw
            if reason is not None:
                doubts.append(f"{_name(field)} {raw!r} is a filler")
            elif value is None:
                doubts.append(f"{_name(field)} {raw!r} is no UUID")
            else:
                facts[field] = value
        if claim.withheld:
            doubts.append(f"{_names(claim.withheld)} readable by root only")
        return _Reading(claim, facts, tuple(doubts))

    def __str__(self) -> str:
        parts = list(self.doubts)
        if self.claim.note:
            parts.append(self.claim.note)
        elif "serial_number" not in self.facts and not parts:
            parts.append("no serial number")
        return f"{self.claim.source}: {', '.join(parts) or 'nothing amiss'}"


def _choose(read: Sequence[_Reading], given: Mapping[str, str]) -> _Reading | None:
    for reading in read:
        if "serial_number" in reading.facts:
            return reading
    if "serial_number" not in given:
        return None
    for reading in read:
        if "manufacturer" in reading.facts or "uuid" in reading.facts:
            return reading
    return None


def _check_configured(configured: Mapping[str, str | None], fillers: Fillers) -> dict[str, str]:
    facts: dict[str, str] = {}
    for field in FIELDS:
        raw = canonical(configured.get(field))
        if raw is None:
            continue
        reason = fillers.reason(field, raw)
        if reason is not None:
            raise IdentityError(
                f"the configured machine.{field} {raw!r} is a vendor's filler ({reason}); write "
                f"this machine's own {_name(field)} in {_CONFIG_FILE} under [machine], or "
                "remove that line"
            )
        value = canonical_uuid(raw) if field == "uuid" else raw
        if value is None:
            raise IdentityError(
                f"the configured machine.uuid {raw!r} is no UUID; write it as "
                f"xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx in {_CONFIG_FILE} under [machine]"
            )
        facts[field] = value
    return facts


def _findings(read: Sequence[_Reading]) -> str:
    return "; ".join(map(str, read)) or "no source could be asked"


def _remedy(field: str, what: str, *, example: str) -> str:
    return (
        f'write {what} in {_CONFIG_FILE}, under [machine], as {field} = "{example}", '
        f"or set ENABLER_MACHINE__{field.upper()}"
    )


def _name(field: str) -> str:
    return "UUID" if field == "uuid" else field.replace("_", " ")


def _names(fields: frozenset[str]) -> str:
    return " and ".join(_name(field) for field in FIELDS if field in fields)
