"""Tables for people. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from enabler.documents import timestamp


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as text: a line for the head, one for each row; None is ``-``."""
    lines = [tuple(_cell(cell) for cell in row) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, datetime):
        return timestamp(value)
    # What a VM or a host is called was given by somebody: no control characters to the terminal.
    return "".join(char if char.isprintable() else "?" for char in str(value))
