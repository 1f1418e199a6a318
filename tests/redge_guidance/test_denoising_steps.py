"""Every field of every step of every host, against tables that were worked out by hand.

The signs of the pictures are those of `watching.picture`. Prompts are of words that are one token each, a canvas is six
tokens, a block or a canvas of diffusers' pipelines four.
"""

import pytest
import torch
from diffusers import (
    AmusedImg2ImgPipeline,
    AmusedInpaintPipeline,
    BlockRefinementScheduler,
    DiscreteDDIMScheduler,
    EntropyBoundScheduler,
)

from tests.helpers.hosts import EOS, MASK, PAD, RESERVED, seeded
from tests.helpers.images import CODES, tiny_amused, tiny_image_pipeline
from tests.helpers.tiny import tiny_gemma, tiny_llada2, tiny_pipeline, tiny_uniform
from tests.helpers.watching import picture, watched

A, B, C, D = 3, 4, 5, 6
PROMPTS = ["a b", "", "c [MASK] [MASK] d"]


def steps_of(pipe, *args, **settings):
    generator = seeded()
    steps, _ = watched(pipe, lambda: pipe(*args, generator=generator, **settings))
    assert all(step.generator is generator for step in steps)
    return steps


def check(steps, progress, pictures):
    assert [step.progress for step in steps] == pytest.approx(progress)
    assert [picture(step) for step in steps] == pictures


def every(steps, name, value):
    found = [getattr(step, name) for step in steps]
    assert all(one == value for one in found), found


# ---- our own pipelines of texts ----


def test_masked_text_with_prompts_holes_and_padding():
    pipe = tiny_pipeline(unmasking_order="left_to_right")
    steps = steps_of(pipe, PROMPTS, gen_length=4, num_inference_steps=2, temperature=0.7)
    check(steps, [0, 0.5], [["GG????", "--????", "G??..."], ["GG..??", "--..??", "G.?..."]])
    every(steps, "prompts", PROMPTS)
    every(steps, "temperature", 0.7)
    every(steps, "tokenizer", pipe.tokenizer)
    every(steps, "images", None)
    assert steps[0].ids.tolist() == [
        [A, B, MASK, MASK, MASK, MASK],
        [PAD, PAD, MASK, MASK, MASK, MASK],
        [C, MASK, MASK, D, EOS, EOS],
    ]
    assert (steps[1].ids[steps[1].free] == MASK).all()
    assert (steps[1].logits[..., RESERVED] == -torch.inf).all()  # forbidden by the pipeline itself


def test_masked_text_in_blocks():
    pipe = tiny_pipeline(unmasking_order="left_to_right")
    steps = steps_of(pipe, PROMPTS, gen_length=4, block_length=2, num_inference_steps=4)
    first = [["GG??~~", "--??~~", "G??..."], ["GG.?~~", "--.?~~", "G.?..."]]
    second = [["GG..??", "--..??", "G....."], ["GG...?", "--...?", "G....."]]
    check(steps, [0, 0.25, 0.5, 0.75], first + second)
    every(steps, "temperature", 1.0)
    assert steps[2].ids[:, :2].tolist() == [[A, B], [PAD, PAD], [C, steps[2].ids[2, 1]]]


@pytest.mark.parametrize(("length", "steps"), [(2, 3), (3, None)])
def test_progress_is_the_share_of_steps_where_blocks_have_different_numbers_of_them(length, steps):
    """One step and two; one for each of three tokens and for the last one."""
    pipe = tiny_pipeline(unmasking_order="left_to_right")
    found = steps_of(pipe, ["a b"], block_length=length, num_inference_steps=steps)
    total = 3 if steps else 4
    assert [step.progress for step in found] == pytest.approx([i / total for i in range(total)])


def test_masked_text_greedy_has_temperature_one():
    every(steps_of(tiny_pipeline(), ["a b"], temperature=0.0, num_inference_steps=2), "temperature", 1.0)


def test_uniform_text_with_a_corrector():
    pipe = tiny_uniform(corrector_steps=1)
    prompts = ["a b", "", "c [MASK] d"]
    steps = steps_of(pipe, prompts, gen_length=4, num_inference_steps=2, temperature=0.7)
    check(steps, [0, 0, 0.5], [["GG????", "--????", "G?...."]] * 3)
    every(steps, "temperature", 1.0)  # the logits have been tempered
    every(steps, "prompts", prompts)
    every(steps, "tokenizer", pipe.tokenizer)
    every(steps, "images", None)
    for step in steps:
        assert step.ids[:2, :2].tolist() == [[A, B], [PAD, PAD]]
        assert step.ids[2, [0, 2, 3, 4, 5]].tolist() == [C, D, EOS, EOS, EOS]
        assert (step.logits[step.free][:, RESERVED] == -torch.inf).all()


