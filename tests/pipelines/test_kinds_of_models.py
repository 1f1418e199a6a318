"""Whatever masked language model the pipeline is around: its logits are the model's own, with padding and without."""

import pytest
import torch

from redge_guidance.pipelines import MaskedDiffusionScheduler, MaskedTextPipeline
from redge_guidance.pipelines.text.calling import clean_logits
from redge_guidance.pipelines.text.families import ModelFamily
from redge_guidance.positions import longest
from tests.helpers.kinds import MASKED, model
from tests.helpers.tokenizers import tokenizer

ROWS = [[2, 9, 10, 11, 12, 3], [2, 40, 41, 3], [2, 3]]


def pipeline(kind):
    words = tokenizer("wordpiece")
    pipe = MaskedTextPipeline(model(kind, "MaskedLM", words), words, MaskedDiffusionScheduler(), length=12)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def own(pipe, row):
    return pipe.model(input_ids=torch.tensor([row])).logits[0]


@pytest.mark.parametrize("fill", [0, 4, 3])  # padding of its own, or an id that stands for a mask or the end elsewhere
@pytest.mark.parametrize("kind", MASKED)
@torch.no_grad()
def test_logits_are_the_models_own(kind, fill):
    pipe = pipeline(kind)
    width = max(map(len, ROWS))
    ids = torch.tensor([[fill] * (width - len(row)) + row for row in ROWS])
    mask = torch.arange(width) >= width - torch.tensor([[len(row)] for row in ROWS])
    together = clean_logits(pipe.model, pipe._family, ids, mask, torch.ones(len(ROWS)))
    for row, logits in zip(ROWS, together, strict=True):
        alone = clean_logits(pipe.model, pipe._family, torch.tensor([row]), mask[:1, : len(row)] | True, torch.ones(1))
        torch.testing.assert_close(alone[0], own(pipe, row), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits[-len(row) :], own(pipe, row), atol=1e-5, rtol=1e-5)


class _SeesSquareMasks(torch.nn.Module):
    """Adds the mean over the text to every token, but over padding too where its mask is a row."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(60, 8)

    def forward(self, input_ids, attention_mask):
        seen = attention_mask[:, 0, -1] if attention_mask.dim() == 4 else torch.ones_like(input_ids)
        seen = seen.float()[..., None] if seen.dtype in (torch.bool, torch.long) else (seen == 0).float()[..., None]
        hidden = self.embedding(input_ids)
        return (hidden + (hidden * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True)) @ self.embedding.weight.T


@pytest.mark.parametrize("order", [("4d", "2d"), ("2d", "4d")])
@torch.no_grad()
def test_what_one_family_found_out_is_not_taken_for_another(order):
    both, ids = _SeesSquareMasks(), torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    for attention in order:
        family, mask = ModelFamily(attention=attention), ids > 0
        together = clean_logits(both, family, ids, mask, torch.ones(2))
        alone = clean_logits(both, family, ids[:1, 2:], mask[:1, 2:], torch.ones(1))
        torch.testing.assert_close(together[0, 2:], alone[0])


@pytest.mark.parametrize("kind", MASKED)
def test_a_text_as_long_as_the_model_and_no_longer(kind):
    pipe = pipeline(kind)
    most = longest(pipe.model)
    start = len(pipe.tokenizer("").input_ids) - 1
    pipe("", gen_length=most - start, num_inference_steps=1, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=f"the text needs {most + 1} token positions and the model has {most}"):
        pipe("", gen_length=most - start + 1, num_inference_steps=1)


@pytest.mark.parametrize("kind", ["Roberta", "MPNet", "FNet"])
def test_prompts_of_two_lengths_are_drawn_as_each_alone(kind):
    pipe, prompts = pipeline(kind), ["the river", "the old doctor lived in"]
    settings = {"gen_length": 4, "num_inference_steps": 4}
    generators = lambda: [torch.Generator().manual_seed(k) for k in range(2)]  # noqa: E731
    together = pipe(prompts, generator=generators(), **settings).texts
    alone = [pipe(one, generator=[g], **settings).texts[0] for one, g in zip(prompts, generators(), strict=True)]
    assert together == alone
