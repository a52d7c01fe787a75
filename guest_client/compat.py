"""What the oldest Python that guests run, 3.9, lacks of what this client uses. No more.

The rest of the client is written so that 3.9 understands it: ``make lint`` and ``make types`` see
to that, and ``tests/packages`` runs it on each Python that it claims.
"""

from __future__ import annotations

import sys
from typing import Any

if sys.version_info >= (3, 11):
    from enum import StrEnum  # novm
else:
    from enum import Enum

    class StrEnum(str, Enum):
        """Members that are their values, also where they are written into a text."""

        def __str__(self) -> str:
            return str(self.value)

        def __format__(self, spec: str) -> str:
            return format(str(self), spec)


__all__ = ["StrEnum", "parse_toml"]


def parse_toml(text: str) -> dict[str, Any]:
    """Read a TOML document; raises ``ValueError`` saying where it is none."""
    if sys.version_info >= (3, 11):
        import tomllib  # novm
    else:  # what became tomllib; the packages bring it along
        import tomli as tomllib

    document: dict[str, Any] = tomllib.loads(text)
    return document
