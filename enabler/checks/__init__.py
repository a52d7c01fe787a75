"""What must be right on a host. `enabler.doctor` puts the checks in order and shows them.

Each module looks at one side of the host. What it finds are plain values, gathered by I/O; what
they mean is told by functions that return `Check`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from enabler.errors import EnablerError

_NO_REMEDY = "no remedy is known beyond what the message says"


class Status(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    """The enabler runs, and some VM or some case is not served as it should be."""
    FAIL = "fail"
    """The enabler can't start, or can't answer."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be right: what it is, what was found, and how to mend it."""

    name: str
    status: Status
    found: str
    remedy: str | None = None
    """One sentence with the command or the file; None when there is nothing to do."""

    @classmethod
    def ok(cls, name: str, found: str) -> Self:
        """All is well."""
        return cls(name, Status.OK, found)

    @classmethod
    def warn(cls, name: str, found: str, remedy: str) -> Self:
        """It works, but."""
        return cls(name, Status.WARN, found, remedy)

    @classmethod
    def fail(cls, name: str, found: str, remedy: str) -> Self:
        """It does not work."""
        return cls(name, Status.FAIL, found, remedy)

    @classmethod
    def failed(cls, name: str, error: EnablerError) -> Self:
        """One of the enabler's errors: what is wrong and, after the last semicolon, what to do."""
        found, _, remedy = str(error).rpartition("; ")
        return cls.fail(name, found, remedy) if found else cls.fail(name, remedy, _NO_REMEDY)
