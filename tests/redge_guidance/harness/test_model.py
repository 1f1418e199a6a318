"""What the model `redge` answers to requests, against the pipelines themselves."""

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from redge_guidance import GuidanceConfig, guide
from redge_guidance.harness.model import RedgeLM
from redge_guidance.harness.texts import Words, generator_of
from tests.helpers.settings import plain_config
from tests.helpers.tiny import CHAT_TEMPLATE, tiny_pipeline, tiny_reward, tiny_uniform
from tests.pipelines.test_bound import estimates

CONTEXTS = ["a b c", "d", "", "e e a b", "c"]
MAKE = pytest.mark.parametrize("make", [tiny_pipeline, tiny_uniform])


def requests(*arguments, kind="generate_until"):
    return [Instance(kind, {}, one, 0, ("task", k, 1)) for k, one in enumerate(arguments)]


def texts_of(lm, order=range(5), **asked):
    asked = {"until": [], "max_gen_toks": 4, "do_sample": True, "temperature": 1.0} | asked
    every = requests(*((context, asked) for context in CONTEXTS))
    found = lm.generate_until([every[k] for k in order], disable_tqdm=True)
    return dict(zip(order, found, strict=True))


@MAKE
@pytest.mark.parametrize("reward", [None, tiny_reward])
def test_a_text_depends_on_its_request_alone(make, reward):
    settings = {"pipe": make(length=12), "guided_by": reward and reward(), "config": GuidanceConfig(scale=4.0)}
    whole = texts_of(RedgeLM(**settings, batch_size=5))
    assert texts_of(RedgeLM(**settings, batch_size=2), [3, 1, 4, 0, 2]) == whole
    assert texts_of(RedgeLM(**settings, batch_size=1), [2]) == {2: whole[2]}
    assert texts_of(RedgeLM(**settings, seed=1)) != whole
    assert all("EOS" not in text for text in whole.values())


def test_texts_are_the_pipelines_under_the_reward():
    pipe, reward, config = tiny_pipeline(length=12), tiny_reward(), plain_config(scale=4.0)
    lm = RedgeLM(pipe=pipe, guided_by=reward, config=config, seed=5)
    found = texts_of(lm)
    generators = [generator_of(5, "cpu", "task", k, 0, CONTEXTS[k], 0) for k in range(5)]
    with guide(pipe, reward, config, seed=5):
        expected = pipe(CONTEXTS, gen_length=4, temperature=1.0, generator=generators).texts
    for k, context in enumerate(CONTEXTS):
        assert " ".join(f"{context} {found[k]}".split()) == expected[k]
    plain = texts_of(RedgeLM(pipe=pipe, seed=5))
    assert reward.score(list(found.values())).mean() > reward.score([text or "b" for text in plain.values()]).mean()


def test_repeats_differ_and_texts_are_cut():
    lm = RedgeLM(pipe=tiny_pipeline(length=12))
    (one,) = requests(("a", {"until": ["b", " c"], "max_gen_toks": 8, "do_sample": True, "temperature": 2.0}))
    found = lm.generate_until([one] * 8, disable_tqdm=True)
    assert len(set(found)) > 1
    assert not any("b" in text or " c" in text for text in found)
    whole = RedgeLM(pipe=tiny_pipeline(length=12), escape_until=True).generate_until([one] * 8, disable_tqdm=True)
    assert [text.partition("b")[0].partition(" c")[0] for text in whole] == found


def test_settings_reach_the_pipeline(monkeypatch):
    pipe, calls = tiny_pipeline(length=12), []
    monkeypatch.setattr(type(pipe), "__call__", _noting(type(pipe).__call__, calls))
    lm = RedgeLM(pipe=pipe, gen_length=6, steps=3, block_length=2, cfg=0.5, remasking="low_confidence", alg_temp=0.5)
    texts_of(lm)
    wanted = {"gen_length": 6, "num_inference_steps": 3, "block_length": 2, "guidance_scale": 1.5, "temperature": 1.0}
    assert calls[0] == wanted
    assert pipe.scheduler.config.unmasking_order == "confidence"
    assert pipe.scheduler.config.choice_temperature == 0.5
    texts_of(lm, do_sample=False, temperature=0.0, steps=6, cfg_scale=0.0)
    assert calls[-1] == wanted | {"num_inference_steps": 6, "guidance_scale": 1.0, "temperature": 0.0}
    with pytest.warns(UserWarning, match="`num_beams`, which a task asks for"):
        texts_of(lm, num_beams=1)
    with pytest.raises(ValueError, match="`block_length` is no setting of a call of UniformTextPipeline"):
        RedgeLM(pipe=tiny_uniform(), block_length=2)


def _noting(original, calls):
    def call(self, prompts, generator=None, **settings):
        calls.append(settings)
        return original(self, prompts, generator=generator, **settings)

    call.__signature__ = __import__("inspect").signature(original)
    return call


@MAKE
def test_log_likelihoods_are_the_bound(make):
    pipe = make(length=12)
    lm = RedgeLM(pipe=pipe, mc_num=6, batch_size=3)
    pairs = [("a b", " c d"), ("e", " a"), ("", "b b"), ("a c ", "d e d")]
    (values, _) = zip(*lm.loglikelihood(requests(*pairs, kind="loglikelihood"), disable_tqdm=True), strict=True)
    ids = [[lm.words.ids(text) for text in pair] for pair in pairs]
    generators = [generator_of(0, "cpu", "task", k, 0, one, 0) for k, one in enumerate(ids)]
    fronts, texts = zip(*pairs, strict=True)
    expected = pipe.nll(list(texts), 6, prompts=list(fronts), generator=generators)
    torch.testing.assert_close(-torch.tensor(values), expected)
    alone = RedgeLM(pipe=pipe, mc_num=6, batch_size=1).loglikelihood(
        requests(*pairs, kind="loglikelihood")[3:], disable_tqdm=True
    )
    assert alone[0][0] == pytest.approx(values[3], abs=1e-4)


