"""Automata on the disk: found again as they were, and not found once others would be built."""

import hashlib
import logging

import numpy as np
import pytest

from redge_guidance.constraints import cache, compiling
from redge_guidance.constraints.compiling import compile_tokens
from redge_guidance.constraints.expression import machine_of
from tests.helpers.tokenizers import tokenizer


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REDGE_GUIDANCE_CACHE", str(tmp_path))
    return tmp_path / "automata"


def compiled(pattern=r"[a-z]+é"):
    tok = tokenizer("byte")
    return compile_tokens(machine_of(pattern), tok, len(tok), [tok.eos_token_id])


def arrays(automaton):
    return [automaton.table, automaton.class_of, automaton.accepting, automaton.values]


def test_automata_are_read_from_the_disk(folder, monkeypatch, caplog):
    made = compiled()
    (file,) = folder.iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(compiling, "_compiled", None)
        again = compiled()
    for one, other in zip(arrays(made), arrays(again), strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    file.write_bytes(file.read_bytes()[:200])
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(compiled().table, made.table)
    assert "built anew" in caplog.text
    assert cache.read(file) is not None


def test_those_of_another_format_are_not_found(folder, monkeypatch):
    compiled()
    compiled()
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    compiled()
    assert len(list(folder.iterdir())) == 2


def test_whatever_an_automaton_is_made_of_is_in_its_name():
    made_of = (machine_of("ab"), [b"a", b"b", None], [b"a", b" b", None], 3, [2])
    others = [
        (machine_of("abc"), *made_of[1:]),
        (machine_of("(?:ab)?"), *made_of[1:]),
        (made_of[0], [b"a", None, b"b"], *made_of[2:]),
        (made_of[0], [b"ab", b"", None], *made_of[2:]),
        (made_of[0], made_of[2], made_of[1], *made_of[3:]),
        (*made_of[:3], 4, [2]),
        (*made_of[:4], [2, 1]),
        (*made_of[:4], []),
    ]
    assert len({cache.key_of(one) for one in [made_of, *others]}) == len(others) + 1


BUILT = {2: "66f140e91bfd0749"}  # by format


def test_the_format_is_raised_when_other_automata_are_built():
    """Whoever meets a failure here builds other automata than before: raise `FORMAT`, and write down the new print."""
    tok = tokenizer("embedded")
    letters = "[a-zà-öø-ÿа-яก-๎一-龥]"
    digest = hashlib.sha256()
    for pattern in (r"[0-9]{4}-[0-9]{2}", r"[^é日]*[日é😀][^é日]*", rf"{letters}+( {letters}+){{2}}", "a?é"):
        for array in arrays(compile_tokens(machine_of(pattern), tok, len(tok) + 3, [tok.eos_token_id])):
            digest.update(repr((array.shape, array.dtype.str)).encode() + array.tobytes())
    assert {cache.FORMAT: digest.hexdigest()[:16]} == BUILT


def test_without_a_folder_there_is_no_cache(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    for place, said in (("", 0), (str(tmp_path / "file"), 1)):
        monkeypatch.setenv("REDGE_GUIDANCE_CACHE", place)
        for _ in range(2):
            compiled()
        assert caplog.text.count("cannot be written") == said
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_what_was_used_least_lately_is_deleted(folder, monkeypatch):
    monkeypatch.setattr(cache, "MOST_BYTES", 0)
    compiled()
    assert not list(folder.iterdir())


def test_where_they_are_kept(monkeypatch):
    monkeypatch.delenv("REDGE_GUIDANCE_CACHE")
    monkeypatch.setattr(cache, "HF_HOME", "/home/of/models")
    assert str(cache.cache_folder()) == "/home/of/models/redge-guidance/automata"
    monkeypatch.setenv("REDGE_GUIDANCE_CACHE", "")
    assert cache.cache_folder() is None
