"""What a word is, in many scripts, and in texts and tokens alike."""

import unicodedata

import pytest
import regex
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from redge_guidance import RelaxedTokens
from redge_guidance.rewards import LengthReward, LexicalReward
from tests.helpers.reward_models import relaxed
from tests.helpers.tokenizers import tokenizer


def found(word, text, **kwargs):
    return LexicalReward(word, **kwargs).score([text]).item() > 0


TEXT = st.text(st.sampled_from("aéß\u0130\u0131कि्\u200cषŝ东は한ภา 'e\u0301\u2019.-👍🏽\u200b"), max_size=12)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_normal_forms_are_one(form):
    text = unicodedata.normalize(form, "The café is closed.")
    for word in ("café", unicodedata.normalize("NFD", "café")):
        assert found(word, text)
        assert found(word, text, case_sensitive=True)
    assert not found("cafe", text)
    assert not found("caf", text)


@pytest.mark.parametrize("word", ["\u0301", "\u0301a", "a \u0301b", "a\u200b\u0301b"])
def test_a_mark_without_a_letter_is_no_word(word):
    with pytest.raises(ValueError, match="a letter or another sign|in which a combining mark has no letter"):
        LexicalReward(word)


@given(TEXT, TEXT)
def test_normal_forms_are_one_for_any_text(word, text):
    if not regex.search(r"[^\s\p{M}\p{C}]", word):
        with pytest.raises(ValueError, match="`wanted` must be words or phrases"):
            LexicalReward(word)
        return
    if regex.search(r"(^|\s|\u200b)[\p{M}\u200c]", word):
        with pytest.raises(ValueError, match="in which a combining mark has no letter"):
            LexicalReward(word)
        return
    values = {
        found(unicodedata.normalize(a, word), unicodedata.normalize(b, f"{text} {word} {text}"))
        for a in ("NFC", "NFD")
        for b in ("NFC", "NFD")
    }
    assert values == {True}


def test_marks_belong_to_their_letter():
    assert found("हिन्दी", "मुझे हिन्दी पसंद है।")
    assert not found("हिन", "मुझे हिन्दी पसंद है।")
    assert found("👍🏽", "ok 👍🏽!")
    assert not found("👍", "👍🏽")


@pytest.mark.parametrize(
    ("word", "text", "is_there"),
    [
        ("東京", "私は東京に住んでいます。", True),
        ("京東", "私は東京に住んでいます。", False),
        ("北京", "我住在北京。", True),
        ("ไทย", "ภาษาไทยยาก", True),
        ("서울", "서울에 살아요", False),  # a part of a word, in a script with spaces
        ("서울", "여기는 서울 입니다", True),
    ],
)
def test_scripts_without_spaces(word, text, is_there):
    assert found(word, text) == is_there


def test_case_is_folded():
    assert found("Straße", "DIE STRASSE")
    assert found("strasse", "die Straße")
    assert not found("Straße", "die strasse", case_sensitive=True)
    assert found("ΣΑΣ", "ένα σας")
    assert not found("\u0131l\u0131k", "ILIK")  # the default rules know no Turkish


@pytest.mark.parametrize("generator", ["byte", "fallback"])
@pytest.mark.parametrize("word", ["Straße", "café", "東京", "हिन्दी", "New York", "!"])
def test_spellings_write_the_word_that_is_found(generator, word):
    """Where it has a spelling, the relaxed weight of a hard text that has the word is the exact value."""
    made = tokenizer(generator)
    reward = LexicalReward(word, count=True)
    tokens = relaxed(made, [f"a {word}"])
    if reward.score(tokens.texts()).item():  # the tokenizer keeps the form
        torch.testing.assert_close(reward.relaxed(tokens), reward.score(tokens.texts()))
    for word_number, ids in reward.spellings(made):
        assert word_number == 0
        assert reward.score([made.decode(list(ids))]).item() == 1


def test_a_word_that_loses_its_accent_cannot_be_written():
    with pytest.raises(ValueError, match="`wanted` has 'café', which the generator's tokenizer cannot write"):
        LexicalReward("café").token_ids(tokenizer("wordpiece"))


