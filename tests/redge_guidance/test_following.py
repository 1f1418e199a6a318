"""What every host says was drawn is what changed, and sequences that are exchanged go on from the same state."""

import itertools

import pytest
import torch
from diffusers import AmusedImg2ImgPipeline, BlockRefinementScheduler, DiscreteDDIMScheduler, EntropyBoundScheduler

from tests.helpers.hosts import (
    EOS,
    MASK,
    MASKED,
    ONE_OF_EACH,
    RESERVED,
    amused,
    gemma,
    llada2,
    masked,
    masked_image,
    seeded,
    unified,
    uniform,
)
from tests.helpers.images import CODES, tiny_amused, tiny_image_pipeline
from tests.helpers.unified import UnifiedPipeline
from tests.helpers.watching import followed, outputs_of


def whole(pipe, told, output):
    """What the pipeline returned, with the prompt in front where it leaves that out."""
    prompt = {"LLaDA2Pipeline": 2, "DiffusionGemmaPipeline": 4}.get(type(pipe).__name__, 0)
    return torch.cat([told[0][0].ids[:, :prompt], output.flatten(1)], -1)


# ---- what was drawn ----

HALTON = {"unmasking_order": "halton", "schedule": "arccos", "counting": "floor", "roll": True}


def unmasked_llada2(**settings):
    """Whose model draws no mask, which would look as if nothing had been drawn."""
    pipe, run = llada2(eos_early_stop=False, **settings)
    pipe.model.decoder.bias.data[MASK] = -100.0
    return pipe, run


VISIBLE = {name: (make, MASK) for name, make in MASKED.items()}  # hosts of masks, with the id of the mask
VISIBLE |= {
    "llada2": (unmasked_llada2, MASK),
    "llada2, editing": (lambda: unmasked_llada2(editing_threshold=0.3, max_post_steps=2), MASK),
    "unified": (lambda: unified(UnifiedPipeline), CODES + 2),
    "images": (lambda: masked_image(), CODES),
    "images, halton": (lambda: masked_image(**HALTON), CODES),
    "images, remasking": (lambda: masked_image(unmasking_order="remasking"), CODES),
    "amused": (lambda: amused(height=8, width=8), CODES + 2),
    "amused img2img": (
        lambda: amused(AmusedImg2ImgPipeline, image=torch.rand(2, 3, 8, 8, generator=seeded()), strength=0.8),
        CODES + 2,
    ),
}


@pytest.mark.parametrize(("make", "mask"), VISIBLE.values(), ids=VISIBLE)
def test_of_masked_hosts_it_is_what_the_next_step_finds_changed(make, mask):
    pipe, run = make()
    told, output = followed(pipe, run)
    assert sum(int(drawn.positions.sum()) for _, drawn in told) > 4
    states = [step.ids for step, _ in told]
    states.append(whole(pipe, told, output))
    for (step, drawn), after in zip(told, states[1:], strict=True):
        length = min(step.ids.shape[1], after.shape[1])  # LLaDA2Pipeline gives no tail beyond what was asked for
        before, after = step.ids[:, :length], after[:, :length]
        new = (after != before) & (after != mask) & step.attention_mask[:, :length]
        assert torch.equal(drawn.positions[:, :length], new)
        assert torch.equal(drawn.tokens[:, :length], before.where(~new, after))


def test_of_llada2_the_rows_that_have_ended_draw_nothing():
    """The scheduler goes on with them, and the pipeline keeps nothing of it."""
    pipe, run = llada2(("a b", "a b", "a b"), gen_length=14, temperature=3.0)
    pipe.model.decoder.bias.data[RESERVED] = -100.0
    told, _ = followed(pipe, run)
    ended = 0
    for (step, drawn), (after, _) in itertools.pairwise(told):
        found = after.ids[:, : step.ids.shape[1]]
        new = (found != step.ids) & (found != MASK)
        assert torch.equal(drawn.positions, new)
        ended += int((step.ids == EOS).any(-1).sum())
    assert ended > 0


def test_of_uniform_texts_it_is_every_clean_token_and_of_a_sweep_what_it_changed():
    pipe, run = uniform(("a b", "c [MASK] d", ""), corrector_steps=1, corrector_k=3)
    calls = outputs_of(pipe)
    told, _ = followed(pipe, run)
    assert [name for name, *_ in calls] == ["step", "step_correct"] * 3 + ["step"]
    for (step, drawn), (name, arguments, output) in zip(told, calls, strict=True):
        before, after = arguments["sample"], output[0].where(step.free, step.ids)
        expected = step.free if name == "step" else after != before
        assert torch.equal(drawn.positions, expected)
        tokens = output[1] if name == "step" else after
        assert torch.equal(drawn.tokens, step.ids.where(~expected, tokens))


