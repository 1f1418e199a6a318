"""What tokens write, for vocabularies of every kind: held against what the tokenizer itself decodes."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import BertJapaneseTokenizer, ByT5Tokenizer, EsmTokenizer, PreTrainedTokenizerFast

from redge_guidance.rewards import LengthReward
from redge_guidance.rewards.reading.alignment import Pieces, character_spans, token_texts
from redge_guidance.samples.tokens import RelaxedTokens
from redge_guidance.text import special_token_ids
from tests.helpers.tiny import word_tokenizer
from tests.helpers.tokenizers import tokenizer, with_holes

RESIDUES = "<cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - <null_1> <mask>"
JAPANESE = "[PAD] [UNK] [CLS] [SEP] [MASK] a b ##c d ##e ! , 日 ##本"
PAD, EOS, MASK = 0, 1, 2


def signs(characters):
    """One token a character, nothing between them."""
    words = {"<pad>": PAD, "</s>": EOS, "<mask>": MASK} | {c: i for i, c in enumerate(characters, 3)}
    base = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    base.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    base.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=base, pad_token="<pad>", eos_token="</s>", mask_token="<mask>")


@functools.cache
def made(kind, folder):
    if kind in ("esm", "japanese"):
        file = folder / f"{kind}.txt"
        file.write_text("\n".join((RESIDUES if kind == "esm" else JAPANESE).split()), encoding="utf-8")
        if kind == "esm":
            return EsmTokenizer(str(file))
        return BertJapaneseTokenizer(str(file), word_tokenizer_type="basic", subword_tokenizer_type="wordpiece")
    others = {"words": word_tokenizer, "holes": with_holes, "byt5": ByT5Tokenizer}
    others |= {"digits": lambda: signs("0123456789"), "punctuation": lambda: signs("+-*/=")}
    others |= {"letters": lambda: signs("ACDE "), "kana": lambda: signs("あいう。")}
    return others[kind]() if kind in others else tokenizer(kind)


KINDS = ["byte", "wordpiece", "unigram", "fallback", "words", "holes", "byt5", "esm", "japanese"]
KINDS += ["digits", "punctuation", "letters", "kana"]
COMPOSED = ["unigram", "words", "holes", "esm", "digits", "punctuation", "letters", "kana"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vocabularies")


def words_of(tokenizer):
    return sorted(set(tokenizer.get_vocab().values()) - special_token_ids(tokenizer))


@pytest.mark.parametrize("kind", COMPOSED)
@settings(max_examples=30)
@given(data=st.data())
def test_a_decoded_text_is_its_tokens_one_by_one(kind, folder, data):
    tokenizer = made(kind, folder)
    texts = token_texts(tokenizer)
    ids = data.draw(st.lists(st.sampled_from(words_of(tokenizer)), min_size=1, max_size=8))
    assert "".join(texts[i] for i in ids).strip() == tokenizer.decode(ids).strip()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(data=st.data())
def test_every_character_is_somebodys_in_order(kind, folder, data):
    tokenizer = made(kind, folder)
    ids = data.draw(st.lists(st.sampled_from(words_of(tokenizer)), min_size=1, max_size=8))
    text = tokenizer.decode(ids, skip_special_tokens=True)
    spans = character_spans(tokenizer, ids, text, token_texts(tokenizer)).tolist()
    assert len(spans) == len(ids)
    assert spans == sorted(spans)
    assert {c for begin, end in spans for c in range(begin, end)} == set(range(len(text)))


@settings(max_examples=30)
@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8))
def test_all_bytes_of_a_character_have_it(text):
    tokenizer = ByT5Tokenizer()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    expected = [[k, k + 1] for k, sign in enumerate(text) for _ in sign.encode()]
    assert character_spans(tokenizer, ids, text, token_texts(tokenizer)).tolist() == expected


def test_what_the_backend_calls_special_writes_nothing():
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([AddedToken("<|user|>", special=True), "plain"])
    assert token_texts(tokenizer)[8:] == ["", " plain"]


LONGER = [("letters", "AC D", " E"), ("letters", "AC", "D"), ("esm", "L A", "G"), ("digits", "12", "0")]
LONGER += [("byte", "She", " is")]


@pytest.mark.parametrize("unit", ["words", "characters"])
@pytest.mark.parametrize(("kind", "text", "more"), LONGER)
def test_what_tokens_add_to_a_length(kind, text, more, unit, folder):
    """With hard tokens, and an end behind them, the relaxed reward grows as the length of the text."""
    tokenizer, reward = made(kind, folder), LengthReward(100, unit=unit)

    def both(text):
        row = torch.tensor([[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]])
        weights = torch.nn.functional.one_hot(row[0], len(tokenizer)).float()
        tokens = RelaxedTokens(row, torch.ones_like(row).bool(), weights, tokenizer=tokenizer)
        return float(reward.relaxed(tokens)), float(reward.score(tokens.texts()))

    (short, exact), (long, exact_long) = both(text), both(text + more)
    assert long - short == pytest.approx(exact_long - exact)


def test_pieces_of_signs_are_those_signs_also_to_a_model_without_letters():
    generator, model = word_tokenizer(["[PAD]", "[EOS]", "[MASK]", "1", "2", "+", "++"]), signs("0123456789+-")
    pieces = Pieces.make(token_texts(generator), model)
    rows = [pieces.pieces[a:b].tolist() for a, b in pieces.offsets.unfold(0, 2, 1).tolist()]
    one, two, plus = model.convert_tokens_to_ids(["1", "2", "+"])
    assert [[i for i in row if i != PAD] for row in rows[3:]] == [[one], [two], [plus], [plus, plus]]
