"""Numbers kept as runs are the set that they stand for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enabler.fleet.numbers import Numbers


@given(st.lists(st.integers(0, 40)))
def test_they_are_a_set(given_numbers: list[int]) -> None:
    numbers, wanted = Numbers(), set()
    for number in given_numbers:
        assert numbers.add(number) == (number not in wanted)
        wanted.add(number)
        assert len(numbers) == len(wanted)
    assert [number for number in range(-1, 42) if number in numbers] == sorted(wanted)
    holes = max(wanted) - min(wanted) + 1 - len(wanted) if wanted else 0
    assert numbers.missing == holes


def test_what_comes_in_order_takes_no_room() -> None:
    numbers = Numbers()
    for number in range(10_000):
        numbers.add(number)
    assert (len(numbers), numbers.missing, len(numbers._firsts)) == (10_000, 0, 1)
