"""The bound on a text's probability: against all orders, text by text, and by classifier-free guidance."""

import copy
import itertools
import pickle

import pytest
import torch

from redge_guidance.pipelines.text.prompts import Encoded
from tests.helpers.hosts import seeded
from tests.helpers.tiny import tiny_pipeline, tiny_uniform

TEXTS, PROMPTS = ["a b c", "d", "e a b", "c c c"], ["e d", "b", "", "a d"]


def log_prob(pipe, ids, prompt, visible, i, scale):
    """`log p(x_i | prompt, visible)` of one text, by its own call of the model."""
    mask = pipe.tokenizer.mask_token_id
    seen = [token if k in visible else mask for k, token in enumerate(ids)]

    def logits(front):
        text = torch.tensor([front + seen])
        return pipe.model(input_ids=text, attention_mask=torch.ones_like(text)).logits[0, len(prompt) + i]

    found = logits(prompt)
    if scale != 1:
        other = logits([mask] * len(prompt))
        found = other + scale * (found - other)
    found[[0, 2]] = -torch.inf  # padding and mask, which are never drawn
    return found.log_softmax(-1)[ids[i]]


@torch.no_grad()
def over_orders(pipe, ids, prompt, scale=1.0):
    """Mean over all orders of `sum of -log p(x_i | what comes before it in the order)`."""
    total = [
        -sum(log_prob(pipe, ids, prompt, set(order[:n]), order[n], scale) for n in range(len(ids)))
        for order in itertools.permutations(range(len(ids)))
    ]
    return torch.stack(total).mean()


@torch.no_grad()
def estimates(pipe, ids, prompt, scale=1.0):
    """`(probability, estimate)` of every corruption of the text."""
    size, result = len(ids), []
    for k in range(1, size + 1):
        subsets = list(itertools.combinations(range(size), k))
        for hidden in subsets:
            loss = -sum(log_prob(pipe, ids, prompt, set(range(size)) - set(hidden), i, scale) for i in hidden)
            result.append((1 / size / len(subsets), float(loss) * size / k))
    return torch.tensor(result).unbind(1)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_bound_is_the_mean_over_all_orders(scale):
    pipe = tiny_pipeline()
    ids, prompt = pipe.tokenizer("a c b").input_ids, pipe.tokenizer("d e").input_ids
    weights, values = estimates(pipe, ids, prompt, scale)
    exact = (weights * values).sum()
    torch.testing.assert_close(exact, over_orders(pipe, ids, prompt, scale), rtol=1e-4, atol=1e-4)
    error = ((weights * (values - exact).square()).sum() / 4000).sqrt()
    found = pipe.nll("a c b", 4000, 500, prompts="d e", guidance_scale=scale)
    assert (found[0] - exact).abs() < 4 * error
    assert error < 0.02 * exact


def test_guidance_moves_the_bound():
    pipe = tiny_pipeline()
    plain, guided = (pipe.nll("a c b", 64, prompts="d e", guidance_scale=scale) for scale in (1.0, 2.5))
    assert (plain - guided).abs() > 0.1
    torch.testing.assert_close(pipe.nll("a", prompts="", guidance_scale=2.5), pipe.nll("a", prompts=""))
    with pytest.raises(ValueError, match="`guidance_scale` of `nll` needs a mask"):
        tiny_uniform().nll("a", prompts="b", guidance_scale=2.0)
    with pytest.raises(ValueError, match="`guidance_scale`"):
        pipe.nll("a", prompts="b", guidance_scale=float("nan"))


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_uniform])
def test_a_list_of_generators_makes_figures_independent(make):
    pipe = make()
    whole = pipe.nll(TEXTS, 4, prompts=PROMPTS, generator=[seeded(k) for k in range(4)])
    for k in range(4):
        alone = pipe.nll(TEXTS[k], 4, prompts=PROMPTS[k], generator=[seeded(k)])
        torch.testing.assert_close(whole[k], alone[0])
    order = [2, 0, 3, 1]
    shuffled = [[these[k] for k in order] for these in (TEXTS, PROMPTS)]
    again = pipe.nll(shuffled[0], 4, 3, prompts=shuffled[1], generator=[seeded(k) for k in order])
    torch.testing.assert_close(again, whole[order])
    with pytest.raises(ValueError, match="one for each of 4"):
        pipe.nll(TEXTS, generator=[seeded(0)])


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_uniform])
def test_encoded_texts_are_those_that_they_encode(make):
    pipe = make()
    plain = [[Encoded(text, pipe.tokenizer(text).input_ids) for text in texts] for texts in (TEXTS, PROMPTS)]
    expected = pipe.nll(TEXTS, 4, prompts=PROMPTS, generator=seeded(1))
    assert torch.equal(pipe.nll(plain[0], 4, prompts=plain[1], generator=seeded(1)), expected)
    sequences = pipe(PROMPTS, gen_length=3, generator=seeded(2)).sequences
    assert torch.equal(pipe(plain[1], gen_length=3, generator=seeded(2)).sequences, sequences)


def test_encoded_prompts_may_hold_special_tokens():
    pipe = tiny_pipeline()
    with pytest.raises(ValueError, match="reserved tokens"):
        pipe("a [EOS] b")
    prompt = Encoded("a [EOS] b", [3, 1, 4], start=1)
    for one in (prompt, copy.deepcopy(prompt), pickle.loads(pickle.dumps(prompt))):
        assert (one, one.ids, one.start) == ("a [EOS] b", [3, 1, 4], 1)
        canvas = pipe.canvas([one], gen_length=2)
        assert canvas.ids.tolist() == [[3, 1, 4, 2, 2]]
        assert canvas.prompt.tolist() == [[False, True, True, False, False]]
    output = pipe(prompt, gen_length=2, generator=seeded(0))
    assert output.sequences[0, :3].tolist() == [3, 1, 4]
    assert output.texts[0].startswith("a b")
