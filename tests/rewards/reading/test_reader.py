import warnings

import pytest
import torch
from transformers import Gemma3TextConfig, Gemma3TextForSequenceClassification

from redge_guidance import RelaxedTokens
from redge_guidance.rewards import (
    FluencyReward,
    SentenceSimilarityReward,
    TextClassifierReward,
    TextPreferenceReward,
)
from redge_guidance.rewards.reading.alignment import Pieces, token_texts
from redge_guidance.rewards.reading.framing import Frame
from redge_guidance.rewards.reading.reader import Reader
from tests.helpers.reward_models import Linear, causal_lm, classifier, encoder, masked_lm, relaxed, reward_model
from tests.helpers.tiny import WORDS, word_tokenizer
from tests.helpers.tokenizers import TEXTS, tokenizer

KINDS = ("byte", "wordpiece", "unigram", "fallback")
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def rewards_of(kind):
    """Every reward with a model, its tokenizer of one kind."""
    made = tokenizer(kind)
    yield TextClassifierReward(classifier(made, num_labels=3), made, 1)
    yield SentenceSimilarityReward(encoder(made), made, ["a happy doctor", "the river"])
    yield FluencyReward(causal_lm(made), made)
    yield TextPreferenceReward(reward_model(made), made, "What is new?", chat_template=TEMPLATE)
    if made.mask_token_id is not None:
        yield FluencyReward(masked_lm(made), made, num_passes=3)


@pytest.mark.parametrize("model", KINDS)
@pytest.mark.parametrize("generator", KINDS)
def test_value_in_guidance_is_the_score_of_the_decoded_text(generator, model):
    tokens = relaxed(tokenizer(generator), [*TEXTS, "", "😀"])
    for reward in rewards_of(model):
        value = reward(tokens)
        torch.testing.assert_close(value, reward.score(tokens.texts()), msg=lambda m, r=reward: f"{r.name}: {m}")
        (grad,) = torch.autograd.grad(value.sum(), tokens.weights)
        assert grad.isfinite().all()
        assert grad.abs().sum() > 0


@pytest.mark.parametrize(("generator", "model"), [("byte", "byte"), ("byte", "wordpiece"), ("fallback", "unigram")])
def test_one_at_a_time_is_as_in_a_batch(generator, model):
    texts = TEXTS[:4]
    for reward in rewards_of(model):
        together = reward(relaxed(tokenizer(generator), texts))
        alone = torch.cat([reward(relaxed(tokenizer(generator), [text])) for text in texts])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("generator", "model"), [("byte", "byte"), ("byte", "wordpiece"), ("wordpiece", "byte")])
def test_slope_of_a_linear_reward_is_the_change_of_its_score(generator, model):
    """Exchanging a word that is one token in both tokenizers."""
    made = tokenizer(generator)
    reward = TextClassifierReward(Linear(tokenizer(model)), tokenizer(model))
    tokens = relaxed(made, ["the people are happy in the garden"])
    (grad,) = torch.autograd.grad(reward(tokens).sum(), tokens.weights)
    happy, the = (made(f"a {word}", add_special_tokens=False).input_ids[1] for word in ("happy", "the"))
    change = grad[tokens.ids[0].tolist().index(happy), [the, happy]]
    texts = ["the people are happy in the garden", "the people are the in the garden"]
    before, after = reward.score(texts)
    torch.testing.assert_close(change[0] - change[1], after - before, atol=1e-4, rtol=1e-4)


def test_a_piece_of_two_tokens_pulls_each_by_its_share():
    made, model = tokenizer("byte"), tokenizer("wordpiece")
    reward = TextClassifierReward(Linear(model), model)
    tokens = relaxed(made, ["Unhappy"])  # Un + happy for the one, unhappy for the other
    (grad,) = torch.autograd.grad(reward(tokens).sum(), tokens.weights)
    embedding = reward.model.embedding.weight.detach()
    table = Pieces.of(made, model, token_texts(made)).embeddings(embedding)
    table[made.eos_token_id] = embedding[model.sep_token_id]  # which stands after the text
    table = table @ reward.model.head
    torch.testing.assert_close(grad[0], 2 / 7 * table)
    torch.testing.assert_close(grad[1], 5 / 7 * table)


def test_relaxed_tokens_of_the_same_tokenizer_are_read_as_they_are():
    made = tokenizer("byte")
    reward = TextClassifierReward(Linear(made), made)
    ids = torch.tensor([[20, 30, 40]])
    weights = torch.rand(3, len(made)).softmax(-1).requires_grad_()
    mixed = RelaxedTokens(ids, torch.ones_like(ids).bool(), weights, hard=False, tokenizer=made)
    expected = (weights @ reward.model.embedding.weight).sum(0) @ reward.model.head
    torch.testing.assert_close(reward(mixed)[0], expected)


def test_other_numbers_for_the_same_tokens():
    turned = word_tokenizer([*WORDS[:3], *reversed(WORDS[3:])])
    reward = TextClassifierReward(classifier(turned, num_labels=1), turned)
    tokens = relaxed(word_tokenizer(), ["a b b", "e"])
    torch.testing.assert_close(reward(tokens), reward.score(["a b b", "e"]))
    assert "coverage" not in tokens.notes


def test_the_end_of_a_text_is_the_generators_where_the_frame_has_the_same():
    """A classifier that is told the end sees what else could stand there."""
    made = tokenizer("unigram")  # which puts </s> after a text
    reward = TextClassifierReward(Linear(made), made)
    tokens = relaxed(made, ["the river"])
    (grad,) = torch.autograd.grad(reward(tokens).sum(), tokens.weights)
    torch.testing.assert_close(grad[-1], reward.model.embedding.weight @ reward.model.head)


