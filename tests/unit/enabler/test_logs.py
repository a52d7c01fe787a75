"""Both forms of a line of the log."""

from __future__ import annotations

import json
import logging
import sys

from enabler import logs, tokens


def record(message: str, level: int = logging.INFO, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("enabler.test", level, __file__, 1, message, (), None)
    made.fields = fields
    return made


def test_text() -> None:
    assert logs.Text().format(record("here")) == "INFO enabler.test: here"


def test_json_has_fields_of_its_own() -> None:
    entry = json.loads(logs.Json().format(record("VM moved", vm="1111", seconds=1.5)))
    assert entry["time"].endswith("Z")
    del entry["time"]
    assert entry == {
        "level": "info",
        "logger": "enabler.test",
        "message": "VM moved",
        "vm": "1111",
        "seconds": 1.5,
    }


def test_one_record_is_one_line() -> None:
    for form in (logs.Text(), logs.Json()):
        assert len(form.format(record("a\nERROR b\r\x1b[2J\u2028c")).splitlines()) == 1


def test_a_token_is_not_written_wherever_it_is() -> None:
    token = tokens.make()
    try:
        raise ValueError(f"no {token}")
    except ValueError:
        made = record(f"{token} and {token}", key=token)
        made.exc_info = sys.exc_info()
    for form in (logs.Text(), logs.Json()):
        line = form.format(made)
        assert token[len(tokens.PREFIX) :] not in line
        assert f"{tokens.PREFIX}..." in line
        assert "ValueError" in line


def test_the_journal_gets_a_priority_on_each_line() -> None:
    try:
        raise ValueError
    except ValueError:
        made = record("failed", logging.ERROR)
        made.exc_info = sys.exc_info()
    lines = logs.Text(to_journal=True).format(made).splitlines()
    assert len(lines) > 2
    assert all(line.startswith("<3>") for line in lines)
    assert logs.Json(to_journal=True).format(record("x")).startswith("<6>{")
