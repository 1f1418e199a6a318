import itertools

import pytest
import torch
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from redge_guidance import GuidanceConfig, RelaxedTokens, guide
from redge_guidance.rewards import BlackBoxReward, LengthReward, LexicalReward
from tests.helpers.reward_models import relaxed
from tests.helpers.tiny import WORDS, word_tokenizer
from tests.helpers.tokenizers import TEXTS, tokenizer

KINDS = ("byte", "wordpiece", "unigram", "fallback")
EOS, A, B, C = 1, 3, 4, 5


def mixture(length=3, allowed=(A, B, C, 6, 7), seed=0):
    """A text whose positions are drawn independently from `allowed`, as a relaxed sample that is no one-hot."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(length, len(WORDS))
    weights[:, list(allowed)] = torch.randn(length, len(allowed), generator=generator).softmax(-1)
    ids = torch.tensor([[A] * length])
    return RelaxedTokens(
        ids, torch.ones_like(ids).bool(), weights.requires_grad_(), hard=False, tokenizer=word_tokenizer()
    )


def expectation(tokens, function):
    """`E[function(text)]` over all texts, the positions being independent."""
    total = 0.0
    for ids in itertools.product(range(len(WORDS)), repeat=len(tokens.weights)):
        probability = tokens.weights[range(len(ids)), ids].prod()
        if probability > 0:
            words = [WORDS[i] for i in ids]
            end = words.index("[EOS]") if "[EOS]" in words else len(words)
            total = total + probability * function(words[:end])
    return total


def slopes_agree(relaxed_value, expected, weights):
    torch.testing.assert_close(relaxed_value, expected)
    (grad,), (exact,) = (torch.autograd.grad(v, weights, retain_graph=True) for v in (relaxed_value, expected))
    inside = weights > 0  # the enumeration leaves out what cannot be drawn
    size = inside.sum(-1, keepdim=True)
    centred = [g * inside - (g * inside).sum(-1, keepdim=True) / size for g in (grad, exact)]  # along the simplex
    torch.testing.assert_close(centred[0][inside], centred[1][inside])


# words


@pytest.mark.parametrize("generator", KINDS)
def test_value_is_that_of_the_decoded_text(generator):
    texts = [*TEXTS, "", "books, books, books"]
    tokens = relaxed(tokenizer(generator), texts)
    for reward in (
        LexicalReward({"books": 2.0, "a": 0.5}, "doctor"),
        LexicalReward(["books", "the river"], count=True),
    ):
        torch.testing.assert_close(reward(tokens), reward.score(tokens.texts()))


def test_words_are_found_whole():
    score = lambda text, *args, **kwargs: LexicalReward(*args, **kwargs).score([text]).item()  # noqa: E731
    assert score("The cats sat.", "cat") == 0
    assert score("The cat's hat, the CAT.", "cat", count=True) == 2
    assert score("The cat's hat, the CAT.", "cat", case_sensitive=True, count=True) == 1
    assert score("I give up; give  up!", "give up", count=True) == 2
    assert score("I gave up.", "give up") == 0
    assert score("no, never", {"no": 1.5}, {"never": 4}) == -2.5
    assert score("isn't", "isn't") == 1


def test_probability_that_a_word_occurs():
    tokens = mixture()
    occurs = LexicalReward("a").relaxed(tokens)[0]
    slopes_agree(occurs, expectation(tokens, lambda words: "a" in words), tokens.weights)
    two = LexicalReward({"a": 2.0, "d": 3.0}, {"b": 0.5}).relaxed(tokens)[0]
    expected = expectation(tokens, lambda w: 2.0 * ("a" in w) + 3.0 * ("d" in w) - 0.5 * ("b" in w))
    slopes_agree(two, expected, tokens.weights)


def test_expected_number_of_words_and_phrases():
    tokens = mixture(4)
    pairs = lambda words: sum(pair == ("a", "b") for pair in itertools.pairwise(words))  # noqa: E731
    counted = LexicalReward("a b", count=True).relaxed(tokens)[0]
    slopes_agree(counted, expectation(tokens, pairs), tokens.weights)
    tokens = mixture(2)  # there is one place for a pair
    slopes_agree(LexicalReward("a b").relaxed(tokens)[0], expectation(tokens, pairs), tokens.weights)


def test_a_word_does_not_count_inside_another():
    made = tokenizer("byte")
    reward = LexicalReward("doct", count=True)  # "do" + "ct", and then "or"
    tokens = relaxed(made, ["the doctor", "the doct."])
    torch.testing.assert_close(reward.relaxed(tokens), torch.tensor([0.0, 1.0]))
    at_start = LexicalReward("happy", count=True)
    torch.testing.assert_close(at_start.relaxed(relaxed(made, ["happy", "Unhappy"])), torch.tensor([1.0, 0.0]))


def test_report():
    reward = LexicalReward(["cat", "dog"], ["bird"])
    report = reward.report(["a cat, a dog", "a cat", "a dog, a cat, a bird"])
    assert report.share == pytest.approx({"cat": 1.0, "dog": 2 / 3, "bird": 1 / 3})
    assert report.satisfied == pytest.approx(1 / 3)
    assert report.violations == [[], ["dog"], ["bird"]]
    assert reward.reached(["a cat, a dog", "a cat", "a dog, a cat, a bird"]) == [True, False, False]
    with pytest.raises(ValueError, match="`prompts` must be one a sample, 1, got 2"):
        reward.score(["a cat"], ["a", "b"])


def test_a_long_list_such_as_vaders():
    lexicon = SentimentIntensityAnalyzer().lexicon
    reward = LexicalReward({word: weight for word, weight in lexicon.items() if word.isalpha()}, count=True)
    made = tokenizer("byte")
    tokens = relaxed(made, ["a happy people", "an unhappy people"])
    value = reward(tokens)
    torch.testing.assert_close(value, torch.tensor([lexicon["happy"], lexicon["unhappy"]], dtype=torch.float))
    (grad,) = torch.autograd.grad(value.sum(), tokens.weights)
    happy = made("a happy", add_special_tokens=False).input_ids[1]
    assert grad[0, happy] == pytest.approx(lexicon["happy"], rel=1e-3)


def rarest_word(texts):
    words = " ".join(texts).split()
    return min(WORDS[3:], key=words.count)


def write(pipe):
    return pipe([""] * 40, generator=torch.Generator().manual_seed(0)).texts


def test_guidance_considers_wanted_words_however_unlikely(pipe):
    """Support 2, and a word that is hardly ever among the two likeliest."""
    bare = write(pipe)
    word = rarest_word(bare)
    reward = LexicalReward(word)
    assert reward.token_ids(pipe.tokenizer) == [WORDS.index(word)]
    with guide(pipe, reward, GuidanceConfig(scale=30.0, support=2)):
        texts = write(pipe)
    assert reward.score(texts).mean() > 0.9
    assert reward.score(texts).mean() > reward.score(bare).mean() + 0.2


def test_lexical_bad_input():
    with pytest.raises(ValueError, match="`wanted` or `banned` must name a word, got none"):
        LexicalReward()
    with pytest.raises(ValueError, match="must be words or phrases, got ' '"):
        LexicalReward(" ")
    with pytest.raises(ValueError, match="`wanted` must have a finite weight other than 0 for 'a', got 0"):
        LexicalReward({"a": 0})
    with pytest.raises(ValueError, match="`banned` must say what 'a' costs, > 0, got -1"):
        LexicalReward(banned={"a": -1})
    with pytest.raises(ValueError, match="`wanted` has 'Wort', which the generator's tokenizer cannot write"):
        LexicalReward("Wort").token_ids(word_tokenizer())


# length


def test_length_is_that_of_the_decoded_text():
    tokens = relaxed(tokenizer("byte"), TEXTS)
    texts = tokens.texts()
    words = torch.tensor([len(text.split()) for text in texts]).float()
    torch.testing.assert_close(LengthReward(8, 9)(tokens), -(8 - words).clamp(min=0) - (words - 9).clamp(min=0))
    characters = LengthReward(maximum=20, unit="characters")
    torch.testing.assert_close(characters(tokens), -torch.tensor([max(len(text) - 20, 0) for text in texts]).float())
    torch.testing.assert_close(characters(tokens), characters.score(texts))
    assert LengthReward(2, 3).reached(["a", "a b", "a b c", "a b c d"]) == [False, True, True, False]


@pytest.mark.parametrize("limits", [(5, None), (0, 1), (2, 2)])
def test_expected_reward_of_the_length(limits):
    tokens, reward = mixture(4, allowed=(EOS, A, B)), LengthReward(*limits)
    value = lambda words: reward.score([" ".join(words)])[0]  # noqa: E731
    slopes_agree(reward.relaxed(tokens)[0], expectation(tokens, value), tokens.weights)


def test_ends_within_a_prompt_end_nothing_and_add_nothing():
    ids = torch.tensor([[A, EOS, B, C, EOS, A]])
    given = torch.tensor([[True, True, False, False, False, False]])
    weights = torch.nn.functional.one_hot(ids[~given], len(WORDS)).float()
    tokens = RelaxedTokens(ids, ~given, weights, tokenizer=word_tokenizer(), given=given)
    assert tokens.texts() == ["a b c"]
    reward = LengthReward(9)
    torch.testing.assert_close(reward.relaxed(tokens), reward.score(["a b c"]))


def test_longer_tokens_make_longer_texts():
    made = tokenizer("byte")
    tokens = relaxed(made, ["the people"])
    (grad,) = torch.autograd.grad(LengthReward(50, unit="characters")(tokens).sum(), tokens.weights)
    newspapers = made.convert_tokens_to_ids("newspapers")
    short, long = (len(made.decode([i])) for i in (tokens.ids[0, 1].item(), newspapers))
    assert grad[1, newspapers] - grad[1, tokens.ids[0, 1]] == pytest.approx(long - short)


def test_guidance_reaches_lengths_that_exclude_each_other(pipe):
    for low, high in ((1, 2), (4, 6)):
        reward = LengthReward(low, high)
        with guide(pipe, reward, GuidanceConfig(scale=20.0)):
            texts = write(pipe)
        assert (reward.score(texts) == 0).float().mean() > 0.8


def test_length_bad_input():
    with pytest.raises(ValueError, match="must satisfy 0 <= minimum <= maximum, got 4, 2"):
        LengthReward(4, 2)
    with pytest.raises(ValueError, match="`unit` must be one of words, characters, got 'lines'"):
        LengthReward(4, unit="lines")
    with pytest.raises(ValueError, match="`minimum` must be finite, got inf"):
        LengthReward(float("inf"))


def test_limits_that_no_integer_of_torch_holds():
    assert LengthReward(2**70).score(["a"]).tolist() == [-(2.0**70)]
    assert LengthReward(1, 2**70).score(["", "a"]).tolist() == [-1, 0]


# black boxes


def test_a_black_box_sees_texts_and_is_asked_once_for_each():
    seen = []

    def count_e(text):
        seen.append(text)
        return text.count("e")

    reward = BlackBoxReward(count_e)
    tokens = relaxed(tokenizer("byte"), ["the tree", "e", "the tree"])
    torch.testing.assert_close(reward(tokens), torch.tensor([3.0, 1.0, 3.0]))
    assert seen == ["the tree", "e"]
    batched = BlackBoxReward(lambda texts: torch.tensor([len(text) for text in texts]), batched=True)
    torch.testing.assert_close(batched.score(["ab", "a", "ab"], batch_size=1), torch.tensor([2.0, 1.0, 2.0]))
    prompted = relaxed(tokenizer("byte"), [" tree"], prompts=["the"])
    assert BlackBoxReward(len, answer_only=True)(prompted).item() == 5


def test_a_black_box_is_told_the_prompt_and_asked_once_for_each_pair():
    seen = []

    def longer(text, prompt):
        seen.append((text, prompt))
        return len(text) - len(prompt)

    reward = BlackBoxReward(longer, takes_prompt=True, answer_only=True)
    tokens = relaxed(tokenizer("byte"), [" tree", " tree", " tree"], prompts=["the", "a", "the"])
    torch.testing.assert_close(reward(tokens), torch.tensor([2.0, 4.0, 2.0]))
    assert seen == [(" tree", "the"), (" tree", "a")]
    assert reward.reached([" tree"], ["the"]) is None

    def longer_ones(texts, prompts):
        return [longer(*pair) for pair in zip(texts, prompts, strict=True)]

    batched = BlackBoxReward(longer_ones, batched=True, takes_prompt=True)
    torch.testing.assert_close(batched.score(["ab", "a", "ab"], ["", "a", "b"], 2), torch.tensor([2.0, 0.0, 1.0]))
    once = BlackBoxReward(len)  # which is not told the prompt
    torch.testing.assert_close(once.score(["ab", "a"], ["x", "y"]), torch.tensor([2.0, 1.0]))


def test_a_black_box_of_pixels_with_prompts():
    pixels = torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)]).to(torch.bfloat16).requires_grad_()
    reward = BlackBoxReward(lambda image, prompt: image.mean() + len(prompt), takes_prompt=True)
    torch.testing.assert_close(reward.score(pixels, ["a", "bc"]), torch.tensor([1.0, 3.0]))
    brightness = BlackBoxReward(lambda images: torch.stack(images).mean((1, 2, 3)), batched=True)
    torch.testing.assert_close(brightness.score(pixels, batch_size=1), torch.tensor([0.0, 1.0]))


def test_a_black_box_without_the_prompts_that_it_takes():
    reward = BlackBoxReward(lambda text, prompt: 1.0, takes_prompt=True, name="judge")
    with pytest.raises(ValueError, match="`judge` takes prompts, and there are none; let `score` .* `prompts`"):
        reward.score(["a"])
    with pytest.raises(ValueError, match="`judge` takes prompts, and there are none"):
        reward(relaxed(tokenizer("byte"), ["a"]))
    with pytest.raises(ValueError, match="`prompts` must be one a sample, 1, got 2"):
        reward.score(["a"], ["b", "c"])


def test_guidance_by_a_black_box(pipe):
    word = rarest_word(write(pipe))
    reward = BlackBoxReward(lambda text: text.split().count(word))
    bare = reward.score(write(pipe)).mean()
    with guide(pipe, reward, GuidanceConfig(scale=6.0, num_draws=32)) as handle:
        guided = reward.score(write(pipe)).mean()
    assert guided > bare + 0.5
    assert len(handle.trace) > 0


def broken(text):
    if "b" in text:
        raise KeyError("no b")
    return 1.0


def test_black_box_bad_input(pipe):
    with pytest.raises(ValueError, match="`function` must be callable, from a text to a number, got int"):
        BlackBoxReward(3)
    with pytest.raises(RuntimeError, match="`broken` raised KeyError: 'no b'; on 'a b'"):
        BlackBoxReward(broken).score(["a", "a b"])
    with pytest.raises(ValueError, match="must return a finite number, got None, on 'a'"):
        BlackBoxReward(lambda text: None).score(["a"])
    with pytest.raises(ValueError, match="must return a finite number, got nan, on 'a'"):
        BlackBoxReward(lambda text: float("nan")).score(["a"])
    with pytest.raises(ValueError, match="must return a finite number, got '3', on 'a'"):
        BlackBoxReward(lambda text: "3").score(["a"])
    with pytest.raises(ValueError, match="must return 2 numbers, got 1, on 2 samples, the first 'a'"):
        BlackBoxReward(lambda texts: [1.0], batched=True).score(["a", "b"])
    with pytest.raises(ValueError, match="must return a list of numbers, got float"):
        BlackBoxReward(lambda texts: 1.0, batched=True).score(["a", "b"])
    with pytest.raises(ValueError, match="`num_draws` must be >= 2 for a reward without gradient, got 1"):
        guide(pipe, BlackBoxReward(len), GuidanceConfig(num_draws=1))
    assert "step" not in vars(pipe.scheduler)  # nothing was attached
