"""What people have is taken for a reward as it is, told apart by its signature, and refused in words."""

import copy
import functools

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, BertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification
from transformers import pipeline as transformers_pipeline

from redge_guidance import GuidanceConfig, RelaxedTokens, guide
from redge_guidance.accepting import as_reward
from redge_guidance.guidance import Guidance
from redge_guidance.records import columns
from redge_guidance.reward import Reward
from redge_guidance.rewards import (
    BlackBoxReward,
    CompletionsReward,
    LexicalReward,
    PairReward,
    SentenceSimilarityReward,
    TextClassifierReward,
)
from tests.helpers.reward_models import classifier, encoder, relaxed
from tests.helpers.tiny import word_tokenizer
from tests.helpers.tokenizers import tokenizer as made

QUESTIONS, ANSWERS = ["who is the doctor", "tom bought books"], ["the old doctor", "tom is happy in the garden"]


def test_functions_of_strings_are_told_by_names_and_types():
    def by_type(x: str, lang="en"):
        return len(x)

    def several(x: list[str]):
        return [len(one) for one in x]

    def about(prompt, text):
        return 10 * len(prompt) + len(text)

    def turned(texts, prompts):
        return [10 * len(p) + len(t) for t, p in zip(texts, prompts, strict=True)]

    def by_keyword(answer, *, question: str):
        return 10 * len(question) + len(answer)

    alone = [
        lambda text: len(text),
        lambda texts: [len(t) for t in texts],
        by_type,
        several,
        lambda completion: len(completion),
    ]
    for function in alone:
        reward = as_reward(function)
        assert reward.score(["a", "bcd"]).tolist() == [1.0, 3.0]
    for function in (about, turned, by_keyword):
        assert as_reward(function).score(["a", "bcd"], ["xy", "z"]).tolist() == [21.0, 13.0]
    assert as_reward(lambda answers: [len(a) for a in answers]).answer_only is True
    assert as_reward(lambda text: len(text)).answer_only is None


def test_functions_of_samples_stay_what_they_are():
    for function in (
        lambda tokens: tokens.weights.sum(),
        lambda x: x,
        lambda pixels: pixels,
        lambda sample, prompts: sample,
        torch.nn.Linear(2, 2),
    ):
        assert as_reward(function) is function

    def typed(text: RelaxedTokens):
        return text.weights.sum(-1)

    assert as_reward(typed) is typed


def test_a_function_of_samples_may_see_prompts(pipe):
    seen = []

    def reward(tokens, prompts):
        seen.append(list(prompts))
        return tokens.weights_of([3])[..., 0].sum(-1) + torch.tensor([float(len(p)) for p in prompts])

    with guide(pipe, reward, GuidanceConfig(num_draws=2)):
        pipe(["a", "b c"])
    assert seen[0] == ["a", "b c"] * 2


def test_two_parameters_without_names_are_tried_and_told():
    with pytest.warns(UserWarning, match=r"whose parameters are a and b, is taken for .* f\(prompt, text\)"):
        reward = as_reward(lambda a, b: 10 * len(a) + len(b))
    assert reward.score("bcd", "z").tolist() == [13.0]
    with pytest.warns(UserWarning, match=r"f\(text, prompt\)"):
        reward = as_reward(lambda x, prompt: 10 * len(prompt) + len(x.upper()))
    assert reward.score("bcd", "z").tolist() == [13.0]


@pytest.mark.parametrize("make", [lambda f: f, lambda f: 2 * LexicalReward("b") + f], ids=["alone", "in a sum"])
def test_what_fails_as_a_function_of_samples_is_taken_for_one_of_strings_once(pipe, make):
    asked = []

    def vague(x):
        asked.append(x)
        return float(x.count("a"))

    settings = GuidanceConfig(scale=30.0, num_draws=16)
    handle = guide(pipe, make(vague), settings)
    with pytest.warns(UserWarning, match=r"`reward` vague, since it cannot be shown .* f\(text\)") as told:
        texts, _ = (pipe([""] * 8, generator=torch.Generator().manual_seed(0)).texts for _ in range(2))
    handle.remove()
    assert sum("vague, since" in str(one.message) for one in told) == 1
    assert len(handle.trace) > 0
    with guide(pipe, make(BlackBoxReward(lambda text: float(text.count("a")))), settings):
        assert pipe([""] * 8, generator=torch.Generator().manual_seed(0)).texts == texts


