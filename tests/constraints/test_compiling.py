"""Automata over tokens accept what the decoded text says, on all rows of tokens of small vocabularies."""

import itertools
import re

import numpy as np
import pytest

from redge_guidance.constraints.compiling import compile_tokens
from redge_guidance.constraints.expression import machine_of
from redge_guidance.constraints.machine import TooManyStatesError
from redge_guidance.constraints.token_automaton import token_intersection, token_length
from redge_guidance.text import end_token_id, special_token_ids
from tests.helpers.tokenizers import tokenizer, with_holes


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REDGE_GUIDANCE_CACHE", str(tmp_path))


def judged(tok, ids, pattern, ends):
    """By the tokenizer's own decode and `re`: the text before the first end, after which only ends come."""
    n = next((k for k, i in enumerate(ids) if i in ends), len(ids))
    if any(i not in ends for i in ids[n:]) or any(i in special_token_ids(tok) for i in ids[:n]):
        return False
    return re.fullmatch(pattern, tok.decode(ids[:n], skip_special_tokens=True)) is not None


def ids_of(tok, texts, more=()):
    """A few tokens: those of some texts, and some by their names."""
    found = [i for text in texts for i in tok(text, add_special_tokens=False).input_ids]
    return sorted({*found, *tok.convert_tokens_to_ids(list(more))})


CASES = [
    ("byte", ["an é"], ["Ã", "©", "Ġ", "Â"], r".*é|a? ?n*"),
    ("byte", ["日 a"], ["æ", "Ĺ", "¥", "Ã", "©"], r"[^a]*\w"),
    ("byte", ["😀 a"], ["ð", "Ł", "ĺ", "Ģ"], r"(?:.a?)*"),
    ("wordpiece", ["in the", "a"], ["##e", "##s"], r"(?:\w{1,4} ?)*"),
    ("wordpiece", ["it'", "."], ["##t"], r"i?t.*|[.'] .*"),
    ("unigram", ["a house"], ["▁", "▁a"], r" ?a.*"),
    ("unigram", ["日本 é", "s"], ["▁"], r".*[本s]"),
    ("fallback", ["a s"], ["▁", "<0xC3>", "<0xA9>", "<0x20>"], r" ?[aé ]*s?"),
    ("fallback", ["e"], ["▁", "<0xE6>", "<0x97>", "<0xA5>", "<0xC3>"], r"(?:\w| )+e|"),
]


@pytest.mark.parametrize(("kind", "texts", "names", "pattern"), CASES)
def test_what_is_accepted_is_what_the_decoded_text_says(kind, texts, names, pattern):
    tok = tokenizer(kind)
    ends = [end_token_id(tok)]
    automaton = compile_tokens(machine_of(pattern), tok, len(tok) + 2, ends)
    ids = [*ids_of(tok, texts, names)[:7], ends[0], tok.pad_token_id]
    accepted = 0
    for length in range(5):
        for row in itertools.product(ids, repeat=length):
            text = tok.decode([i for i in row if i not in ends], skip_special_tokens=True)
            if "\ufffd" not in text:
                assert automaton.accepts(list(row)) == judged(tok, row, pattern, ends), (row, text)
                accepted += automaton.accepts(list(row))
            else:
                assert not automaton.accepts(list(row)), row
    assert accepted > 3
    assert automaton.class_of[len(tok) :].tolist() == [-1, -1]


def test_a_tokenizer_of_words_and_ids_without_a_token():
    tok = with_holes()
    pattern = r"a( b)* c|"
    automaton = compile_tokens(machine_of(pattern), tok, 12, [1])
    for length in range(5):
        for row in itertools.product(range(11), repeat=length):
            known = all(i in (1, 3, 6, 9) for i in row)
            assert automaton.accepts(list(row)) == (known and judged(tok, row, pattern, [1]))
    assert automaton.shortest() == 0
    assert compile_tokens(machine_of(r"a( b){3} c"), tok, 12, [1]).shortest() == 5


def test_every_text_that_the_embedded_tokenizer_writes_is_accepted_by_anything():
    tok = tokenizer("embedded")
    automaton = compile_tokens(machine_of(r"(?s:.*)"), tok, len(tok), [tok.eos_token_id])
    rng = np.random.default_rng(0)
    signs = [*"abc THE 'é,.12\n  ", "ß", "e\u0301", "日", "本", "😀", "\u2028", "ж", "\x85", "\U0010ffff"]
    for _ in range(500):
        text = "".join(rng.choice(signs, rng.integers(1, 30)))
        ids = tok(text, add_special_tokens=False).input_ids
        assert tok.decode(ids) == text.removeprefix(" ")  # which the tokenizer does not tell from none
        assert automaton.accepts([*ids, tok.eos_token_id])
        assert not automaton.accepts([*ids, tok.eos_token_id, *ids])


