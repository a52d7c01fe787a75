"""A measured figure, its baseline and its aim; the table and the JSON file of a run."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

REPORT = Path(".cache/bench.json")


@dataclass(frozen=True, slots=True)
class Aim:
    """A bound of the figure's value."""

    relation: Literal["at least", "at most"]
    bound: float

    def met(self, value: float) -> bool:
        return value >= self.bound if self.relation == "at least" else value <= self.bound

    def __str__(self) -> str:
        return f"{self.relation} {self.bound:g}"


def at_least(bound: float) -> Aim:
    return Aim("at least", bound)


def at_most(bound: float) -> Aim:
    return Aim("at most", bound)


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. ``value`` is what the aim is about: the ratio of measured to baseline
    where there is one, else what was measured.
    """

    bench: str
    name: str
    measured: float
    unit: str
    baseline: float | None = None
    baseline_name: str = ""
    aim: Aim | None = None

    @property
    def value(self) -> float:
        return self.measured if self.baseline is None else self.measured / self.baseline

    @property
    def met(self) -> bool | None:
        return None if self.aim is None else self.aim.met(self.value)


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as a table in Markdown."""
    rows = [("figure", "measured", "baseline", "ratio", "aim", "")]
    for figure in figures:
        baseline, ratio = "", ""
        if figure.baseline is not None:
            baseline = f"{_number(figure.baseline)} {figure.unit} ({figure.baseline_name})"
            ratio = f"{figure.value:.2f}"
        verdict = {None: "", True: "met", False: "MISSED"}[figure.met]
        measured = f"{_number(figure.measured)} {figure.unit}"
        aim = str(figure.aim) if figure.aim else ""
        rows.append((figure.name, measured, baseline, ratio, aim, verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def write(figures: Sequence[Figure], path: Path = REPORT) -> None:
    """Write the figures as JSON; those of other benches that are there already stay."""
    measured = {figure.bench for figure in figures}
    kept = []
    if path.exists():
        kept = [each for each in json.loads(path.read_text()) if each["bench"] not in measured]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    machine = f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"
    new = [
        {
            "bench": figure.bench,
            "figure": figure.name,
            "measured": figure.measured,
            "unit": figure.unit,
            "baseline": figure.baseline,
            "baseline_is": figure.baseline_name,
            "value": figure.value,
            "aim": str(figure.aim) if figure.aim else None,
            "met": figure.met,
            "at": now,
            "on": machine,
        }
        for figure in figures
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*kept, *new], indent=2) + "\n")


def say(text: str) -> None:
    """Tell how far a bench is."""
    print(text, file=sys.stderr, flush=True)
