"""Numbers as arguments: Python's, NumPy's, fractions, and tensors with one number and no dimension."""

import operator
from collections.abc import Iterable
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

from torch import Tensor


def as_whole(value: Any) -> int | None:
    """The plain Python integer that `value` is; None where it is none, as True, 2.0, strings and None are none.

    >>> as_whole(3), as_whole(True), as_whole(3.0)
    (3, None, None)
    """
    found = _without_dimension(value)
    return None if isinstance(found, bool) or not isinstance(found, Integral) else operator.index(found)


def as_real(value: Any) -> float | None:
    """The plain Python number, int or float, that `value` is; None where it is none, as True, strings and None are.

    NaN and infinities are numbers here, and so is infinite what is too large for a float. An integer of more than 64
    bits, which no tensor holds, is a float.

    >>> from fractions import Fraction
    >>> as_real(Fraction(1, 4)), as_real(2), as_real("2")
    (0.25, 2, None)
    """
    found: Any = _without_dimension(value)
    if isinstance(found, bool) or not isinstance(found, Real | Decimal):
        return None
    try:
        number = float(found)
    except OverflowError:
        return float("-inf") if found < 0 else float("inf")
    except ValueError:  # a signaling NaN
        return float("nan")
    whole = operator.index(found) if isinstance(found, Integral) else None
    return number if whole is None or not -(2**63) <= whole < 2**63 else whole


def whole_number(name: str, value: Any, lowest: int, hint: str = "") -> int:
    """`value` as a plain integer.

    Args:
        name: of the argument, for the error.
        value: see `as_whole`.
        lowest: what it must be at least.
        hint: what the error ends with, a sentence after "; ".

    Raises:
        ValueError: something else.
    """
    found = as_whole(value)
    if found is None or found < lowest:
        raise ValueError(f"`{name}` must be an integer >= {lowest}, got {value!r}{'; ' if hint else ''}{hint}.")
    return found


def real_number(name: str, value: Any) -> float:
    """`value` as a plain number, whatever its size; a ValueError if it is none."""
    found = as_real(value)
    if found is None:
        raise ValueError(f"`{name}` must be a number, got {value!r}.")
    return found


def plain(value: Any) -> Any:
    """A number as a plain one, an array or a tensor as a list of them, anything else as it is.

    >>> plain(Decimal("0.5")), plain("a"), plain((1, 2))
    (0.5, 'a', (1, 2))
    """
    number = as_real(value)
    if number is not None:
        return number
    return value.tolist() if is_sequence(value) and hasattr(value, "tolist") else value


def is_sequence(value: Any) -> bool:
    """Whether there may be several numbers in `value`: a list, an array or a tensor with a dimension, no string."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return False
    return getattr(value, "ndim", 1) > 0


def _without_dimension(value: Any) -> Any:
    """What a tensor or an array without dimension holds; NumPy's scalars are such arrays."""
    if getattr(value, "ndim", None) != 0 or not hasattr(value, "item"):
        return value
    try:
        return value.detach().item() if isinstance(value, Tensor) else value.item()
    except (RuntimeError, NotImplementedError):  # a tensor without values, on "meta"
        return None
