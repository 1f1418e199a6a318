import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from redge_guidance.rewards.reading.alignment import Pieces, character_spans, overlap, same_tokens, token_texts
from redge_guidance.rewards.reading.cache import cache_folder, read_ragged, write_ragged
from tests.helpers.tiny import WORDS, word_tokenizer
from tests.helpers.tokenizers import TEXTS, tokenizer

KINDS = ("byte", "wordpiece", "unigram", "fallback")


def spans_of(kind, ids, text):
    made = tokenizer(kind)
    return character_spans(made, ids, text, token_texts(made)).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_every_character_is_somebodys_and_in_order(kind, text):
    ids = tokenizer(kind)(text, add_special_tokens=False).input_ids
    decoded = tokenizer(kind).decode(ids, skip_special_tokens=True)
    spans = spans_of(kind, ids, decoded)
    assert spans == sorted(spans)
    assert {c for begin, end in spans for c in range(begin, end)} == set(range(len(decoded)))


def test_spans_are_those_of_the_tokens():
    ids = tokenizer("byte")("Zoë reads newspapers.", add_special_tokens=False).input_ids
    decoded = "Zoë reads newspapers."
    parts = [decoded[begin:end] for begin, end in spans_of("byte", ids, decoded)]
    assert parts == ["Zo", "ë", " re", "ad", "s", " ", "newspapers", "."]
    ids = tokenizer("wordpiece")("don't", add_special_tokens=False).input_ids
    assert [tokenizer("wordpiece").decode(ids)[b:e] for b, e in spans_of("wordpiece", ids, "don ' t")] == [
        "don",
        " '",
        " t",
    ]


@pytest.mark.parametrize("kind", ["byte", "fallback"])
def test_parts_of_a_character_have_all_of_it(kind):
    ids = tokenizer(kind)("a 😀", add_special_tokens=False).input_ids
    spans = spans_of(kind, ids, "a 😀")
    assert spans[-4:] == [[2, 3]] * 4
    torn = tokenizer(kind).decode(ids[:-1], skip_special_tokens=True)  # the last byte is missing: no character
    assert len(spans_of(kind, ids[:-1], torn)) == len(ids) - 1


def test_shares_add_up():
    text, ids = "Unhappy people", tokenizer("byte")("Unhappy people", add_special_tokens=False).input_ids
    pieces = tokenizer("wordpiece")(text, add_special_tokens=False, return_offsets_mapping=True)
    shares = overlap(torch.tensor(pieces.offset_mapping), torch.tensor(spans_of("byte", ids, text)))
    torch.testing.assert_close(shares.sum(-1), torch.ones(len(pieces.input_ids)))
    torch.testing.assert_close(shares[0, :2], torch.tensor([2 / 7, 5 / 7]))  # Un, happy
    twice = overlap(torch.tensor([[0, 1]]), torch.tensor([[0, 1], [0, 1]]))  # two halves of one character
    torch.testing.assert_close(twice, torch.tensor([[0.5, 0.5]]))
    assert overlap(torch.tensor([[0, 0]]), torch.tensor([[0, 4]])).tolist() == [[0.0]]


def test_same_tokens_whatever_their_numbers():
    assert same_tokens(word_tokenizer(), word_tokenizer()).tolist() == list(range(len(WORDS)))
    more = word_tokenizer([*WORDS, "f"])
    assert same_tokens(word_tokenizer(), more) is None  # which is cut elsewhere
    assert same_tokens(more, word_tokenizer()) is None  # f could not be read
    turned = word_tokenizer([*WORDS[:3], *reversed(WORDS[3:])])
    assert same_tokens(word_tokenizer(), turned).tolist() == [0, 1, 2, 7, 6, 5, 4, 3]
    without_mask = copy.deepcopy(tokenizer("byte"))
    without_mask.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    found = same_tokens(without_mask, tokenizer("byte"))
    assert found[:-1].tolist() == list(range(len(tokenizer("byte"))))
    assert found[-1] == -1


def test_other_ways_of_cutting_are_other_tokens():
    lower = word_tokenizer()
    from tokenizers import normalizers

    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert same_tokens(word_tokenizer(), lower) is None
    assert same_tokens(tokenizer("byte"), tokenizer("wordpiece")) is None


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REDGE_GUIDANCE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bridges"


def pieces(generator="byte", model="wordpiece"):
    return Pieces.of(tokenizer(generator), tokenizer(model), token_texts(tokenizer(generator)))


