"""In a chat the answer is judged, in guidance as in `score`, unless a reward is told otherwise."""

import pytest
import torch
from diffusers import DiscreteDDIMScheduler

from redge_guidance import GuidanceConfig, RelaxedTokens, guide
from redge_guidance.rewards import (
    BlackBoxReward,
    FluencyReward,
    LengthReward,
    LexicalReward,
    SentenceSimilarityReward,
    TextClassifierReward,
    TextPreferenceReward,
)
from tests.helpers.reward_models import causal_lm, classifier, encoder, reward_model
from tests.helpers.tiny import CHAT_TEMPLATE, tiny_gemma, tiny_llada2, tiny_pipeline, tiny_uniform, word_tokenizer
from tests.helpers.tokenizers import tokenizer as made

TURNS = [{"role": "user", "content": "a a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c d"}]
REWARDS = {
    "lexical": lambda **how: LexicalReward(["a", "b c"], count=True, **how),
    "length": lambda **how: LengthReward(1, 2, **how),
    "black box": lambda **how: BlackBoxReward(lambda text: 10 * len(text) + text.count("a"), **how),
    "classifier": lambda **how: TextClassifierReward(classifier(made("wordpiece")), made("wordpiece"), 0, **how),
    "own tokens": lambda **how: TextClassifierReward(classifier(word_tokenizer()), word_tokenizer(), 0, **how),
    "fluency": lambda **how: FluencyReward(causal_lm(made("byte")), made("byte"), **how),
    "similarity": lambda **how: SentenceSimilarityReward(encoder(made("wordpiece")), made("wordpiece"), "b c", **how),
}


def chatting(make):
    pipe = make(length=16)
    pipe.tokenizer.chat_template = CHAT_TEMPLATE
    return pipe


def samples(pipe, prompt, reward=None, **settings):
    """What a reward is shown while the pipeline answers, and what comes out."""
    seen = []

    def watch(tokens):
        seen.append(tokens)
        return tokens.weights.sum() + torch.zeros(len(tokens))

    with guide(pipe, watch if reward is None else reward, GuidanceConfig(num_draws=2, estimator="straight_through")):
        output = pipe(prompt, generator=torch.Generator().manual_seed(0), **settings)
    return seen, output


@pytest.fixture(scope="module")
def chat():
    with pytest.warns(UserWarning, match="watch moved nothing"):
        return samples(chatting(tiny_pipeline), [TURNS, TURNS[-1:]], gen_length=4)


@pytest.mark.parametrize("make", REWARDS.values(), ids=REWARDS)
def test_guidance_and_score_judge_the_same(chat, make):
    sample = chat[0][0]
    assert sample.chat
    assert sample.prompts == [TURNS, TURNS[-1:]] * 2
    answers, texts = sample.answers(), sample.texts()
    assert sample.finished() == answers != texts
    for reward, judged in ((make(), answers), (make(answer_only=True), answers), (make(answer_only=False), texts)):
        value = sample.evaluate(reward)
        torch.testing.assert_close(value.detach(), reward.score(judged, sample.prompts), rtol=1e-4, atol=1e-4)
        if reward.differentiable:
            (grad,) = torch.autograd.grad(value.sum(), sample.weights, allow_unused=True)
            assert grad.isfinite().all()


@pytest.mark.parametrize("make", REWARDS.values(), ids=REWARDS)
def test_outside_a_chat_the_whole_text_is_judged_unless_told_otherwise(make):
    ids = torch.tensor([[3, 3, 4, 5, 1], [4, 3, 5, 1, 1]])
    given = torch.tensor([[True, True, False, False, False]] * 2)
    weights = torch.nn.functional.one_hot(ids[~given], 8).float().requires_grad_()
    sample = RelaxedTokens(ids, ~given, weights, tokenizer=word_tokenizer(), given=given)
    assert (sample.texts(), sample.answers()) == (["a a b c", "b a c"], ["b c", "c"])
    for reward, judged in ((make(), sample.texts()), (make(answer_only=True), sample.answers())):
        torch.testing.assert_close(sample.evaluate(reward).detach(), reward.score(judged), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_uniform])
