"""Ranges of numbers, digit by digit: against counting, and against decimal arithmetic."""

import itertools
import random
import re
from decimal import Decimal

import pytest

from redge_guidance.constraints.schema_numbers import decimals_between, integers_between, multiples_between
from tests.helpers.languages import drawn

BOUNDS = [
    -1001,
    -1000,
    -999,
    -123,
    -101,
    -100,
    -99,
    -11,
    -10,
    -9,
    -1,
    0,
    1,
    2,
    9,
    10,
    11,
    19,
    99,
    100,
    101,
    999,
    1000,
    1001,
]


@pytest.mark.parametrize("low", [None, *BOUNDS])
def test_integers_are_those_of_the_range(low):
    written = [str(number) for number in range(-1100, 1101)] + ["-0", "01", "-01", "", "-", "1.0", "00"]
    for high in [None, *BOUNDS]:
        pattern = integers_between(low, high)
        wanted = {
            str(number)
            for number in range(-1100, 1101)
            if (low is None or low <= number) and (high is None or number <= high)
        }
        if low is not None and high is not None and low > high:
            assert pattern is None
        else:
            assert {text for text in written if re.fullmatch(pattern, text)} == wanted, (low, high)


def test_integers_without_end_have_any_number_of_digits():
    assert re.fullmatch(integers_between(7, None), "1" * 30)
    assert re.fullmatch(integers_between(None, -7), "-" + "1" * 30)
    assert not re.fullmatch(integers_between(-7, None), "-" + "1" * 30)


def test_multiples():
    found = [number for number in range(-50, 51) if re.fullmatch(multiples_between(-20, 33, 7), str(number))]
    assert found == [-14, -7, 0, 7, 14, 21, 28]
    assert multiples_between(1, 6, 7) is None


@pytest.mark.parametrize(("above", "below"), list(itertools.product([False, True], repeat=2)))
def test_decimals_are_those_of_the_range(above, below):
    texts = ["-0", "-0.0", "01", "1.", ".5", "00.1", ""]
    fractions = ["", *(f".{digit}" for digit in range(10)), ".00", ".25", ".249", ".251", ".05", ".50", ".999"]
    texts += [f"{sign}{n}{end}" for sign in ("", "-") for n in (0, 1, 2, 9, 10, 12, 99, 100) for end in fractions]
    wrong = re.compile(r"|-0(\.0*)?|0\d.*|.*\.|\..*|-0\d.*")
    for low, high in itertools.product([None, -12.25, -1, -0.5, 0, 0.05, 0.25, 1, 9.5, 12, 100], repeat=2):
        pattern = decimals_between(low, high, above, below)
        if pattern is None or low is high is None:
            assert low is high is None or low > high or (low == high and (above or below))
            continue
        for text in texts:
            is_in = not wrong.fullmatch(text)
            is_in = is_in and (low is None or Decimal(text) > Decimal(str(low)) - (0 if above else Decimal("1e-9")))
            is_in = is_in and (high is None or Decimal(text) < Decimal(str(high)) + (0 if below else Decimal("1e-9")))
            assert bool(re.fullmatch(pattern, text)) == is_in, (low, high, text)


def test_no_float_is_rounded_onto_a_bound():
    generator = random.Random(0)
    bounds = [0, 0.1, 1, 1 / 3, 0.1 + 0.2, 123.456, 99999.999, -0.7, -1e-7, 12345678901234]
    for low in bounds:
        for pattern in (
            decimals_between(low, None, above=True),
            decimals_between(low, low + 1, above=True, below=True),
        ):
            for _ in range(100):
                assert float(drawn(pattern, generator, more=20)) > low
    below = decimals_between(None, 1, below=True)
    assert re.fullmatch(below, "0.99999999999999")
    assert not re.fullmatch(below, "0." + "9" * 20)  # which is 1.0


def test_bounds_beyond_floats_are_an_error():
    with pytest.raises(OverflowError):
        decimals_between(10**15, None)
