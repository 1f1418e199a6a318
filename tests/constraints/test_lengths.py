"""Lengths in words and characters: `str.split` and `regex` are the judges."""

import itertools
import random
import time

import pytest
import regex

from redge_guidance.constraints.lengths import distance_to_length, length
from redge_guidance.constraints.machine import TooManyStatesError
from redge_guidance.rewards import LengthReward

NASTY = "aé\u0301\r\n\t \u200d👍🏽👩🇩🇪©한\u1112\u1161\u11ab가ก\u0e33क\u094d\u093f"
NASTY += "\u0600\u0d4e\u200c\U000e0020က\u1039\u102b\xad\xa0\u2028\x1c\u3000\x00\ufeff\ud800"
RANGES = [(0, 0), (0, 2), (1, 1), (1, 3), (2, None), (4, 7)]


def judged(text, unit):
    return len(text.split()) if unit == "words" else len(regex.findall(r"\X", text))


def nasty_texts(number, seed=0):
    draw = random.Random(seed)
    return ["".join(draw.choices(NASTY, k=draw.randint(0, 10))) for _ in range(number)]


@pytest.mark.parametrize("unit", ["words", "characters"])
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_lengths_of_nasty_texts(low, high, unit):
    machine = length(low, high, unit)
    priced = distance_to_length(low, high, unit, longest=high and 30)
    for text in nasty_texts(1000):
        n = judged(text, unit)
        assert machine.accepts(text) == (low <= n and (high is None or n <= high)), ascii(text)
        distance = max(low - n, 0) + (0 if high is None else max(n - high, 0))
        if high != 0:
            assert priced.values[priced.after(text)].item() == -distance, ascii(text)
    assert len(machine.minimal().table) == len(machine.table)


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_all_short_texts(unit):
    machine = length(2, 3, unit)
    for signs in itertools.product("a \u0301\u200d👍\r\n🇩", repeat=4):
        text = "".join(signs)
        assert machine.accepts(text) == (2 <= judged(text, unit) <= 3), ascii(text)


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_the_price_is_that_of_the_reward(unit):
    reward = LengthReward(3, 5, unit=unit)
    machine = distance_to_length(3, 5, unit)
    texts = [text.replace("\ud800", "") for text in nasty_texts(200, seed=1)]
    assert [machine.values[machine.after(text)].item() for text in texts] == reward.score(texts).tolist()


def test_the_price_stops_where_it_is_said_to():
    machine = distance_to_length(1, 2, "words", longest=4)
    assert [machine.values[machine.after("a " * n)].item() for n in range(7)] == [-1, 0, 0, -1, -2, -2, -2]


@pytest.mark.parametrize("unit", ["words", "characters"])
@pytest.mark.parametrize(("low", "high"), [(1000, 1000), (0, 1000), (1000, None)])
def test_long_ones_are_made_soon(low, high, unit):
    length(1, 1, unit)  # tables of Unicode, made once
    start = time.process_time()
    machine = length(low, high, unit)
    assert time.process_time() - start < 4  # 0.8
    one = "a " if unit == "words" else "e\u0301"
    assert [n for n in (0, 999, 1000, 1001) if machine.accepts(one * n)] == [
        n for n in (0, 999, 1000, 1001) if low <= n <= (high or n)
    ]


def test_what_is_no_length():
    with pytest.raises(ValueError, match="`unit` must be one of words, characters, got 'lines'"):
        length(1, 2, "lines")
    for bounds in ((-1, 2), (3, 2), (1.5, 2), (0, "2")):
        with pytest.raises(ValueError, match="`minimum` and `maximum` must be whole numbers"):
            length(*bounds, "words")
    with pytest.raises(ValueError, match="`longest` must be >= `maximum`, 5, got 3"):
        distance_to_length(1, 5, "words", longest=3)
    with pytest.raises(TooManyStatesError, match="more than 20000 states"):
        length(0, 10**9, "characters")