def test_the_answer_of_a_sample_is_that_of_the_output(make):
    pipe, drawings = chatting(make), []
    output = pipe(
        [TURNS, TURNS[-1:]], gen_length=4, callback_on_step_end=lambda pipe, *_: drawings.append(pipe.drawing) or {}
    )
    canvas, ids = drawings[0].canvas, output.sequences
    weights = torch.nn.functional.one_hot(ids[canvas.free], 8).float()
    told = {"tokenizer": pipe.tokenizer, "given": canvas.given, "lead": canvas.lead, "ends": pipe.ends}
    sample = RelaxedTokens(ids, canvas.free, weights, **told, chat=True)
    mask = sample.attention_mask & canvas.attention_mask
    sample = RelaxedTokens(ids, canvas.free, weights, **told, chat=True, attention_mask=mask)
    assert sample.finished() == output.answers
    assert sample.finished(answer_only=False) == output.texts


def test_of_a_prompt_with_gaps_all_is_the_answer():
    with pytest.warns(UserWarning, match="watch moved nothing"):
        (sample, *_), output = samples(tiny_pipeline(), ["a [MASK] b", "a"])
    assert [text.split()[0] for text in sample.answers()[:1]] == ["a"]
    assert sample.answers()[0] == sample.texts()[0]
    assert sample.answers()[1] != sample.texts()[1]
    assert output.answers[0] == output.texts[0]


def test_words_of_the_question_are_no_words_of_the_answer():
    """The gradient is that of the answer too: a word that the question has is still to be written."""
    ids = torch.tensor([[3, 1, 4, 5, 1]])  # a [EOS] b c [EOS]
    given = torch.tensor([[True, True, False, False, False]])
    weights = torch.nn.functional.one_hot(ids[~given], 8).float().requires_grad_()
    told = {"tokenizer": word_tokenizer(), "given": given}
    for chat, moved in ((True, True), (False, False)):
        sample = RelaxedTokens(ids, ~given, weights, **told, chat=chat)
        value = sample.evaluate(LexicalReward("a"))
        (grad,) = torch.autograd.grad(value.sum(), weights)
        assert (float(value.detach()), bool(grad[0, 3] > 0)) == (0.0 if chat else 1.0, moved)


def test_a_preference_model_is_shown_the_conversation():
    byte = made("byte")
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    reward = TextPreferenceReward(reward_model(byte), byte, chat_template=template)
    with pytest.warns(UserWarning, match="watch moved nothing"):
        (sample, *_), output = samples(chatting(tiny_pipeline), [TURNS, TURNS[-1:]], gen_length=4)
    scores, told = reward.score(sample.answers(), sample.prompts), [TURNS, TURNS[-1:]]
    torch.testing.assert_close(sample.evaluate(reward).detach(), scores, rtol=1e-4, atol=1e-4)
    for answer, prompt, value in zip(output.answers, told, reward.score(output.answers, told), strict=True):
        text = "".join(f"{turn['role']}: {turn['content']}\n" for turn in prompt) + f"assistant: {answer}\n"
        logits = reward.model(input_ids=torch.tensor([byte(text, add_special_tokens=False).input_ids])).logits
        torch.testing.assert_close(value, logits[0, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reward.score("yes", TURNS), reward.score(["yes"], [TURNS]))


def test_llada2_judges_the_answer_where_it_applies_a_template():
    pipe = tiny_llada2()
    settings = {"gen_length": 4, "block_length": 4, "num_inference_steps": 2, "editing_threshold": None}
    for told, answer in (({"prompt": "a b"}, False), ({"prompt": "a b", "use_chat_template": False}, False)):
        with pytest.warns(UserWarning, match="watch moved nothing"):
            (sample, *_), _ = samples(pipe, told.pop("prompt"), **told, **settings)
        assert sample.chat == answer  # the tokenizer has no template
    pipe.tokenizer.chat_template = CHAT_TEMPLATE
    for told, prompts in (({"prompt": "c d"}, ["c d"]), ({"messages": TURNS}, [TURNS])):
        prompt = told.pop("prompt", None)
        with pytest.warns(UserWarning, match="watch moved nothing"):
            (sample, *_), _ = samples(pipe, prompt, **told, **settings)
        assert sample.chat
        assert sample.prompts == prompts * 2
        assert not any(text.startswith("c d") for text in sample.finished())
        assert all("c d" in text for text in sample.texts())


def test_diffusion_gemma_judges_the_answer():
    pipe = tiny_gemma(DiscreteDDIMScheduler())
    settings = {"gen_length": 4, "num_inference_steps": 2}
    for prompt, messages in (("c d", None), (None, TURNS)):
        with pytest.warns(UserWarning, match="watch moved nothing"):
            (sample, *_), _ = samples(pipe, prompt, messages=messages, **settings)
        assert sample.chat
        assert sample.prompts == [prompt or TURNS] * 2
        assert sample.finished() == sample.answers() != sample.texts()