# ---- LLaDA2: prompts of two tokens and of one, blocks of four tokens, six new tokens: two blocks ----

LLADA2 = {"gen_length": 6, "block_length": 4, "num_inference_steps": 2, "use_chat_template": False}
LLADA2 |= {"threshold": 2.0, "eos_early_stop": False, "output_type": "seq", "temperature": 0.8}


def llada2_steps(**settings):
    pipe = tiny_llada2()
    pipe.model.decoder.bias.data[RESERVED] = -100.0  # LLaDA2Pipeline itself would draw masks
    steps = steps_of(pipe, ["a b", "c"], **LLADA2 | settings)
    every(steps, "prompts", ["a b", "c"])
    every(steps, "reserved", RESERVED)
    every(steps, "images", None)
    assert all(step.ids[:, :2].tolist() == [[A, B], [PAD, C]] for step in steps)
    return steps


def test_llada2_without_editing():
    """Two tokens a step by the schedule: the two of the first block at once, and a look at them, which ends it."""
    steps = llada2_steps(editing_threshold=None)
    assert [step.progress for step in steps] == [0, 0.25, 0.5, 0.75]
    assert [step.free.sum(-1).tolist() for step in steps] == [[2, 2], [0, 0], [4, 4], [2, 2]]
    assert [picture(step) for step in steps[:3]] == [["GG??", "-G??"], ["GG..", "-G.."], ["GG..????", "-G..????"]]
    assert all(torch.equal(step.free, step.ids == MASK) for step in steps)
    assert steps[3].given.tolist() == [[True] * 2 + [False] * 6] * 2
    every(steps, "temperature", 0.8)


def test_llada2_with_editing_has_the_whole_block_free():
    steps = llada2_steps(editing_threshold=1.0)  # on, and never reached
    check(steps, [0, 0.25, 0.5, 0.75], [["GG??", "-G??"]] * 2 + [["GG..????", "-G..????"]] * 2)


def test_llada2_progress_stays_while_a_block_is_edited():
    steps = llada2_steps(editing_threshold=1e-9, max_post_steps=3, temperature=9.0)
    first = [step.progress for step in steps if step.ids.shape[1] == 4]
    assert first == [0, 0.25, 0.25, 0.25, 0.25]  # one to draw, up to four to edit
    second = [step.progress for step in steps if step.ids.shape[1] == 8]
    assert second == [0.5, 0.75]


def test_llada2_tail_beyond_the_length_is_never_free():
    steps = llada2_steps(editing_threshold=None, gen_length=5)
    assert picture(steps[2]) == ["GG..???~", "-G..???~"]
    assert not any(step.free[:, 7:].any() for step in steps)


@pytest.mark.parametrize("settings", [{"sampling_method": "greedy"}, {"temperature": 0.0}])
def test_llada2_greedy_has_temperature_one(settings):
    every(llada2_steps(editing_threshold=None, **settings), "temperature", 1.0)


# ---- DiffusionGemma: "a b" becomes a b [EOS] a; two canvases of four tokens ----

GEMMA = {"gen_length": 8, "num_inference_steps": 2, "temperature": 0.6, "eos_early_stop": False}
GEMMA |= {"confidence_threshold": None, "output_type": "seq"}
FIRST, SECOND = ["GGGG????"] * 2, ["GGGG....????"] * 2


def gemma_steps(scheduler, **settings):
    steps = steps_of(tiny_gemma(scheduler), ["a b", "c d"], **GEMMA | settings)
    every(steps, "prompts", ["a b", "c d"])
    every(steps, "reserved", RESERVED)
    every(steps, "images", None)
    assert all(step.ids[:, :4].tolist() == [[A, B, EOS, A], [C, D, EOS, A]] for step in steps)
    assert all(torch.equal(step.ids[:, 4:8], steps[-1].ids[:, 4:8]) for step in steps if step.ids.shape[1] == 12)
    return steps


@pytest.mark.parametrize("cache", [None, "static"])
def test_gemma_with_ddim(cache):
    steps = gemma_steps(DiscreteDDIMScheduler(), cache_implementation=cache)
    check(steps, [0, 0.25, 0.5, 0.75], [FIRST] * 2 + [SECOND] * 2)
    every(steps, "temperature", 0.6)


def test_gemma_with_ddim_and_corrector():
    """Of a budget of four calls of the model three are steps, the first of which has a sweep after it."""
    steps = gemma_steps(DiscreteDDIMScheduler(corrector_steps=1), num_inference_steps=4)
    check(steps, [i / 6 for i in (0, 0, 1, 2, 3, 3, 4, 5)], [FIRST] * 4 + [SECOND] * 4)
    assert [step.temperature for step in steps] == [0.6, 1.0, 0.6, 0.6] * 2


