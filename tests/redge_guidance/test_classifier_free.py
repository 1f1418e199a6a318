"""Classifier-free guidance in every step, the later ones too: both calls of the model see what has been drawn."""

import itertools
from contextlib import nullcontext

import pytest
import torch

from redge_guidance import GuidanceConfig, guide
from redge_guidance.pipelines.schedules import classifier_free
from redge_guidance.pipelines.text.uniform import Classes
from tests.helpers.hosts import MASK, RESERVED, brightness, count_of_a, seeded
from tests.helpers.images import CODES, tiny_image_pipeline
from tests.helpers.settings import plain_config
from tests.helpers.tiny import tiny_pipeline
from tests.helpers.watching import outputs_of, watched


def heard(model):
    """The ids of every call of a model, in a list."""
    calls = []

    def hook(module, args, kwargs):
        calls.append((args[0] if args else kwargs["input_ids"]).clone())

    model.register_forward_pre_hook(hook, with_kwargs=True)
    return calls


def check_branches(inputs, samples, hide):
    """Two calls a step: the sample of that step, and what `hide` leaves of it."""
    assert len(inputs) == 2 * len(samples)
    for k, sample in enumerate(samples):
        assert torch.equal(inputs[2 * k], sample)
        assert torch.equal(inputs[2 * k + 1], hide(sample))
    assert not torch.equal(samples[0], samples[-1])


def test_text_hides_the_prompt_and_nothing_that_was_drawn():
    pipe = tiny_pipeline(unmasking_order="random")
    inputs, calls = heard(pipe.model), outputs_of(pipe)
    settings = {"num_inference_steps": 4, "guidance_scale": 2.5}
    with guide(pipe, count_of_a, plain_config(num_draws=1)):
        pipe(["a b", "c d"], generator=seeded(), **settings)
    samples = [arguments["sample"] for _, arguments, _ in calls]
    prompt = torch.arange(6).expand(2, -1) < 2
    check_branches(inputs, samples, lambda sample: sample.masked_fill(prompt, MASK))
    assert [(sample != MASK).sum(-1).tolist() for sample in samples] == [[2, 2], [3, 3], [4, 4], [5, 5]]


@torch.no_grad()
def test_text_logits_are_the_mixture_in_every_step():
    pipe = tiny_pipeline()
    settings = {"num_inference_steps": 4, "guidance_scale": 2.5}
    steps, _ = watched(pipe, lambda: pipe(["a b", "c d"], generator=seeded(), **settings))
    assert len(steps) == 4
    for step in steps:
        everywhere = torch.ones_like(step.ids)
        hidden = step.ids.clone()
        hidden[:, :2] = MASK
        c, u = (pipe.model(input_ids=ids, attention_mask=everywhere).logits for ids in (step.ids, hidden))
        expected = u + 2.5 * (c - u)
        expected[..., RESERVED] = -torch.inf
        torch.testing.assert_close(step.logits, expected, atol=1e-4, rtol=1e-4)


def test_images_see_what_was_drawn_in_both_branches():
    pipe = tiny_image_pipeline(unmasking_order="random")
    inputs, calls = heard(pipe.transformer), outputs_of(pipe)
    with guide(pipe, brightness, plain_config(num_draws=1)):
        pipe([0, 2], guidance_scale=3.0, num_inference_steps=4, generator=seeded(), output_type="latent")
    samples = [arguments["sample"] for _, arguments, _ in calls]
    check_branches(inputs, samples, lambda sample: sample)
    assert [int((sample != CODES).sum()) for sample in samples] == [0, 8, 16, 24]


@torch.no_grad()
def test_image_logits_are_the_mixture_in_every_step():
    pipe = tiny_image_pipeline()
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    steps, _ = watched(pipe, lambda: pipe([0, 2], generator=seeded(), **settings))
    assert len(steps) == 4
    for step in steps:
        c = pipe.transformer(step.ids, class_labels=torch.tensor([0, 2]))
        u = pipe.transformer(step.ids, class_labels=torch.tensor([3, 3]))  # there are three classes
        torch.testing.assert_close(step.logits, u + 3 * (c - u), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_images_of_a_text_are_guided_away_from_the_negative_prompt():
    pipe = tiny_image_pipeline(takes_text=True)
    settings = {"num_inference_steps": 3, "output_type": "latent", "generator": seeded()}
    steps, _ = watched(pipe, lambda: pipe(prompt=["a b"], negative_prompt="d", guidance_scale=3.0, **settings))
    assert len(steps) == 3
    for step in steps:
        both = []
        for text in ("a b", "d"):  # the logits of a call that only has this text
            one = {"prompt": [text], "tokens": step.ids, "num_inference_steps": 1, "output_type": "latent"}
            (alone,), _ = watched(pipe, lambda one=one: pipe(**one, generator=seeded()))
            both.append(alone.logits)
        c, u = both
        torch.testing.assert_close(step.logits, u + 3 * (c - u), atol=1e-4, rtol=1e-4)


# ---- tokens that a model forbids ----

LEVELS = [-torch.inf, -3.0, 0.0, 7.5]


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.5, 1e4, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_pair_of_logits_is_mixed_and_forbidden_ones_stay_so(scale, dtype):
    for c, u in itertools.product(LEVELS, LEVELS):
        found = classifier_free(torch.tensor([c], dtype=dtype), torch.tensor([u], dtype=dtype), scale)
        expected = -torch.inf if -torch.inf in (c, u) else u + scale * (c - u)
        assert found.dtype == dtype
        assert found.item() == pytest.approx(expected, rel=1e-2)


def forbidding(model):
    """Let the model forbid one token everywhere, and another one in every other call."""

    def hook(module, args, kwargs, output):
        logits = output if isinstance(output, torch.Tensor) else output.logits
        logits[..., 3] = -torch.inf
        if next(count) % 2:
            logits[..., 4] = -torch.inf
        return output

    count = itertools.count()
    model.register_forward_hook(hook, with_kwargs=True)


@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize("guided", [False, True])
def test_pipelines_draw_with_tokens_that_their_model_forbids(kind, guided):
    if kind == "text":
        pipe = tiny_pipeline()
        model, run = pipe.model, lambda: pipe(["a b"] * 8, guidance_scale=2.0, generator=seeded()).sequences[:, 2:]
    else:
        pipe = tiny_image_pipeline()
        settings = {"guidance_scale": 2.0, "generator": seeded(), "output_type": "latent", "num_images_per_prompt": 8}
        model, run = pipe.transformer, lambda: pipe([0], **settings).tokens
    forbidding(model)
    context = guide(pipe, count_of_a if kind == "text" else brightness, GuidanceConfig(num_draws=1))
    with context if guided else nullcontext():
        tokens = run()
    assert not ((tokens == 3) | (tokens == 4)).any()


def test_classes_of_uniform_texts_keep_what_is_forbidden():
    never = -torch.inf
    both = {0: torch.tensor([never, 1.0, 2.0, never]), 3: torch.tensor([0.0, never, 1.0, never])}
    classes = Classes(torch.tensor([0]), torch.tensor([3]), 2.0)
    assert classes.logits(lambda inputs: both[int(inputs["cond"])]).tolist() == [never, never, 3.0, never]
