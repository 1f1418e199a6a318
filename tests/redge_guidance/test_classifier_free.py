"""Classifier-free guidance in every step, the later ones too: both calls of the model see what has been drawn."""

import torch

from redge_guidance import GuidanceConfig, guide
from tests.helpers.hosts import MASK, RESERVED, brightness, count_of_a, seeded
from tests.helpers.images import CODES, tiny_image_pipeline
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
    with guide(pipe, count_of_a, GuidanceConfig(num_draws=1)):
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
    with guide(pipe, brightness, GuidanceConfig(num_draws=1)):
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
