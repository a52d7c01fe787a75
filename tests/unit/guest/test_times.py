"""Times as the contract writes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_client.times import parse_time, rfc3339

_ZONES = st.integers(-12, 12).map(lambda hours: timezone(timedelta(hours=hours)))


@given(st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30), timezones=_ZONES))
def test_what_is_written_is_read(moment: datetime) -> None:
    read = parse_time(rfc3339(moment))
    assert read.utcoffset() == timedelta(0)
    assert timedelta(0) <= moment - read < timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("text", "microsecond"),
    [("2026-11-23T02:37:29.3Z", 300_000), ("2026-11-23T02:37:29.304567Z", 304_567)],
)
def test_other_fractions_are_read_too(text: str, microsecond: int) -> None:
    moment = datetime(2026, 11, 23, 2, 37, 29, microsecond, UTC)
    assert parse_time(text) == moment


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-23T02:37:29.304",
        "2026-11-23T02:37:29.304+00:00",
        "2026-11-23T25:37:29.304Z",
        "2026-11-23T02:37:29+0100Z",
        "20261123T023729.30+0100Z",
    ],
)
def test_what_the_contract_does_not_write_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"time data|unconverted"):
        parse_time(text)