def test_of_uniform_texts_with_a_generator_a_row_it_is_every_clean_token_too():
    """The clean token is what the logits were asked for; noise that takes its place later is none."""
    pipe, _ = uniform(num_inference_steps=4)
    prompts = [""] * 8
    told, _ = followed(pipe, lambda: pipe(prompts, generator=[seeded(k) for k in range(8)]))
    for step, drawn in told:
        found = step.logits.gather(-1, drawn.tokens[..., None])[..., 0]
        assert (found[step.free] > -torch.inf).all()


def test_of_gemma_with_ddim_it_is_every_clean_token_and_of_a_sweep_what_it_changed():
    pipe, run = gemma(DiscreteDDIMScheduler(corrector_steps=1, corrector_k=2))
    calls = outputs_of(pipe)
    told, _ = followed(pipe, run)
    for (step, drawn), (name, arguments, output) in zip(told, calls, strict=True):
        before = arguments["sample"]
        tokens = output.sampled_tokens if name == "step" else output.prev_sample
        changed = torch.ones_like(before).bool() if name == "step" else tokens != before
        assert not drawn.positions[:, :-4].any()
        assert torch.equal(drawn.positions[:, -4:], changed)
        assert torch.equal(drawn.tokens[:, -4:], before.where(~changed, tokens))
        assert torch.equal(drawn.tokens[:, :-4], step.ids[:, :-4])


@pytest.mark.parametrize("scheduler", [BlockRefinementScheduler, EntropyBoundScheduler])
def test_of_gemma_it_is_what_was_accepted(scheduler):
    pipe, run = gemma(scheduler())
    told, output = followed(pipe, run)
    states = [step.ids for step, _ in told][1:]
    states.append(torch.cat([states[-1][:, :-8], output], -1))
    for (step, drawn), after in zip(told, states, strict=True):
        after = after[:, : step.ids.shape[1]]
        assert torch.equal(after[drawn.positions], drawn.tokens[drawn.positions])
        assert torch.equal(drawn.tokens[~drawn.positions], step.ids[~drawn.positions])
        assert not (drawn.positions & ~step.free).any()
    count = sum(drawn.positions[:, -4:].int() for _, drawn in told)
    if scheduler is BlockRefinementScheduler:  # which commits every position once in each of two canvases
        assert (count == 2).all()
    assert count.sum() > 0


# ---- exchanges ----

SAME = ("a b", "a b")
STATEFUL = {
    "masked": lambda: masked(SAME, num_inference_steps=4, guidance_scale=2.0),
    "masked, blocks": lambda: masked(SAME, num_inference_steps=4, block_length=2),
    "uniform": lambda: uniform(SAME, corrector_steps=1),
    "llada2": lambda: llada2(SAME, eos_early_stop=False, temperature=3.0),
    "llada2, editing": lambda: llada2(SAME, eos_early_stop=False, editing_threshold=0.3, max_post_steps=1),
    "gemma ddim": lambda: gemma(DiscreteDDIMScheduler(), SAME, temperature=2.0),
    "gemma ddim, static": lambda: gemma(DiscreteDDIMScheduler(), SAME, cache_implementation="static"),
    "gemma ddim, corrector": lambda: gemma(DiscreteDDIMScheduler(corrector_steps=1), SAME, num_inference_steps=6),
    "gemma block refinement": lambda: gemma(BlockRefinementScheduler(threshold=0.6), SAME, temperature=2.0),
    "gemma entropy bound": lambda: gemma(EntropyBoundScheduler(), SAME),
    "images": lambda: image_pair(),
    "images, halton": lambda: image_pair(**HALTON),
    "amused": lambda: amused_pair(),
}


def image_pair(**scheduler):
    pipe = tiny_image_pipeline(**scheduler)
    settings = {"num_images_per_prompt": 2, "output_type": "latent", "num_inference_steps": 5}
    return pipe, lambda seed=0: pipe([1], generator=seeded(seed), **settings).tokens


def amused_pair():
    pipe = tiny_amused()
    settings = {"height": 8, "width": 8, "num_images_per_prompt": 2, "output_type": "latent", "num_inference_steps": 5}
    return pipe, lambda seed=0: pipe(["a b"], generator=seeded(seed), **settings).images


def at(k, rows):
    return lambda index: torch.tensor(rows) if index == k else None


