"""Every number that is taken may be one of NumPy, a fraction or a tensor without dimension."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redge_guidance.checks import as_real, as_whole, is_sequence, real_number, whole_number

WHOLE = [int, np.int8, np.int64, np.uint16, np.array, torch.tensor, lambda n: torch.tensor(n, dtype=torch.int16)]
REAL = [float, np.float64, np.array, Fraction, Decimal, lambda x: torch.tensor(x, dtype=torch.float64)]
NONE = [None, True, False, np.True_, torch.tensor(True), "3", b"3", 1j, [3], (3,), torch.tensor([3]), np.array([3])]
NONE += [torch.tensor(3, device="meta"), torch.tensor(1j), {}, object(), int]


@given(st.integers(0, 100), st.sampled_from(WHOLE))
def test_whole_numbers_of_every_kind_are_plain_integers(number, kind):
    for found in (as_whole(kind(number)), as_real(kind(number)), whole_number("n", kind(number), 0)):
        assert type(found) is int
        assert found == number


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(REAL))
def test_real_numbers_of_every_kind_are_plain_floats(number, kind):
    assert as_whole(kind(number)) is None
    for found in (as_real(kind(number)), real_number("x", kind(number))):
        assert type(found) is float
        assert found == number


@pytest.mark.parametrize("value", NONE, ids=lambda value: type(value).__name__)
def test_what_is_no_number(value):
    assert as_whole(value) is None
    assert as_real(value) is None
    with pytest.raises(ValueError, match="`n` must be an integer >= 1, got"):
        whole_number("n", value, 1)
    with pytest.raises(ValueError, match="`x` must be a number, got"):
        real_number("x", value)


def test_the_ends_of_the_line():
    assert math.isnan(as_real(np.float32("nan")))
    assert as_real(torch.tensor(torch.inf)) == math.inf
    assert as_real(10**400) == math.inf
    assert as_real(-Fraction(10**400)) == -math.inf
    assert as_whole(10**400) == 10**400
    assert as_real(2**63 - 1) == 2**63 - 1
    assert all(type(as_real(whole)) is float for whole in (2**63, -(2**64), 10**30))  # larger than torch's integers
    assert math.isnan(as_real(Decimal("sNaN")))
    assert as_real(torch.tensor(0.5, requires_grad=True)) == 0.5
    with pytest.raises(ValueError, match="`n` must be an integer >= 2, got 1; two are compared"):
        whole_number("n", 1, 2, "two are compared")


def test_sequences():
    assert all(map(is_sequence, ([1], (1,), np.ones(2), torch.ones(2), range(3))))
    assert not any(map(is_sequence, (1, np.float64(1), np.array(1), torch.tensor(1), "ab", None)))
