"""Words and phrases in texts: `LexicalReward`, and behind it `regex` and `unicodedata`, are the judges."""

import itertools
import random
import time
import unicodedata

import pytest

from redge_guidance.constraints.machine import TooManyStatesError
from redge_guidance.constraints.occurrences import occurrences, worth_of_words
from redge_guidance.constraints.words import normal_form
from redge_guidance.rewards import LexicalReward

SCRIPTS = ["music", "café", "Straße", "naïve", "İstanbul", "ılık", "Größe", "tiếng Việt", "Ωμέγα", "ᾄδω", "привет"]
SCRIPTS += ["שָׁלוֹם", "سلام", "हिन्दी", "বাংলা", "தமிழ்", "ไทย", "ကမ္ဘာ", "東京", "カタカナ", "ひらがな", "서울", "ქართული"]
SCRIPTS += ["አማርኛ"]
SIGNS = ["don't", "1.5", "a_1", "!", "👩\u200d👧", "🇩🇪", "©", "≠", "x = y", "New York", "in front of", "a a", "ℹ"]

NASTY = list("aéßſsSẞiIİıkKC'’.,_-1٣ \n\u200d\u200c\xad\u200b")
NASTY += list('東カーガのไภา\u0e33हिन्दीबश한서ᄒ\u1161\u11abא"״,:👍🏽👩👧🇩🇪🇫©ℹⓂ')
NASTY += list("\u0301\u0307\u0323\u0302ệắ\u0345αᾳᾴι\u102bက\u0338=≠!ŉǰΣςσ\u212bÅ\ufe0f\u202f\u0600\U000e0020")
NASTY += list("\u0f73\u0f71\ufb01")


def nasty_texts(word, number, signs, seed=0):
    """Texts of the word's spellings, of parts of it and of other signs, in either normal form or in none."""
    draw = random.Random(seed)
    spellings = [f(g(word)) for f in (str, str.upper) for g in (str, lambda w: unicodedata.normalize("NFD", w))]
    texts = []
    for _ in range(number):
        parts = draw.choices([spellings, list(word), [" "], signs], [5, 5, 3, 5], k=draw.randint(0, 8))
        text = "".join(draw.choice(part) for part in parts)
        texts.append(unicodedata.normalize(draw.choice(["NFC", "NFD"]), text) if draw.random() < 0.3 else text)
    return texts


def count(word, text, case_sensitive=False):
    return int(LexicalReward(word, count=True, case_sensitive=case_sensitive).score([text]).item())


@pytest.mark.parametrize(
    ("word", "case_sensitive"),
    [*((word, False) for word in SCRIPTS + SIGNS), *((word, True) for word in [*SCRIPTS[::3], *SIGNS[::3]])],
)
def test_what_is_found_is_what_the_reward_finds(word, case_sensitive):
    """Exactly, in texts without marks that are in an order of their own or belong to no letter."""
    wanted = occurrences({word: (1, None)}, case_sensitive=case_sensitive)
    plain = [sign for sign in NASTY if sign not in "\u0345\u094d'’.,:\"״🏽ᾳᾴ" or sign in word]
    reward = LexicalReward(word, count=True, case_sensitive=case_sensitive)
    texts = [text for text in nasty_texts(word, 80, plain) if "\u094d" not in plain or is_plain(text)]
    numbers = reward.score(texts).tolist()
    assert 5 < sum(n > 0 for n in numbers) < len(texts) - 5
    for text, number in zip(texts, numbers, strict=True):
        assert wanted.accepts(text) == (number > 0), ascii(text)


def is_plain(text):
    """Whether every virama has a letter."""
    text = normal_form(text)
    return not any(b == "\u094d" and not (a.isalpha() or unicodedata.combining(a)) for a, b in itertools.pairwise(text))


