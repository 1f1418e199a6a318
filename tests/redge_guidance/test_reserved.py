"""Beginning-of-text, class and unknown tokens are drawn by nobody: not by our pipelines, not by guidance."""

import pytest
import torch
from diffusers import BlockRefinementScheduler, DiscreteDDIMScheduler

from redge_guidance import GuidanceConfig, guide
from redge_guidance.hosts.callables import DreamLogitsHook, GuidanceLogitsProcessor
from redge_guidance.pipelines import MaskedDiffusionScheduler
from redge_guidance.text import reserved_token_ids
from tests.helpers.hosts import JUMP, gemma, llada2, masked, seeded, uniform
from tests.helpers.tiny import tiny_gemma, word_tokenizer
from tests.helpers.watching import guided, linear

FORBIDDEN = [0, 2, 5, 6, 7]  # padding, mask, and what `special` makes of c, d and e
WANTED = torch.tensor([0, 0, 0, 0, 0, 10.0, 10.0, 10.0])  # which a reward asks for
STRONG = GuidanceConfig(5.0, num_draws=2, support=None)


def special(tokenizer):
    tokenizer.bos_token, tokenizer.cls_token, tokenizer.unk_token = "c", "d", "e"
    return tokenizer


def test_they_are_reserved_and_the_end_of_a_text_is_not():
    tokenizer = special(word_tokenizer())
    assert reserved_token_ids(tokenizer, 8) == FORBIDDEN
    assert reserved_token_ids(tokenizer, 10) == [*FORBIDDEN, 8, 9]
    assert reserved_token_ids(tokenizer, 6) == [0, 2, 5]
    tokenizer.bos_token = "[EOS]"
    assert reserved_token_ids(tokenizer, 8) == [0, 2, 6, 7]


OURS = {
    "masked": lambda: masked(("a b", "", "b [MASK] [MASK]")),
    "masked, hot": lambda: masked(("a b", ""), temperature=50.0),
    "masked, cfg": lambda: masked(("a b", "a"), guidance_scale=3.0),
    "masked, blocks": lambda: masked(("a b", ""), block_length=2),
    "uniform": lambda: uniform(("a b", "", "b [MASK]")),
    "uniform, corrector": lambda: uniform(("a b", ""), corrector_steps=1),
}


@pytest.mark.filterwarnings("ignore:.*moved nothing in this call")  # what is wanted may not be drawn
@pytest.mark.parametrize("make", OURS.values(), ids=OURS)
def test_our_pipelines_draw_none_guided_or_not(make):
    pipe, run = make()
    special(pipe.tokenizer)
    results = [run(seed) for seed in range(4)]
    with guide(pipe, linear(WANTED), STRONG):
        results += [run(seed) for seed in range(4)]
    drawn = torch.cat(results)
    assert set(drawn[drawn != 0].tolist()) - {1} == {3, 4}  # 0 is padding, not drawn; the end is rare in some
    assert (drawn == 0).sum() == 0  # there is none here


THEIRS = {
    "llada2": lambda: llada2(("a b", "a"), eos_early_stop=False),
    "llada2, editing": lambda: llada2(("a b", "a"), editing_threshold=0.3, max_post_steps=1),
    "gemma": lambda: gemma(DiscreteDDIMScheduler(corrector_steps=1), ("a b", "b a")),
    "gemma, block refinement": lambda: gemma(BlockRefinementScheduler(), ("a b", "b a")),
}


@pytest.mark.parametrize("support", [None, 4])
@pytest.mark.parametrize("make", THEIRS.values(), ids=THEIRS)
def test_guidance_forbids_them_to_the_pipelines_of_others(make, support):
    pipe, run = make()
    special(getattr(pipe, "tokenizer", None) or pipe.processor)
    seen = []

    def reward(tokens):
        seen.append(tokens.ids[tokens.free])
        return linear(WANTED)(tokens)

    pairs, _ = guided(pipe, run, reward, GuidanceConfig(5.0, num_draws=2, support=support))
    for step, logits in pairs:
        assert list(step.reserved) == FORBIDDEN
        if logits is not None:
            assert (logits[:, FORBIDDEN] == -torch.inf).all()
            assert (logits[:, [1, 3, 4]] > -torch.inf).all()
    if support is None:
        assert not set(torch.cat(seen).tolist()) & set(FORBIDDEN)


def test_guidance_forbids_them_to_samplers_that_take_a_function():
    tokenizer, logits = special(word_tokenizer()), torch.zeros(1, 4, 8)
    settings = {"max_denoising_steps": 4, "t_min": 0.5, "t_max": 0.9}
    processor = GuidanceLogitsProcessor(tiny_gemma(None).model, tokenizer, linear(WANTED), JUMP, **settings)
    hook = DreamLogitsHook(tokenizer, linear(WANTED), JUMP, steps=4)
    x = torch.full((1, 4), 2)
    for new in (processor(torch.tensor([[3, 4]]), logits, cur_step=4), hook(0, x, logits)):
        assert (new[..., FORBIDDEN] == -torch.inf).all()
        assert new[..., [1, 3, 4]].isfinite().all()


class Loop:
    """A sampler of one's own, which leaves it to the scheduler that no mask is drawn."""

    def __init__(self):
        self.scheduler, self.tokenizer = MaskedDiffusionScheduler(), word_tokenizer()

    def __call__(self):
        ids = torch.full((2, 4), 2)
        self.scheduler.set_timesteps(2)
        for t in self.scheduler.timesteps:
            output = self.scheduler.step(torch.zeros(2, 4, 8), t, ids, mask_token_id=2, generator=seeded())
            ids = output.prev_sample
        return ids


def test_no_mask_is_shown_to_a_reward_where_the_scheduler_forbids_it():
    pipe, seen = Loop(), []

    def reward(tokens):
        seen.append(tokens.weights[:, 2].detach())
        return linear(WANTED)(tokens)

    pairs, _ = guided(pipe, pipe, reward, GuidanceConfig(support=None))
    assert (torch.cat(seen) == 0).all()
    assert all((logits[:, 2] == -torch.inf).all() for _, logits in pairs)
