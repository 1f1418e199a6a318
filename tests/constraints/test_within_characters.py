"""Tokens that are a part of a character, where an automaton has no room for every way to cut them."""

import re
import unicodedata

import numpy as np
import pytest

from redge_guidance.constraints import compiling
from redge_guidance.constraints.compiling import compile_tokens
from redge_guidance.constraints.expression import machine_of
from redge_guidance.constraints.occurrences import occurrences
from redge_guidance.rewards import LexicalReward
from tests.helpers.tokenizers import tokenizer
from tests.helpers.walks import text_of, walked

WORDS = ["café", "Straße", "東京", "ภาษา", "हिन्दी", "서울", "😀", "क्षत्रिय", "tiếng Việt"]
CUT = [r"\w+(?: \w+){2}", r"(?i)\W*café\W*", r".*\bहिन्दी\b.*", r"\w{2,9}[東ท]\w*", r"[\wé]+é\b.?", r"(?:\w\W){1,4}"]


@pytest.fixture(autouse=True)
def _folder(monkeypatch):
    monkeypatch.setenv("REDGE_GUIDANCE_CACHE", "")


@pytest.fixture
def room(monkeypatch):
    """Sets for how many states within characters there is room: by default for none but `alike` ones."""

    def set_room(states=0):
        monkeypatch.setattr(compiling, "_LEAST_WITHIN", states)
        monkeypatch.setattr(compiling, "_LEAST_ENTRIES", 0)

    return set_room


def automaton_of(machine, tok):
    return compile_tokens(machine, tok, len(tok), [end_of(tok)])


def end_of(tok):
    return tok.sep_token_id if tok.eos_token_id is None else tok.eos_token_id


@pytest.mark.parametrize("pattern", CUT)
@pytest.mark.parametrize("kind", ["byte", "fallback", "embedded"])
def test_what_is_accepted_matches(kind, pattern, room):
    tok = tokenizer(kind)
    room(0)
    automaton, rng, machine = automaton_of(machine_of(pattern), tok), np.random.default_rng(0), machine_of(pattern)
    room(10**6)
    exact = automaton_of(machine, tok)
    assert len(automaton.table) < len(exact.table)
    for _ in range(25):
        ids = walked(automaton, rng)
        text = text_of(tok, ids, [end_of(tok)])
        assert re.fullmatch(pattern, text), ascii(text)
        assert automaton.accepts(ids)
        assert exact.accepts(ids)


@pytest.mark.parametrize("word", WORDS)
def test_words_that_are_spelled_by_bytes_can_be_written(word, room):
    room(0)
    tok = tokenizer("embedded")
    wanted = automaton_of(occurrences({word: (1, None)}), tok)
    pattern = automaton_of(machine_of(rf"(?i)\W*{word}\W*(?:\w+\W*)?"), tok)
    reward = LexicalReward(word)
    for spelled in {form(case(word)) for form in (nfc, nfd) for case in (str, str.upper)}:
        for text in (spelled, f"the {spelled} is", f"{spelled}."):
            ids = tok(text, add_special_tokens=False).input_ids
            assert reward.reached([text]) == [True]
            assert wanted.accepts([*ids, end_of(tok)]), ascii(text)
    assert pattern.accepts(tok(f"{word} b", add_special_tokens=False).input_ids)


def nfc(text):
    return unicodedata.normalize("NFC", text)


def nfd(text):
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize("pattern", [r"[^a]*\w", r"\w+(?: \w+){0,1}", r".*\bcat\b.*", r"\w+é?", r"(?:\w| )+東?"])
@pytest.mark.parametrize("kind", ["byte", "fallback", "wordpiece", "unigram"])
def test_nothing_is_left_out_of_small_vocabularies(kind, pattern, room):
    tok = tokenizer(kind)
    found = automaton_of(machine_of(pattern), tok)
    room(10**6)
    exact = automaton_of(machine_of(pattern), tok)
    assert np.array_equal(found.table, exact.table)
    assert np.array_equal(found.class_of, exact.class_of)


def test_many_states_within_characters():
    """Where half characters would take too many states, those that stay are right ones."""
    tok = tokenizer("byte")
    automaton = automaton_of(machine_of(r"\w+(?:\W+\w+){0,99}"), tok)
    assert len(automaton.table) < 5000
    assert automaton.accepts(tok("an old house").input_ids)
    assert not automaton.accepts(tok("an old!").input_ids)