WALKED = [r"\d{4}-\d{2}-\d{2}", r"[^é日]*[日é😀][^é日]*", r"\w+( \w+){2}\.?", r".*\bcat\b.*"]


@pytest.mark.parametrize("pattern", WALKED)
def test_random_rows_of_the_embedded_tokenizer(pattern):
    """Walks through the automaton end in texts that match, and every state has a way to the end."""
    tok = tokenizer("embedded")
    end = tok.eos_token_id
    automaton = compile_tokens(machine_of(pattern), tok, len(tok), [end])
    rng, distance = np.random.default_rng(0), automaton.distances()
    assert (distance >= 0).all()
    for _ in range(60):
        state, ids = 0, []
        while not automaton.accepting[state]:
            near = len(ids) > 6  # then straight on
            after = automaton.table[state]
            good = np.flatnonzero((after >= 0) & ((distance[after] < distance[state]) | (not near)))
            token = int(rng.choice(np.flatnonzero(automaton.class_of == rng.choice(good))))
            ids.append(token)
            state = automaton.step(state, token)
        ids = [i for i in ids if i != end]
        assert re.fullmatch(pattern, tok.decode(ids, skip_special_tokens=True)), tok.decode(ids)


def test_an_end_for_each_worth():
    tok = tokenizer("byte")
    machine = machine_of(r"[ab]{0,2}")
    worth = np.where(machine.accepting, np.arange(len(machine.table)), 0)[:, None].astype(float)
    machine = type(machine)(machine.alphabet, machine.table, machine.accepting, worth)
    end = tok.eos_token_id
    automaton = compile_tokens(machine, tok, len(tok), [end, tok.pad_token_id])
    a, b = tok.convert_tokens_to_ids(["a", "b"])
    for ids in ([], [a], [b, a]):
        for tail in ([], [end], [tok.pad_token_id, end]):
            state = 0
            for token in [*ids, *tail]:
                state = automaton.step(state, token)
            assert automaton.accepting[state]
            assert automaton.values[state].tolist() == [machine.after("ab"[: len(ids)])]
            assert not tail or automaton.step(state, a) == -1


def test_intersections_and_lengths():
    tok = tokenizer("byte")
    end = tok.eos_token_id
    one, two = (compile_tokens(machine_of(p), tok, len(tok), [end]) for p in (r"a*b?", r"(aa|b)*"))
    few = token_length(1, 2, len(tok), [end], [i for i, c in enumerate(one.class_of) if i != end])
    both = token_intersection(token_intersection(one, two), few)
    ids = [*tok.convert_tokens_to_ids(["a", "b"]), end]
    for length in range(6):
        for row in itertools.product(ids, repeat=length):
            n = row.index(end) if end in row else len(row)
            wanted = one.accepts(list(row)) and two.accepts(list(row)) and 1 <= n <= 2
            assert both.accepts(list(row)) == wanted, row
    assert token_intersection(one, token_length(9, None, len(tok), [end], ids[:2])).shortest() == 9
    none = token_intersection(one, compile_tokens(machine_of("c"), tok, len(tok), [end]))
    assert none.is_empty
    with pytest.raises(ValueError, match="no canvas is accepted"):
        none.shortest()


def test_bad_input():
    tok = with_holes()
    with pytest.raises(ValueError, match="cannot write any text that the constraint accepts"):
        compile_tokens(machine_of("xylophone"), tok, 12, [1])
    with pytest.raises(ValueError, match="`ends` must be ids from 0 to 11, got \\[12\\]"):
        compile_tokens(machine_of("a"), tok, 12, [12])
    with pytest.raises(TooManyStatesError, match="more than 3 states"):
        compile_tokens(machine_of("a( a){9}"), tok, 12, [1], most_states=3)
    with pytest.raises(ValueError, match="`minimum` and `maximum`"):
        token_length(3, 2, 12, [1], [3])
    a = compile_tokens(machine_of("a"), tok, 12, [1])
    with pytest.raises(ValueError, match="`two` must have the vocabulary of `one`, 12 tokens, got 13"):
        token_intersection(a, compile_tokens(machine_of("a"), tok, 13, [1]))