@pytest.mark.parametrize(
    "function", [len, lambda x: len(x), lambda *all: len(all[0]), lambda prompt: len(prompt), str.__len__]
)
def test_what_makes_no_tensor_of_samples_is_taken_for_one_of_strings(pipe, function):
    with (
        pytest.warns(UserWarning, match=r"f\(text\)|moved nothing") as told,
        guide(pipe, function, GuidanceConfig(num_draws=4)) as handle,
    ):
        pipe(["a"], num_inference_steps=1)
    assert "is taken for a function of strings, f(text)" in str(told[0].message)
    assert handle.trace[0].reward > 3  # characters, not texts
    with guide(pipe, lambda tokens: [0.0] * tokens.draws), pytest.raises(ValueError, match="tensor, got list"):
        pipe(["a"])


def test_an_object_with_a_score_judges_texts_too(pipe):
    class Judge:
        def score(self, samples, prompts):
            return torch.tensor([float(text.count("a")) for text in samples])

    with guide(pipe, Judge(), GuidanceConfig(scale=30.0, num_draws=16)) as handle:
        pipe([""] * 4)
    assert len(handle.trace) > 0
    assert (Judge() + LexicalReward("b")).score(["a a b"]).tolist() == [3.0]


# ---- TRL ----


def right(prompts, completions, solution, **kwargs):
    assert len(prompts) == len(completions) == len(solution)
    return [None if s is None else float(s in c) for c, s in zip(completions, solution, strict=True)]


def test_functions_as_in_trl_and_columns(pipe):
    reward = as_reward(right)
    assert isinstance(reward, CompletionsReward)
    assert reward.name == "right"
    with columns(solution=["a", "b", None]):
        assert reward.score(["a b", "c", "a"], ["x", "x", "x"], 2).tolist() == [1.0, 0.0, 0.0]
        with pytest.raises(ValueError, match="`columns` must have a value for each prompt, got 3 values and 2 samples"):
            reward.score(["a", "b"], ["x", "y"])
    with pytest.raises(ValueError, match=r"`right` takes `solution`, which is not known .*columns\(solution=\[...\]\)"):
        reward.score("a", "x")
    with pytest.raises(ValueError, match="`right` takes prompts, and there are none"):
        reward.score("a")
    with columns(solution=["d", "e"]), guide(pipe, right, GuidanceConfig(scale=60.0, num_draws=64)):
        answers = pipe(["a"] * 2, gen_length=4, generator=torch.Generator().manual_seed(0)).answers
    assert "d" in answers[0]
    assert "e" in answers[1]


def test_halves_of_signs_are_no_text():
    reward = as_reward(lambda text: len(text))
    assert reward.score(["a 😀 ü"]).tolist() == [5.0]
    for samples, prompts, name in (("a\ud800", None, "samples"), (["a"], ["\udfff"], "prompts")):
        with pytest.raises(ValueError, match=rf"`{name}` must be text, got half of a sign"):
            reward.score(samples, prompts)


def test_columns_may_be_arrays():
    reward = as_reward(lambda completions, x, **kwargs: [float(one) for one in x])
    with columns(x=np.array([1, 2])):
        assert reward.score(["a", "b"]).tolist() == [1.0, 2.0]


def test_columns_are_lists_of_one_length():
    for wrong, error in (
        ({"a": "xy"}, "`a` must be a list"),
        ({"a": {1, 2}}, "`a` must be a list"),
        ({"a": [1], "b": [1, 2]}, "as many values each"),
    ):
        with pytest.raises(ValueError, match=error), columns(wrong):
            pass


def test_what_a_trainer_alone_has_does_not_break_a_function(pipe):
    told = []

    def state(completions, trainer_state, log_extra, log_metric, **kwargs):
        log_extra("seen", completions)
        log_metric("step", trainer_state.global_step)
        return [float(trainer_state.global_step) + len(one) for one in completions]

    def overlong(completion_ids, **kwargs):  # as TRL's `get_soft_overlong_punishment`
        told.append((completion_ids, kwargs["completions"]))
        return [-float(len(ids)) for ids in completion_ids]

    def of_all(**kwargs):
        return [float(len(one)) for one in kwargs["completions"]]

    def of_prompts(prompts, **kwargs):
        return of_all(**kwargs)

    for function in (state, of_all, of_prompts):
        assert as_reward(function).score(["a", "b c"], ["x", "y"]).tolist() == [1.0, 3.0]
    reward = as_reward(overlong)
    with pytest.raises(ValueError, match=r"no tokenizer is known .* `CompletionsReward\(function, tokenizer=...\)`"):
        reward.score(["a"])
    with guide(pipe, reward, GuidanceConfig(num_draws=2, every=1)):
        pipe(["a"])
    assert reward.score(["a", "a b c"]).tolist() == [-1.0, -3.0]
    assert [len(ids) for ids in told[0][0]] == [len(text.split()) for text in told[0][1]]
    assert CompletionsReward(overlong, tokenizer=word_tokenizer()).score("a b", "x").tolist() == [-2.0]