def test_a_token_in_the_others_pieces(cache):
    made, generator, model = pieces(), tokenizer("byte"), tokenizer("wordpiece")
    ids = {text: i for i, text in enumerate(token_texts(generator))}

    def of(text):
        i = ids[text]
        return model.convert_ids_to_tokens(made.pieces[made.offsets[i] : made.offsets[i + 1]].tolist())

    assert of(" happy") == ["happy"]
    assert of(" the") == ["the"]
    assert of("newspapers") == ["newspapers"]
    assert of(".") == ["."]
    assert made.offsets[generator.mask_token_id + 1] == made.offsets[generator.mask_token_id]  # nothing to read
    table = torch.randn(len(model), 5)
    rows = made.embeddings(table, chunk=16)
    torch.testing.assert_close(rows[ids[" happy"]], table[model.convert_tokens_to_ids("happy")])
    torch.testing.assert_close(rows[generator.mask_token_id], table.mean(0))
    several = int(made.offsets.diff().argmax())
    own = made.pieces[made.offsets[several] : made.offsets[several + 1]]
    assert len(own) > 1
    torch.testing.assert_close(rows[several], table[own].mean(0))
    first = made.first()
    assert first[several] == own[0]
    assert first[generator.mask_token_id] == -1


def test_the_table_is_made_once(cache, monkeypatch):
    made = pieces()
    (file,) = cache.iterdir()
    assert set(load_file(file)) == {"pieces", "offsets"}
    with monkeypatch.context() as patched:
        patched.setattr(Pieces, "make", None)
        again = pieces()
    assert torch.equal(made.pieces, again.pieces)
    assert torch.equal(made.offsets, again.offsets)
    pieces("byte", "unigram")
    pieces("unigram", "byte")
    assert len(list(cache.iterdir())) == 3


def test_a_broken_or_closed_cache_is_done_without(cache, monkeypatch, tmp_path):
    made = pieces()
    (file,) = cache.iterdir()
    file.write_bytes(b"half a file")
    assert torch.equal(pieces().pieces, made.pieces)
    assert torch.equal(load_file(file)["pieces"].long(), made.pieces)  # mended
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REDGE_GUIDANCE_CACHE", str(tmp_path / "file"))
    assert torch.equal(pieces().pieces, made.pieces)


TABLES = {
    "another length": lambda t: {**t, "offsets": t["offsets"][:-1]},
    "offsets beyond": lambda t: {**t, "offsets": t["offsets"] + 1},
    "offsets that go back": lambda t: {**t, "offsets": t["offsets"].flip(0)},
    "ids beyond": lambda t: {**t, "pieces": t["pieces"] + 10**6},
    "negative ids": lambda t: {**t, "pieces": -1 - t["pieces"]},
    "floats": lambda t: {name: one.float() for name, one in t.items()},
    "wide": lambda t: {name: one.long() for name, one in t.items()},
    "two axes": lambda t: {name: one[None] for name, one in t.items()},
    "a number": lambda t: {name: one[0] for name, one in t.items()},
    "empty": lambda t: {name: one[:0] for name, one in t.items()},
    "one table": lambda t: {"pieces": t["pieces"]},
    "other values": lambda t: {**t, "pieces": t["pieces"].flip(0).contiguous()},
}


@pytest.mark.parametrize("how", TABLES)
@pytest.mark.parametrize("keeps_metadata", [True, False])
def test_a_table_that_does_not_fit_is_made_anew(how, keeps_metadata, cache):
    made = pieces()
    (file,) = cache.iterdir()
    with safe_open(file, "pt") as found:
        told = found.metadata() if keeps_metadata else None
    save_file(TABLES[how](load_file(file)), file, told)
    again = pieces()
    assert torch.equal(again.pieces, made.pieces)
    assert torch.equal(again.offsets, made.offsets)
    assert torch.equal(load_file(file)["pieces"].long(), made.pieces)


def test_a_table_of_another_vocabulary_is_none(tmp_path):
    file, values, offsets = tmp_path / "t.safetensors", torch.tensor([1, 2, 9]), torch.tensor([0, 1, 3])
    write_ragged(file, values, offsets)
    assert [one.tolist() for one in read_ragged(file, 2, 9)] == [[1, 2, 9], [0, 1, 3]]
    assert read_ragged(file, 1, 9) is read_ragged(file, 3, 9) is read_ragged(file, 2, 8) is None


def test_a_table_is_of_the_special_tokens_too(cache):
    """Of which nothing is made, whatever the tokenizer's backend calls them."""
    for pad in ("[PAD]", "b"):
        generator = word_tokenizer()
        generator.pad_token = pad
        made = Pieces.of(generator, tokenizer("byte"), token_texts(generator))
        assert (made.offsets.diff()[WORDS.index("b")] == 0) == (pad == "b")


@given(where=st.floats(0, 1), value=st.integers(0, 255), cut=st.booleans())
def test_any_byte_of_a_table_may_be_wrong(where, value, cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    values, offsets = torch.tensor([3, 1, 2]), torch.tensor([0, 2, 2, 3])
    write_ragged(folder / "table", values, offsets)
    content = bytearray((folder / "table").read_bytes())
    place = min(int(where * len(content)), len(content) - 1)
    content[place] = value
    (folder / "table").write_bytes(content[:place] if cut else content)
    found = read_ragged(folder / "table", 3, 3)
    assert found is None or (torch.equal(found[0], values) and torch.equal(found[1], offsets))


def test_the_cache_may_be_in_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REDGE_GUIDANCE_CACHE", "~/x")
    assert cache_folder() == tmp_path / "x"