def test_a_word_that_is_named_twice():
    assert LexicalReward(["music", "Music"]).score(["music"]).item() == 1
    assert LexicalReward(["music", "Music"], case_sensitive=True).score(["music Music"]).item() == 2
    with pytest.raises(ValueError, match=r"`wanted` has 'music' and 'MUSIC', the same word unless `case_.*2 and 3"):
        LexicalReward({"music": 2, "MUSIC": 3})
    for banned in ("tea", "Tea", ["x", "TEA"]):
        with pytest.raises(ValueError, match="`banned` has '(tea|Tea|TEA)', which `wanted` has as 'tea'"):
            LexicalReward("tea", banned)
    LexicalReward("tea", "Tea", case_sensitive=True)
    with pytest.raises(ValueError, match="`banned` has 'caf.*', which `wanted` has as 'café'"):
        LexicalReward("café", unicodedata.normalize("NFD", "café"))


@pytest.mark.parametrize("empty", ["", " ", "\t\n", "\u200b", "\u0301", "\u00a0"])
def test_words_with_nothing_to_see(empty):
    for arguments in ((empty,), (["a", empty],), ((), empty)):
        with pytest.raises(ValueError, match="must be words or phrases, got '.*'; each needs a letter or another sign"):
            LexicalReward(*arguments)


@pytest.mark.parametrize("sign", ["!", "?", "...", "\u2019", ":)", "👍"])
def test_signs_are_words_of_their_own(sign):
    assert found(sign, f"Well{sign}")
    assert not found(sign, "Well")


def test_what_is_no_word():
    with pytest.raises(ValueError, match="`wanted` must be words or phrases, got 3"):
        LexicalReward([3])
    with pytest.raises(ValueError, match="`wanted` must be a word, several, or a mapping to weights, got int"):
        LexicalReward(3)
    with pytest.raises(ValueError, match="`wanted` must have a finite weight other than 0 for 'a', got True"):
        LexicalReward({"a": True})
    with pytest.raises(ValueError, match="`wanted` must have a finite weight other than 0 for 'a', got nan"):
        LexicalReward({"a": float("nan")})


def test_a_long_list_says_which_words_cannot_be_written():
    made = tokenizer("wordpiece")
    words = [f"w{n}" for n in range(600)] + ["東京"]
    with pytest.warns(UserWarning, match="`wanted` has .* words that the generator's tokenizer cannot write, such as"):
        LexicalReward(words).token_ids(made)


# length


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_characters_are_those_that_a_reader_counts(form):
    for text, count in (("café", 4), ("हिन्दी", len(regex.findall(r"\X", "हिन्दी"))), ("👍🏽", 1), ("東京", 2)):
        assert LengthReward(1, unit="characters").lengths([unicodedata.normalize(form, text)]).item() == count


@given(st.lists(st.sampled_from(["a", "b", "e\u0301", "\u0301", "क", "ि", " ", "東"]), min_size=1, max_size=6))
def test_what_tokens_add_is_what_the_text_has(parts):
    """A vocabulary of letters and marks apart: their table and the text agree."""
    if regex.match(r"\s|\p{M}", parts[0]):
        return
    words = ["[PAD]", "[EOS]", "[MASK]", "a", "b", "e\u0301", "\u0301", "क", "ि", " ", "東"]
    base = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[PAD]"))
    base.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=base, pad_token="[PAD]", eos_token="[EOS]", mask_token="[MASK]")
    ids = torch.tensor([[words.index(part) for part in parts]])
    weights = torch.nn.functional.one_hot(ids[0], len(words)).float()
    tokens = RelaxedTokens(ids, torch.ones_like(ids).bool(), weights, tokenizer=made)
    reward = LengthReward(20, unit="characters")
    torch.testing.assert_close(reward.relaxed(tokens), reward.score(tokens.texts()))


def test_a_length_without_a_limit_is_refused():
    with pytest.raises(ValueError, match="`minimum` or `maximum` must be given, got 0 and None"):
        LengthReward()
    with pytest.raises(ValueError, match="`minimum` or `maximum` must be given, got 0 and None"):
        LengthReward(unit="characters")
    LengthReward(maximum=0)