def test_gemma_with_an_entropy_bound():
    steps = gemma_steps(EntropyBoundScheduler(t_max=0.8, t_min=0.4))
    check(steps, [0, 0.25, 0.5, 0.75], [FIRST] * 2 + [SECOND] * 2)
    assert [step.temperature for step in steps] == pytest.approx([0.8, 0.6] * 2)


def test_gemma_with_block_refinement():
    steps = gemma_steps(BlockRefinementScheduler(threshold=2.0))
    assert [step.progress for step in steps] == [0, 0.25, 0.5, 0.75]
    assert [step.free.sum(-1).tolist() for step in steps] == [[4, 4], [2, 2]] * 2
    assert [picture(step) for step in steps[::2]] == [FIRST, SECOND]
    every(steps, "temperature", 0.6)
    steps = gemma_steps(BlockRefinementScheduler(threshold=2.0, editing_threshold=1.0))
    check(steps, [0, 0.25, 0.5, 0.75], [FIRST] * 2 + [SECOND] * 2)


# ---- images of 4 x 4 tokens ----


def image_steps(pipe, **settings):
    steps = steps_of(pipe, num_inference_steps=2, output_type="latent", **settings)
    every(steps, "tokenizer", None)
    every(steps, "reserved", ())
    assert all(step.images is not None for step in steps)
    return steps


def test_images_of_a_class():
    steps = image_steps(tiny_image_pipeline(unmasking_order="left_to_right"), class_labels=[0, 2], temperature=0.5)
    check(steps, [0, 0.5], [["?" * 16] * 2, ["." * 8 + "?" * 8] * 2])
    every(steps, "prompts", None)
    every(steps, "temperature", 0.5)
    assert all((step.ids[step.free] == CODES).all() for step in steps)
    assert steps[0].images.chunk_size is None


def test_images_of_a_text():
    pipe = tiny_image_pipeline(takes_text=True, unmasking_order="left_to_right")
    steps = image_steps(pipe, prompt=["a b", "c"], num_images_per_prompt=2)
    check(steps, [0, 0.5], [["?" * 16] * 4, ["." * 8 + "?" * 8] * 4])
    every(steps, "prompts", ["a b", "a b", "c", "c"])
    every(steps, "temperature", 1.0)


def test_a_completed_image():
    pipe = tiny_image_pipeline(unmasking_order="left_to_right")
    image, mask = torch.rand(1, 3, 8, 8, generator=seeded()), torch.zeros(8, 8)
    mask[:, 4:] = 1
    steps = image_steps(pipe, image=image, mask_image=mask)
    check(steps, [0, 0.5], [["GG??" * 4], ["GG..GG..GG??GG??"]])
    left = (torch.arange(16) % 4 < 2)[None]
    assert all(torch.equal(step.ids[left], pipe.encode(image)[left]) for step in steps)


def test_amused():
    """Half way through the cosine schedule 16 cos(pi / 4) = 11 tokens are hidden."""
    steps = image_steps(tiny_amused(), prompt=["a b", "c"], num_images_per_prompt=2, height=8, width=8)
    assert [step.progress for step in steps] == [0, 0.5]
    assert [step.free.sum(-1).tolist() for step in steps] == [[16] * 4, [11] * 4]
    every(steps, "prompts", ["a b", "c", "a b", "c"])
    every(steps, "temperature", 1.0)
    assert all(step.attention_mask.all() and not picture(step)[0].count("G") for step in steps)
    assert all(torch.equal(step.free, step.ids == CODES + 2) for step in steps)


def test_amused_image_to_image_begins_among_the_scheduler_s_steps():
    """The last half of four steps, at the noise levels that they have."""
    image = torch.rand(2, 3, 8, 8, generator=seeded())
    pipe = tiny_amused(AmusedImg2ImgPipeline)
    settings = {"num_inference_steps": 4, "strength": 0.5, "output_type": "latent"}
    steps = steps_of(pipe, ["a b", "c"], image=image, **settings)
    assert [step.progress for step in steps] == [0.5, 0.75]
    every(steps, "prompts", ["a b", "c"])
    assert all(torch.equal(step.free, step.ids == CODES + 2) for step in steps)
    assert 0 < steps[0].free.sum() < 32


def test_amused_inpainting():
    """Eight tokens are redrawn, at first all."""
    image, mask = torch.rand(1, 3, 8, 8, generator=seeded()), torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    pipe = tiny_amused(AmusedInpaintPipeline)
    steps = image_steps(pipe, prompt=["a b"], image=image, mask_image=mask, strength=1.0)
    assert [step.progress for step in steps] == [0, 0.5]
    assert steps[0].free[0].view(4, 4).tolist() == [[False, False, True, True]] * 4
    assert 0 < int(steps[1].free.sum()) < 8
    every(steps, "prompts", ["a b"])
    left = (torch.arange(16) % 4 < 2)[None]
    assert torch.equal(steps[1].ids[left], steps[0].ids[left])