@pytest.mark.parametrize("cfg", [0.0, 1.5])
def test_log_likelihood_against_all_corruptions(cfg):
    pipe = tiny_pipeline()
    lm = RedgeLM(pipe=pipe, num_corruptions=4000, batch_size=500, cfg=cfg, is_check_greedy=True)
    ((value, _),) = lm.loglikelihood(requests(("d e", " a c b"), kind="loglikelihood"), disable_tqdm=True)
    weights, values = estimates(pipe, [3, 5, 4], [6, 7], cfg + 1)
    exact = (weights * values).sum()
    assert abs(value + exact) < 4 * ((weights * (values - exact).square()).sum() / 4000).sqrt()


def test_what_is_greedy():
    pipe = tiny_pipeline(length=12, unmasking_order="confidence")
    lm = RedgeLM(pipe=pipe, num_corruptions=2)
    ids = pipe("a b", gen_length=3, temperature=0).sequences[0, 2:]
    greedy = " " + " ".join(pipe.tokenizer.convert_ids_to_tokens(ids.tolist()))
    pairs = [("a b", greedy), ("a b", greedy.replace(" d", " e").replace(" a", " b") + " a"), ("", "c")]
    found = lm.loglikelihood(requests(*pairs, kind="loglikelihood"), disable_tqdm=True)
    assert [one[1] for one in found[:2]] == [True, False]
    unchecked = RedgeLM(pipe=pipe, num_corruptions=2, is_check_greedy=False)
    with pytest.warns(UserWarning, match="no continuation counts as the greedy one"):
        found = unchecked.loglikelihood(requests(pairs[0], kind="loglikelihood"), disable_tqdm=True)
    assert not found[0][1]


def test_rewards_have_no_part_in_log_likelihoods():
    lm = RedgeLM(pipe=tiny_pipeline(), guided_by=tiny_reward(), num_corruptions=2)
    with pytest.warns(UserWarning, match="the reward has no part"):
        lm.loglikelihood_rolling(requests(("a b",), kind="loglikelihood_rolling"), disable_tqdm=True)


@pytest.mark.parametrize("longest", [4, 5, 24])
@pytest.mark.parametrize("size", [1, 3, 4, 9, 17])
def test_windows_are_the_harness_s(longest, size):
    words = Words(tiny_pipeline(), longest)
    ids = list(range(10, 10 + size))
    theirs = map(make_disjoint_window, get_rolling_token_windows(ids, 3, longest - 1, 1))
    assert list(words.windows([3], ids)) == [(list(a), list(b)) for a, b in theirs]
    parts = list(words.windows([], ids))
    assert [i for _, part in parts for i in part] == ids
    assert all(len(before) + len(part) <= longest for before, part in parts)


def test_long_texts():
    pipe = tiny_pipeline()  # of 24 positions
    lm = RedgeLM(pipe=pipe, num_corruptions=4, max_length=8)
    (value,) = lm.loglikelihood_rolling(
        requests(("a b c d e a b c d e",), kind="loglikelihood_rolling"), disable_tqdm=True
    )
    assert value < 0
    with pytest.warns(UserWarning, match="contexts are too long and lose their beginning"):
        lm.generate_until(requests(("a b c d e a b c d e", {"max_gen_toks": 4})), disable_tqdm=True)
    assert lm.words.context("a b c d e a b c d e", 4, False).ids == lm.words.ids("b c d e")
    assert lm.words.context("a b c", 4, False).ids == lm.words.ids("a b c")
    with pytest.raises(ValueError, match="`gen_length` must leave room for a context in the 8 tokens"):
        lm.generate_until(requests(("a", {"max_gen_toks": 8})), disable_tqdm=True)
    with pytest.raises(ValueError, match="the model's mask token"):
        lm.generate_until(requests(("a [MASK]", {})), disable_tqdm=True)
    with pytest.raises(ValueError, match="`max_length` must be <= 24"):
        RedgeLM(pipe=pipe, max_length=100)


def test_chats():
    pipe = tiny_pipeline(length=12)
    lm = RedgeLM(pipe=pipe)
    with pytest.raises(ValueError, match="the tokenizer has none"):
        lm.apply_chat_template([{"role": "user", "content": "a b"}])
    pipe.tokenizer.chat_template = CHAT_TEMPLATE
    context = lm.apply_chat_template([{"role": "user", "content": "c d"}])
    assert context == "c d [EOS] a"
    (found,) = lm.generate_until(requests((context, {"max_gen_toks": 4, "until": []})), disable_tqdm=True)
    output = pipe("c d", gen_length=4, use_chat_template=True, temperature=0, generator=_generator(context))
    assert output.texts[0].split() == ["c", "d", "a", *found.split()]
    assert lm.chat_template(True) == CHAT_TEMPLATE


def _generator(context):
    return [generator_of(0, "cpu", "task", 0, 0, context, 0)]


def test_memory_that_does_not_suffice():
    pipe = tiny_pipeline(length=12)
    lm, whole = RedgeLM(pipe=pipe, batch_size="auto"), texts_of(RedgeLM(pipe=pipe))
    draw, sizes = lm._draw, []

    def short(prompts, *more):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("too much")
        return draw(prompts, *more)

    lm._draw = short
    with pytest.warns(UserWarning, match="out of memory; the batch size is"):
        assert texts_of(lm) == whole
    assert sizes == [5, 3, 2, 2, 1]