@pytest.mark.parametrize(("rows", "k"), [([0, 0], 1), ([1, 0], 3), ([0, 0], 4)])
@pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL)
def test_after_an_exchange_the_next_step_is_that_of_the_bare_run_with_its_rows_exchanged(make, rows, k):
    """Its logits too, which come of caches and of what the model is told of the step before."""
    pipe, run = make()
    bare, _ = followed(pipe, run)
    k = min(k, len(bare) - 2)
    told, output = followed(pipe, run, at(k, rows))
    (expected, _), (found, _) = bare[k + 1], told[k + 1]
    # a new canvas begins with noise of its own
    new = 4 if hasattr(pipe, "processor") and found.ids.shape != told[k][0].ids.shape else 0
    length = found.ids.shape[1] - new
    assert torch.equal(found.ids[:, :length], expected.ids[rows, :length])
    if not new:
        assert torch.equal(found.free, expected.free[rows])
        torch.testing.assert_close(found.logits, expected.logits[rows], atol=1e-4, rtol=1e-4)
    last, final = told[-1][0], whole(pipe, told, output)
    length = min(final.shape[1], last.ids.shape[1] - (4 if hasattr(pipe, "processor") else 0))
    committed = ~last.free[:, :length]  # which the pipeline itself has kept as it was said to
    assert torch.equal(final[:, :length][committed], last.ids[:, :length][committed])


@pytest.mark.parametrize(("name", "k"), [("masked", 1), ("llada2", 5), ("images", 2), ("amused", 2)])
def test_what_was_committed_before_is_the_same_in_both(name, k):
    pipe, run = STATEFUL[name]()
    mask = {"images": CODES, "amused": CODES + 2}.get(name, MASK)
    bare, _ = followed(pipe, run)
    told, output = followed(pipe, run, at(k, [0, 0]))
    drawn, final = told[k][1].tokens, whole(pipe, told, output)
    length = min(drawn.shape[1], final.shape[1])
    committed = drawn[0, :length] != mask
    assert (final[:, :length][:, committed] == drawn[0, :length][committed]).all()
    assert not torch.equal(*bare[k + 1][0].ids)


def test_a_sequence_that_is_exchanged_takes_its_order_along():
    pipe, run = STATEFUL["images, halton"]()
    bare, _ = followed(pipe, run)
    told, _ = followed(pipe, run, at(1, [0, 0]))
    places = [drawn.positions for _, drawn in told]
    for k, (_, drawn) in enumerate(bare):
        assert torch.equal(places[k][0], drawn.positions[0])
        assert torch.equal(places[k][1], drawn.positions[1 if k < 2 else 0])
    assert not torch.equal(*bare[3][1].positions)  # two orders


@pytest.mark.parametrize("make", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
def test_following_without_an_answer_changes_nothing(make):
    pipe, run = make()
    bare = run()
    told, output = followed(pipe, run)
    assert told
    assert torch.equal(output, bare)


REFUSING = {
    "masked": lambda: masked(("a b", "c d"), num_inference_steps=2),
    "masked, holes": lambda: masked(("a [MASK]", "[MASK] a"), num_inference_steps=2),
    "uniform": lambda: uniform(("a b", "c d")),
    "llada2": lambda: llada2(("a b", "c d"), eos_early_stop=False),
    "gemma": lambda: gemma(DiscreteDDIMScheduler(), ("a b", "c d")),
    "images of texts": lambda: masked_image(takes_text=True),
    "amused": lambda: amused(height=8, width=8),
}


@pytest.mark.parametrize("make", REFUSING.values(), ids=REFUSING)
def test_rows_of_different_prompts_are_refused(make):
    pipe, run = make()
    with pytest.raises(ValueError, match=r"`rows` must exchange sequences of one prompt, got \[1, 1\]"):
        followed(pipe, run, at(0, [1, 1]))
    bare = run()
    assert torch.equal(followed(pipe, run, at(0, [0, 1]))[1], bare)  # each stays where it was


def test_images_of_different_classes_are_refused():
    pipe, run = masked_image()
    with pytest.raises(ValueError, match=r"`rows` must exchange images of one class, got \[1, 0\]"):
        followed(pipe, run, at(0, [1, 0]))


@pytest.mark.parametrize("rows", [[0], [0, 0, 0], [0, 2], [-1, 0], [0.0, 1.0], [[0, 1]]])
@pytest.mark.parametrize("name", ["masked", "uniform", "llada2", "gemma ddim", "images", "amused"])
def test_rows_that_are_no_indices_are_refused(name, rows):
    pipe, run = STATEFUL[name]()
    with pytest.raises(ValueError, match="`rows` must be 2 indices below 2, got"):
        followed(pipe, run, at(0, rows))


def test_what_pipelines_remember_by_themselves_cannot_be_exchanged():
    pipe, run = llada2(SAME)
    with pytest.raises(RuntimeError, match="pass `eos_early_stop=False`"):
        followed(pipe, run, at(0, [0, 0]))
    for setting, value in {"eos_early_stop": True, "confidence_threshold": 0.005}.items():
        pipe, run = gemma(DiscreteDDIMScheduler(), SAME, **{setting: value})
        with pytest.raises(RuntimeError, match=f"pass `{setting}=(False|None)`"):
            followed(pipe, run, at(0, [0, 0]))