@pytest.mark.parametrize("word", ["a", "हिन्दी", "Straße", "New York", "ᾄδω", "👩\u200d👧", "🇩🇪", "カタカナ", "x = y"])
def test_never_wrong_on_the_safe_side(word):
    """Whatever the text: what is accepted has the word as often as asked, or has none; and it is rarely refused."""
    bounds = [(1, None), (0, 0), (2, 2), (0, 1)]
    machines = [occurrences({word: bound}) for bound in bounds]
    reward = LexicalReward(word, count=True)
    texts = nasty_texts(word, 130, [*NASTY, "\u094d"], seed=2)
    refused = right = 0
    for text, number in zip(texts, reward.score(texts).tolist(), strict=True):
        for machine, (low, high) in zip(machines, bounds, strict=True):
            is_right = low <= number and (high is None or number <= high)
            assert is_right or not machine.accepts(text), ascii(text)
            right += is_right
            refused += is_right and not machine.accepts(text)
    assert refused < 0.08 * right


@pytest.mark.parametrize("case_sensitive", [False, True])
def test_several_words_are_worth_their_weights(case_sensitive):
    weights = {"a b": 1.0, "é": -2.0, "b": 0.5}
    machine = worth_of_words(weights, count=2, case_sensitive=case_sensitive)
    assert machine.accepting.all()
    rewards = [LexicalReward(word, count=True, case_sensitive=case_sensitive) for word in weights]
    for text in nasty_texts("A b", 100, ["é", "e\u0301", "e", "B", "b ", " ", "'"], seed=3):
        counts = [min(reward.score([text]).item(), 2) for reward in rewards]
        expected = sum(n * weight for n, weight in zip(counts, weights.values(), strict=True))
        assert machine.values[machine.after(text)].item() == expected, ascii(text)


def test_some_wanted_some_banned():
    machine = occurrences({"cat": (1, 2), "dog": (0, 0), "the cat": (0, 1)})
    reward = LexicalReward(["cat"], banned="dog")
    for text in nasty_texts("the cat", 400, ["cat", " dog", "s", "Cat ", "."], seed=4):
        expected = reward.reached([text])[0] and count("cat", text) <= 2 and count("the cat", text) <= 1
        assert machine.accepts(text) == expected, text


@pytest.mark.parametrize(
    ("word", "text", "expected"),
    [
        ("New York", "in NEW \n\xa0york!", True),
        ("New York", "New-York", False),
        ("cat", "the cat's", True),
        ("cat", "cats", False),
        ("cafe", "cafe\u0301", False),
        ("Straße", "STRASSE", True),
        ("strasse", "STRAẞE", True),
        ("東京", "私は東京に住む", True),
        ("ไทย", "ภาษาไทยยาก", True),
        ("서울", "서울에", False),
        ("ệ", "e\u0302\u0323", True),  # marks in another order
        ("👍", "👍🏽", False),
    ],
)
def test_examples(word, text, expected):
    assert (count(word, text) > 0) == expected
    assert occurrences({word: (1, None)}).accepts(text) == expected
    assert occurrences({word: (0, 0)}).accepts(text) != expected


def test_overlapping_phrases_count():
    machine = occurrences({"a b a": (2, 2)})
    assert count("a b a", "a b a b a") == 2
    assert machine.accepts("a b a b a")
    assert not machine.accepts("a b a a b a b a")


def test_few_states_soon():
    words = ["music", "xylophone", "in front of"]
    occurrences({"a": (1, None)})  # tables of Unicode, made once
    start = time.process_time()
    machine = occurrences(dict.fromkeys(words, (1, None)))
    assert time.process_time() - start < 5  # 0.8
    assert len(machine.table) <= 8 * sum(map(len, words)) * 2
    assert len(occurrences({"encyclopedia": (1, None)}).table) <= 3 * len("encyclopedia")
    assert occurrences({"a": (0, None)}).table.shape == (1, 1)


def test_two_spellings_are_one_word():
    once = occurrences({"strasse": (1, 1)})
    assert occurrences({"Straße": (1, None), "STRASSE": (0, 1)}).table.shape == once.table.shape
    with pytest.raises(ValueError, match="`bounds` of 'STRASSE' must be 0 <= at_least <= at_most, got 1 and 0"):
        occurrences({"Straße": (1, None), "STRASSE": (0, 0)})
    with pytest.raises(ValueError, match="`bounds` of 'a' must be"):
        occurrences({"a": (2, 1)})


def test_too_many_states():
    with pytest.raises(TooManyStatesError, match="more than 500 states"):
        occurrences({f"word{n}": (1, None) for n in range(12)}, most=500)
