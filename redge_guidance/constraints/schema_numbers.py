"""Regular expressions of the integers and decimal numbers of a range, as JSON writes them."""

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

SIGNIFICANT = 15  # decimal digits that a float tells apart, all of them
INTEGER = "(?:-?[1-9][0-9]*|0)"
NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?"  # below the largest float


def integers_between(low: int | None, high: int | None) -> str | None:
    """Integers n with low <= n <= high; None where there are none. None for a bound: there is none.

    No leading zeros, no `-0`.

    >>> integers_between(8, 12)
    '(?:[8-9]|1[0-2])'
    """
    if low is not None and high is not None and low > high:
        return None
    if low is None and high is None:
        return INTEGER
    pieces = []
    if low is None or low < 0:
        pieces += ["-" + text for text in _naturals(max(1, -high) if high is not None else 1, low and -low)]
    if high is None or high >= 0:
        pieces += _naturals(max(0, low) if low is not None else 0, high)
    return _either(pieces)


def multiples_between(low: int, high: int, step: int) -> str | None:
    """Integers of low to high that `step` divides, one by one; None where there are none."""
    found = range(-(-low // step) * step, high + 1, step)
    return _either([str(number) for number in found]) if found else None


def decimals_between(
    low: float | int | None, high: float | int | None, above: bool = False, below: bool = False
) -> str | None:
    """Decimal numbers x with low <= x <= high; `above`: low < x; `below`: x < high. None where there are none.

    Without exponents, and with so few digits behind the point that no number is rounded onto a bound when it is read
    as a float: 15 less those that the bounds have in front of it, at least one of those.

    Raises:
        OverflowError: a bound of 15 digits or more.

    >>> decimals_between(0, 1, below=True)
    '0(?:\\\\.[0-9]{1,14})?'
    """
    if low is None and high is None:
        return NUMBER
    exact = [Decimal(repr(bound)) for bound in (low, high) if bound is not None]
    front = max(len(str(int(abs(bound)))) for bound in exact)
    if front >= SIGNIFICANT:
        raise OverflowError
    unit = 10 ** (SIGNIFICANT - front)
    least = None if low is None else _scaled(low, unit, math.floor if above else math.ceil) + above
    most = None if high is None else _scaled(high, unit, math.ceil if below else math.floor) - below
    if least is not None and most is not None and least > most:
        return None
    pieces = []
    if least is None or least < 0:
        pieces += ["-" + text for text in _decimals(max(1, -most) if most is not None else 1, least and -least, unit)]
    if most is None or most >= 0:
        pieces += _decimals(max(0, least) if least is not None else 0, most, unit)
    return _either(pieces)


def _scaled(bound: float | int, unit: int, rounded: Callable[[Fraction], int]) -> int:
    return rounded(Fraction(Decimal(repr(bound))) * unit)


def _either(pieces: list[str]) -> str:
    return pieces[0] if len(pieces) == 1 else f"(?:{'|'.join(pieces)})"


def _naturals(low: int, high: int | None) -> list[str]:
    """Expressions of the integers low to high, 0 <= low, by how many digits they have."""
    pieces = []
    if low == 0:
        pieces, low = ["0"], 1
        if high == 0:
            return pieces
    first = len(str(low))
    if low > 10 ** (first - 1):
        most = 10**first - 1
        pieces.append(_digits(low, most if high is None else min(high, most), first, early=False))
        first += 1
    if high is None:
        return [*pieces, f"[1-9][0-9]{{{first - 1},}}" if first > 1 else "[1-9][0-9]*"]
    last = len(str(high))
    full = last if high == 10**last - 1 else last - 1  # lengths of which all are in
    if first <= full:
        pieces.append("[1-9]" + (f"[0-9]{{{first - 1},{full - 1}}}" if full > 1 else ""))
    if first <= last and full < last:
        pieces.append(_digits(10 ** (last - 1), high, last, early=False))
    return pieces


def _decimals(low: int, high: int | None, unit: int) -> list[str]:
    """Expressions of the numbers low / unit to high / unit, 0 <= low."""
    places = len(str(unit)) - 1
    fraction = rf"(?:\.[0-9]{{1,{places}}})?"
    first, above = divmod(low, unit)
    last, below = (None, unit - 1) if high is None else divmod(high, unit)
    if first == last:
        return [_one_integer_part(first, above, below, places)]
    pieces = []
    if above:
        pieces.append(_one_integer_part(first, above, unit - 1, places))
        first += 1
    if last is not None and below < unit - 1:
        pieces.append(_one_integer_part(last, 0, below, places))
        last -= 1
    if last is None or first <= last:
        pieces.append(_either(_naturals(first, last)) + fraction)
    return pieces


def _one_integer_part(whole: int, low: int, high: int, places: int) -> str:
    """Numbers whose integer part is `whole`, and whose fraction is low to high in units of the last place."""
    fraction = rf"\.{_digits(low, high, places, early=True)}"
    return str(whole) + (fraction if low else f"(?:{fraction})?")


def _digits(low: int, high: int, left: int, early: bool) -> str:
    """Strings of `left` digits that spell low to high; `early`: or of fewer, at least one, the rest being zeros."""
    if low == 0 and high == 10**left - 1:
        count = f"{{1,{left}}}" if early and left > 1 else f"{{{left}}}" if left > 1 else ""
        return f"[0-9]{count}"
    if early and low == high == 0:
        return f"0{{1,{left}}}"
    unit = 10 ** (left - 1)
    runs: list[tuple[int, int, int, int]] = []  # first digits a to b, and what comes after
    for digit in range(low // unit, high // unit + 1):
        after = (max(low - digit * unit, 0), min(high - digit * unit, unit - 1))
        if runs and runs[-1][2:] == after:
            runs[-1] = (runs[-1][0], digit, *after)
        else:
            runs.append((digit, digit, *after))
    pieces = []
    for a, b, least, most in runs:
        rest = _digits(least, most, left - 1, early) if left > 1 else ""
        sign = str(a) if a == b else f"[{a}-{b}]"
        pieces.append(sign + (f"(?:{rest})?" if rest and early and least == 0 else rest))
    return _either(pieces)