def test_prompt_and_answer():
    made = tokenizer("byte")
    reward = TextPreferenceReward(reward_model(made), made, "Who are you?", chat_template=TEMPLATE)
    tokens = relaxed(made, [" the doctor", " he"], prompts=["Who is", "Who"])
    assert tokens.texts() == ["Who is the doctor", "Who he"]
    assert tokens.answers() == [" the doctor", " he"]
    torch.testing.assert_close(reward(tokens), reward.score([" the doctor", " he"]))
    whole = TextPreferenceReward(reward.model, made, "Who?", chat_template=TEMPLATE, whole_text=True)
    torch.testing.assert_close(whole(tokens), whole.score(tokens.texts()))


def test_a_text_that_the_template_strips_takes_the_other_way_and_back():
    made = tokenizer("byte")
    tokens = [relaxed(made, [text]) for text in ("the doctor", " the doctor", "the doctor")]
    reward = TextPreferenceReward(reward_model(made), made, "Who?", chat_template=TEMPLATE)
    grads = [torch.autograd.grad(reward(t).sum(), t.weights)[0] for t in tokens]
    assert reward.reader(tokens[1], reward.frames(1))[0][1].exact is False
    assert reward.reader(tokens[2], reward.frames(1))[0][1].exact is True
    torch.testing.assert_close(grads[0], grads[2])


def test_coverage_is_noted_and_warned_about():
    model = tokenizer("wordpiece")
    reward = TextClassifierReward(classifier(model, num_labels=1), model, max_length=4)
    tokens = relaxed(tokenizer("byte"), ["the old doctor and the river"])
    with pytest.warns(UserWarning, match="are cut on the right"), pytest.warns(UserWarning, match="get a gradient"):
        reward(tokens)
    assert 0 < tokens.notes["coverage"] < 0.5
    whole = TextClassifierReward(reward.model, model)
    whole(tokens)
    assert tokens.notes["coverage"] > 0.7  # white space alone belongs to no piece
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        reward(tokens)


def test_a_sum_says_whose_coverage_it_is():
    model = tokenizer("wordpiece")
    reward = TextClassifierReward(classifier(model, num_labels=1), model)
    tokens = relaxed(tokenizer("byte"), ["the doctor"])
    (reward + 2 * reward)(tokens)
    names = {"TextClassifierReward", "TextClassifierReward_2"}
    assert set(tokens.notes) == names | {f"coverage of {name}" for name in names}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("generator", ["byte", "wordpiece"])
def test_long_texts_lose_the_same_tokens_everywhere(side, generator):
    made = tokenizer("wordpiece")
    made.truncation_side = side
    try:
        reward = TextClassifierReward(classifier(made, num_labels=1), made, max_length=6)
        text = "the old doctor lived in a small house"
        with pytest.warns(UserWarning, match=f"are cut on the {side}"):
            cut = reward.score([text])
        kept = "a small house" if side == "left" else "the old doctor lived"
        kept = "in " + kept if side == "left" else kept
        torch.testing.assert_close(cut, reward.score([kept]))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*get a gradient")
            torch.testing.assert_close(reward(relaxed(tokenizer(generator), [text])), cut)
    finally:
        made.truncation_side = "right"


def test_limits_are_those_of_tokenizer_and_model():
    made = tokenizer("wordpiece")
    assert Reader(classifier(made), made).max_length == 128
    assert Reader(classifier(made), made, max_length=7).max_length == 7


def test_bad_arguments():
    made = tokenizer("byte")
    with pytest.raises(ValueError, match="`padding_side` must be 'left' or 'right', got 'top'"):
        Reader(classifier(made), made, "top")
    with pytest.raises(ValueError, match="`max_length` must be >= 1 or None, got 0"):
        Reader(classifier(made), made, max_length=0)
    with pytest.raises(ValueError, match="`tokenizer` must be a tokenizer of transformers, got object"):
        Reader(classifier(made), object())
    reward = TextClassifierReward(classifier(made, num_labels=1), made)
    ids = torch.tensor([[5]])
    with pytest.raises(ValueError, match="`tokens` must carry the generator's tokenizer, got None"):
        reward(RelaxedTokens(ids, ids > 9, torch.zeros(0, len(made))))


def test_embeddings_that_a_model_scales():
    made = tokenizer("byte")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"vocab_size": len(made), "num_key_value_heads": 1, "head_dim": 8}
    model = Gemma3TextForSequenceClassification(Gemma3TextConfig(**sizes, num_labels=1, pad_token_id=0)).eval()
    reward = TextClassifierReward(model, made)
    assert reward.reader.scale == pytest.approx(4.0)
    ids = torch.tensor([made(TEXTS[0]).input_ids])
    torch.testing.assert_close(reward.score([TEXTS[0]]), model(input_ids=ids).logits[:, 0])


def test_frames_of_a_batch_may_differ():
    made = tokenizer("byte")
    model = Linear(made)
    reader = Reader(model, made, "left")
    tokens = relaxed(made, ["the", "a happy", "he"])
    frames = [Frame("x: ", "", False), Frame("", "!?", False), Frame("x: ", "", False)]
    parts, texts = reader(tokens, frames), tokens.texts()
    assert sorted(k for rows, _ in parts for k in rows.tolist()) == [0, 1, 2]
    for rows, read in parts:
        written = reader.read_texts([texts[k] for k in rows], [frames[k] for k in rows])
        for name in ("ids", "mask", "text", "end"):
            assert torch.equal(getattr(read, name), getattr(written, name)), name
        torch.testing.assert_close(read.embeddings, model.embedding(written.ids))
