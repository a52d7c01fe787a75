"""How the log is written, to standard error: text for people, or JSON objects for programs.

Where standard error is the journal's (``JOURNAL_STREAM``, systemd.exec(5)), each line begins with
its priority (sd-daemon(3)), which the journal takes off. Whatever has a token's form is not
written, wherever it came from, and what others send can't begin a line of its own.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from datetime import UTC, datetime
from typing import Any

from enabler import tokens

_TOKEN = re.compile(re.escape(tokens.PREFIX) + r"[A-Za-z0-9_~+/.=-]{8,}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_PRIORITY = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


def set_up(level: str, form: str) -> None:
    """Have the log written in a form, ``text`` or ``json``, from a level on."""
    handler = logging.StreamHandler()
    handler.setFormatter((Json if form == "json" else Text)(to_journal=_to_journal()))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # What other libraries say in passing is no news of ours.
    for library in ("uvicorn", "asyncio", "httpx", "nats"):
        logging.getLogger(library).setLevel(logging.WARNING)


class Text(logging.Formatter):
    """``LEVEL module: message``, and an exception's lines after it."""

    def __init__(self, *, to_journal: bool = False) -> None:
        super().__init__()
        self._to_journal = to_journal

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        message = _CONTROL.sub(_escaped, record.getMessage())
        lines = [f"{record.levelname} {record.name}: {message}"]
        if record.exc_info:
            lines += self.formatException(record.exc_info).splitlines()
        return "\n".join(self.finish(record, line) for line in lines)

    def finish(self, record: logging.LogRecord, line: str) -> str:
        """Return a line as it is written."""
        priority = f"<{_PRIORITY.get(record.levelno, 6)}>" if self._to_journal else ""
        return priority + _TOKEN.sub(tokens.PREFIX + "...", line)


class Json(Text):
    """A JSON object: ``time``, ``level``, ``logger``, ``message``, and what else is known as fields
    of its own (a record's ``fields``).
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry: dict[str, Any] = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return self.finish(record, json.dumps(entry, default=str))


def _escaped(match: re.Match[str]) -> str:
    return ascii(match[0])[1:-1]


def _to_journal() -> bool:
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
