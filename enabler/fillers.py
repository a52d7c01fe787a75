"""Vendors' filler values: what stands where an identity should be and is none (DESIGN rule 2).

The list is data, ``enabler/data/fillers.toml``: each entry names the source it was published in,
and the file's head says how values are compared.
"""

from __future__ import annotations

import functools
import re
import tomllib
import uuid as uuids
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression that the whole comparison form of a filler matches."""

    fields: frozenset[str]
    regex: re.Pattern[str]
    source: str


@dataclass(frozen=True, slots=True)
class Run:
    """Counted-up characters: the beginning, `min_length` or longer, of one of `of`."""

    fields: frozenset[str]
    of: tuple[str, ...]
    min_length: int
    source: str


@dataclass(frozen=True, slots=True)
class Fillers:
    """The list, ready to be asked. Made by `parse` or `default_fillers`."""

    values: dict[tuple[str, str], str]
    """(field, comparison form) to the source of the entry."""
    patterns: tuple[Pattern, ...]
    runs: tuple[Run, ...]

    def reason(self, field: str, value: str) -> str | None:
        """Why `value` is no identity as `field` (who lists it), or None when it may be one."""
        key = comparison_form(value)
        if not key:
            return "it has no letter and no digit"
        source = self.values.get((field, key))
        if source is not None:
            return source
        for pattern in self.patterns:
            if field in pattern.fields and pattern.regex.fullmatch(key):
                return pattern.source
        for run in self.runs:
            if (
                field in run.fields
                and len(key) >= run.min_length
                and any(whole.startswith(key) for whole in run.of)
            ):
                return run.source
        return None


def comparison_form(value: str) -> str:
    """Letters and digits alone, without case: how values and fillers are compared."""
    return "".join(char for char in value.casefold() if char.isalnum())


def parse(text: str) -> Fillers:
    """The list out of its TOML. It is part of the package: a mistake in it raises as it comes."""
    data: dict[str, list[dict[str, Any]]] = tomllib.loads(text)
    values: dict[tuple[str, str], str] = {}
    for entry in data["filler"]:
        for field in entry["fields"]:
            for value in entry["values"]:
                for key in _comparison_forms(field, value):
                    values.setdefault((field, key), entry["source"])
    patterns = tuple(
        Pattern(frozenset(entry["fields"]), re.compile(entry["regex"]), entry["source"])
        for entry in data["pattern"]
    )
    runs = tuple(
        Run(frozenset(entry["fields"]), tuple(entry["of"]), entry["min_length"], entry["source"])
        for entry in data["run"]
    )
    return Fillers(values, patterns, runs)


@functools.cache
def default_fillers() -> Fillers:
    """The list that comes with the enabler."""
    return parse(resources.files("enabler").joinpath("data/fillers.toml").read_text("utf-8"))


def _comparison_forms(field: str, value: str) -> set[str]:
    forms = {comparison_form(value)}
    if field == "uuid" and len(comparison_form(value)) == 32:
        forms.add(uuids.UUID(bytes_le=uuids.UUID(value).bytes).hex)
    return forms
