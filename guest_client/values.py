"""Reading single values, from TOML, from the environment or from the command line. Pure.

Each raises ``TypeError`` or ``ValueError`` with words that fit behind the name of what was read.
"""

from __future__ import annotations

import shlex
from pathlib import Path

LONGEST_SECONDS = 24 * 3600.0


def parse_text(value: object) -> str:
    """Read a string that is not empty."""
    if not isinstance(value, str) or not value:
        raise TypeError("should be a string that is not empty")
    return value


def parse_seconds(value: object) -> float:
    """Read a time span in seconds: more than 0, a day at most."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise TypeError("should be a number of seconds")
    try:
        seconds = float(value)
    except ValueError:
        raise ValueError(f"should be a number of seconds, not {value!r}") from None
    if not 0 < seconds <= LONGEST_SECONDS:
        raise ValueError(f"should be more than 0 and at most {LONGEST_SECONDS:g} seconds")
    return seconds


def parse_path(value: object) -> Path:
    """Read the full path of a file or folder."""
    path = Path(parse_text(value))
    if not path.is_absolute():
        raise ValueError(f"should be a full path, not {str(path)!r}")
    return path


def parse_command(value: object) -> tuple[str, ...]:
    """Read a program and its arguments: an array of strings, or text as a shell would split it."""
    if isinstance(value, str):
        try:
            words = tuple(shlex.split(value))
        except ValueError as error:
            raise ValueError(f"can't be split into words: {error}") from error
    elif isinstance(value, list) and all(isinstance(word, str) for word in value):
        words = tuple(value)
    else:
        raise TypeError('should be an array of strings, as in ["/usr/bin/program", "argument"]')
    if not words or not words[0]:
        raise ValueError("names no program")
    return words