def test_a_function_may_change_the_lists_that_it_is_told():
    def greedy(texts, prompts):
        return [float(len(texts.pop(0)) + len(prompts.pop(0))) for _ in range(2)]

    def trl(prompts, completions):
        return greedy(completions, prompts)

    prompts = ["x", "yy"]
    for function in (greedy, trl):
        assert as_reward(function).score(["a", "bc"], prompts).tolist() == [2.0, 4.0]
    assert prompts == ["x", "yy"]


def test_chats_in_the_way_of_trl():
    told = []

    def reward(prompts, completions, **kwargs):
        told.append((prompts, completions))
        return torch.tensor([float(len(c[0]["content"])) for c in completions])

    chat = [{"role": "user", "content": "a"}]
    assert as_reward(reward).score(["abc"], [chat]).tolist() == [3.0]
    assert told == [([chat], [[{"role": "assistant", "content": "abc"}]])]


def test_what_a_function_returns_is_checked():
    wrong = [([1.0], "must return 2 numbers, got 1"), (["x", 1], "finite number")]
    wrong += [(one, "list of numbers") for one in (3, {1.0, 2.0}, {0: 1.0, 1: 2.0}, b"ab", "12")]
    for result, error in wrong:
        with pytest.raises(ValueError, match=error):
            CompletionsReward(lambda completions, result=result, **kwargs: result).score(["a", "b"])
    with pytest.raises(RuntimeError, match="raised ZeroDivisionError: .*; on 1 completions, the first 'a'"):
        CompletionsReward(lambda completions, **kwargs: [1 / 0]).score(["a"])


# ---- models ----


def trained_names(folder, model, words):
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)
    return str(folder)


def cross_encoder(folder, kind="bert"):
    from sentence_transformers import CrossEncoder

    words = copy.deepcopy(made("wordpiece"))
    between, after = ("[SEP]", ":1") if kind == "bert" else ("[SEP] [SEP]", "")
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A {between} $B{after} [SEP]{after}",
        special_tokens=[(one, words.convert_tokens_to_ids(one)) for one in ("[CLS]", "[SEP]")],
    )
    if kind == "bert":
        model = classifier(words, num_labels=1)
    else:
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        config = RobertaConfig(
            vocab_size=len(words), num_labels=1, pad_token_id=words.pad_token_id, type_vocab_size=1, **sizes
        )
        model = RobertaForSequenceClassification(config).eval()
    return CrossEncoder(trained_names(folder, model, words), device="cpu")


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_cross_encoder_is_worth_what_it_predicts(kind, tmp_path):
    model = cross_encoder(tmp_path, kind)
    reward = as_reward(model)
    assert isinstance(reward, PairReward)
    expected = torch.tensor(model.predict(list(zip(QUESTIONS, ANSWERS, strict=True)), show_progress_bar=False))
    torch.testing.assert_close(reward.score(ANSWERS, QUESTIONS), expected, rtol=1e-4, atol=1e-5)
    sample = relaxed(made("byte"), [" the old doctor", " tom is happy"], QUESTIONS)
    value = sample.evaluate(reward)
    torch.testing.assert_close(value.detach(), reward.score(sample.answers(), QUESTIONS), rtol=1e-4, atol=1e-5)
    (grad,) = torch.autograd.grad(value.sum(), sample.weights)
    assert grad.abs().sum() > 0
    with pytest.raises(ValueError, match="`prompt` is None and there are no prompts"):
        reward.score(ANSWERS)


def test_a_cross_encoder_that_cannot_be_read_is_asked_for_values(tmp_path):
    model = cross_encoder(tmp_path)
    model.prompts, model.default_prompt_name = {"query": "the "}, "query"
    with pytest.warns(UserWarning, match="`reward` CrossEncoder is asked for values alone"):
        reward = as_reward(model)
    expected = torch.tensor(model.predict(list(zip(QUESTIONS, ANSWERS, strict=True)), show_progress_bar=False))
    torch.testing.assert_close(reward.score(ANSWERS, QUESTIONS), expected, rtol=1e-4, atol=1e-5)


