"""What tokens write, and automata on the disk."""

import logging

import numpy as np
import pytest

from redge_guidance.constraints import cache, compiling
from redge_guidance.constraints.compiling import compile_tokens
from redge_guidance.constraints.expression import machine_of
from redge_guidance.constraints.tokens import token_bytes
from tests.helpers.tokenizers import tokenizer


@pytest.mark.parametrize("kind", ["byte", "wordpiece", "unigram", "fallback"])
def test_joined_bytes_are_the_decoded_text(kind):
    tok = tokenizer(kind)
    first, within = token_bytes(tok)
    ids = [i for i, part in enumerate(within) if part]
    rng = np.random.default_rng(1)
    for _ in range(300):
        row = rng.choice(ids, rng.integers(1, 6)).tolist()
        text = tok.decode(row, skip_special_tokens=True)
        joined = b"".join([first[row[0]], *(within[i] for i in row[1:])])
        assert "\ufffd" in text or joined.decode() == text
    assert all(first[i] is within[i] is None for i in tok.all_special_ids)


def test_spaces_that_are_cleaned_up_are_an_error():
    tok = tokenizer.__wrapped__("wordpiece")
    tok.clean_up_tokenization_spaces = True
    with pytest.raises(ValueError, match="Set `tokenizer.clean_up_tokenization_spaces = False`"):
        token_bytes(tok)
    tok.clean_up_tokenization_spaces = False
    assert token_bytes(tok)[0]


def test_automata_are_read_from_the_disk(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("REDGE_GUIDANCE_CACHE", str(tmp_path))
    tok = tokenizer("byte")
    build = lambda: compile_tokens(machine_of(r"\w+é"), tok, len(tok), [tok.eos_token_id])  # noqa: E731
    made = build()
    (file,) = (tmp_path / "automata").iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(compiling, "_compiled", None)
        again = build()
    for name in ("table", "class_of", "accepting", "values"):
        assert np.array_equal(getattr(made, name), getattr(again, name))
    file.write_bytes(file.read_bytes()[:200])
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(build().table, made.table)
    assert "built anew" in caplog.text
    assert cache.read(file) is not None


def test_without_a_folder_there_is_no_cache(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    tok = tokenizer("byte")
    for folder, said in (("", 0), (str(tmp_path / "file"), 1)):
        monkeypatch.setenv("REDGE_GUIDANCE_CACHE", folder)
        for _ in range(2):
            compile_tokens(machine_of("ab"), tok, len(tok), [tok.eos_token_id])
        assert caplog.text.count("cannot be written") == said


def test_many_states_within_characters():
    """Where half characters would take too many states, those that stay are right ones."""
    tok = tokenizer("byte")
    automaton = compile_tokens(machine_of(r"\w+(?:\W+\w+){0,99}"), tok, len(tok), [tok.eos_token_id])
    assert len(automaton.table) < 5000
    assert automaton.accepts(tok("an old house").input_ids)
    assert not automaton.accepts(tok("an old!").input_ids)
