"""One of some texts, a beginning and an end: `str` is the judge."""

import itertools
import random

import pytest

from redge_guidance.constraints.choices import choices, prefix, suffix
from redge_guidance.constraints.machine import TooManyStatesError

ALL = ["".join(signs) for n in range(7) for signs in itertools.product("abc", repeat=n)]


@pytest.mark.parametrize("seed", range(5))
def test_one_of_some_texts(seed):
    texts = random.Random(seed).sample(ALL, 12)
    machine = choices(texts)
    assert [text for text in ALL if machine.accepts(text)] == sorted(texts, key=ALL.index)
    assert not any(machine.accepts(text + "\U0010ffff") for text in texts)
    assert machine.table.shape == machine.minimal().table.shape


@pytest.mark.parametrize("text", ["", "a", "ab", "aab", "abab", "abcab", "aabaa", "bbb"])
def test_a_beginning_and_an_end(text):
    first, last = prefix(text), suffix(text)
    for other in ALL:
        assert first.accepts(other) == other.startswith(text)
        assert last.accepts(other) == other.endswith(text)
    assert first.accepts(text + "é😀")
    assert last.accepts("é😀" + text)
    assert first.table.shape == first.minimal().table.shape
    assert last.table.shape == last.minimal().table.shape
    assert len(last.table) == len(text) + 1


@pytest.mark.parametrize("text", ["Straße", "東京", "e\u0301", "हिन्दी", "👩\u200d👧", "\U0010ffff\x00"])
def test_code_points_are_compared(text):
    for machine in (choices([text, "x"]), prefix(text), suffix(text)):
        assert machine.accepts(text)
        assert not machine.accepts(text[:-1])
    assert not prefix("é").accepts("e\u0301")  # another normal form


def test_many_long_choices_have_few_states():
    texts = ["https://example.org/" + "a" * 1000 + str(n) + "/end" for n in range(1000)]
    assert len(choices(texts).table) < 1040
    with pytest.raises(TooManyStatesError, match="more than 100 states"):
        choices(texts, most=100)
    with pytest.raises(TooManyStatesError, match="more than 100 states"):
        choices(["a" * 100], most=100)
    assert len(choices(["a" * 99], most=100).table) == 100
    for one in (prefix, suffix):
        assert len(one("a" * 99, most=100).table) == 100
        with pytest.raises(TooManyStatesError, match="more than 100 states"):
            one("a" * 100, most=100)


@pytest.mark.parametrize("texts", ["yes", [], [1], ["a", None]])
def test_what_is_no_choice(texts):
    with pytest.raises(ValueError, match="`choices` must be"):
        choices(texts)


def test_what_is_no_beginning():
    with pytest.raises(ValueError, match="`prefix` must be a text, got int"):
        prefix(3)
    with pytest.raises(ValueError, match="`suffix` must be a text, got NoneType"):
        suffix(None)