def sentence_transformer(folder, pooling="mean"):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    words = made("wordpiece")
    transformer = Transformer(trained_names(folder, encoder(words), words))
    return SentenceTransformer(modules=[transformer, Pooling(16, pooling)], device="cpu")


def test_a_sentence_transformer_is_worth_its_similarity(tmp_path):
    model = sentence_transformer(tmp_path)
    embedded = [model.encode(texts, convert_to_tensor=True) for texts in (QUESTIONS, ANSWERS)]
    reward = as_reward(model)
    assert isinstance(reward, SentenceSimilarityReward)
    expected = model.similarity_pairwise(*embedded)
    torch.testing.assert_close(reward.score(ANSWERS, QUESTIONS), expected, rtol=1e-4, atol=1e-5)
    target = SentenceSimilarityReward(model, targets=QUESTIONS[0])
    expected = model.similarity(embedded[1], embedded[0][:1])[:, 0]
    torch.testing.assert_close(target.score(ANSWERS), expected, rtol=1e-4, atol=1e-5)
    sample = relaxed(made("byte"), [" the old doctor", " tom is happy"], QUESTIONS)
    value = sample.evaluate(reward)
    torch.testing.assert_close(value.detach(), reward.score(sample.answers(), QUESTIONS), rtol=1e-4, atol=1e-5)
    (grad,) = torch.autograd.grad(value.sum(), sample.weights)
    assert grad.abs().sum() > 0
    model.similarity_fn_name = "dot"
    with pytest.warns(UserWarning, match="`reward` SentenceTransformer is asked for values alone"):
        by_values = as_reward(model)
    torch.testing.assert_close(by_values.score(ANSWERS, QUESTIONS), (embedded[0] * embedded[1]).sum(-1))


def test_a_pipeline_of_transformers_names_its_label():
    words = made("wordpiece")
    one = transformers_pipeline("text-classification", model=classifier(words, num_labels=1), tokenizer=words)
    reward = as_reward(one)
    logits = one.model(**words(ANSWERS, return_tensors="pt", padding=True)).logits[:, 0]
    torch.testing.assert_close(reward.score(ANSWERS), logits, rtol=1e-4, atol=1e-4)
    two = transformers_pipeline("text-classification", model=classifier(words), tokenizer=words)
    with pytest.raises(ValueError, match="`label` must name one of LABEL_0, LABEL_1"):
        as_reward(two)
    named = TextClassifierReward.from_pipeline(two, "LABEL_1")
    scores = [next(row["score"] for row in rows if row["label"] == "LABEL_1") for rows in two(ANSWERS, top_k=None)]
    torch.testing.assert_close(named.score(ANSWERS), torch.tensor(scores).log(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ("positive", "must be a callable .* got str 'positive'; load a model by the `from_pretrained`"),
        ([len, len], "got list; add rewards up"),
        (3, "must be a callable from RelaxedTokens, .* got int. Accepted are"),
        (LexicalReward, "got the class LexicalReward; make one of it"),
        (lambda a, b, c: 0, r"got a function of \(a, b, c\). Accepted are"),
        (lambda: 0, "must take what it is to judge, got one without parameters"),
        (lambda text, threshold: 0, r"got a function of \(text, threshold\)"),
    ],
)
def test_what_is_no_reward_is_told_what_is(wrong, error):
    with pytest.raises(ValueError, match=error):
        as_reward(wrong)
    with pytest.raises(ValueError, match=error):
        Guidance(wrong)


def test_a_bare_model_and_an_async_function_are_told_what_to_do():
    async def later(text):
        return 0.0

    for function in (later, functools.partial(later)):
        with pytest.raises(ValueError, match="must be a plain function, got an async one"):
            as_reward(function)
    model = classifier(word_tokenizer())
    assert isinstance(model, BertForSequenceClassification)
    with pytest.raises(ValueError, match=r"got BertForSequenceClassification alone; .* TextClassifierReward\("):
        as_reward(model)


def test_a_reward_is_itself():
    class Own(Reward):
        def __call__(self, sample):
            return sample.weights.sum(-1)

    for reward in (Own(), LexicalReward("a"), 2 * LexicalReward("a")):
        assert as_reward(reward) is reward
