"""What hosts that take a function tell guidance, against tables that were worked out by hand."""

import pytest
import torch
from transformers import LogitsProcessorList

from redge_guidance.hosts import callables
from tests.helpers.hosts import RESERVED
from tests.helpers.tiny import tiny_gemma, word_tokenizer
from tests.helpers.watching import frozen, picture

PROMPT = torch.tensor([[0, 3, 1, 4], [5, 6, 1, 4]])  # padding; the end of a turn


class Recorder:
    """In the place of `Guidance`: keeps the steps, moves nothing."""

    def __init__(self, reward, config, seed):
        self.steps, self.calls, self.ends, self.trace, self.made_with = [], 0, 0, [], (reward, config, seed)

    def begin(self):
        self.calls += 1

    def end(self):
        self.ends += 1

    def __call__(self, step):
        self.steps.append(frozen(step))


@pytest.fixture
def recorders(monkeypatch):
    made = []

    def make(*args):
        made.append(Recorder(*args))
        return made[-1]

    monkeypatch.setattr(callables, "Guidance", make)
    return made


def test_generate_of_diffusion_gemma(recorders):
    model, tokenizer = tiny_gemma(None).model, word_tokenizer()
    model.generation_config.eos_token_id = None
    settings = {"max_denoising_steps": 2, "t_min": 0.5, "t_max": 0.9}
    guidance = callables.GuidanceLogitsProcessor(model, tokenizer, None, prompts=["x", "y"], seed=5, **settings)
    torch.manual_seed(0)
    settings |= {"max_new_tokens": 8, "disable_compile": True, "logits_processor": LogitsProcessorList([guidance])}
    model.generate(PROMPT, attention_mask=PROMPT != 0, **settings)
    steps = recorders[0].steps
    assert recorders[0].made_with == (None, None, 5)
    assert (recorders[0].calls, recorders[0].ends) == (1, 2)  # goals are judged by canvas
    assert [step.progress for step in steps] == [0, 0.5] * 2  # of every canvas
    assert [step.temperature for step in steps] == pytest.approx([0.9, 0.7] * 2)
    first, second = ["-GGG????", "GGGG????"], ["-GGG....????", "GGGG....????"]
    assert [picture(step) for step in steps] == [first] * 2 + [second] * 2
    for step in steps:
        assert torch.equal(step.ids[:, :4], PROMPT)
        assert (step.reserved, step.prompts, step.generator) == (RESERVED, ["x", "y"], None)
        assert (step.tokenizer, step.images) == (tokenizer, None)


def test_dream(recorders):
    tokenizer, text = word_tokenizer(), torch.tensor([[0, 1, 1], [1, 1, 1]])
    settings = {"steps": 2, "temperature": 0.5, "attention_mask": text, "prompts": ["x", "y"], "seed": 5}
    hook = callables.DreamLogitsHook(tokenizer, None, **settings)
    x, logits = torch.tensor([[0, 1, 3, 2, 2], [4, 1, 5, 2, 2]]), torch.zeros(2, 5, 8)
    for _ in range(2):  # and once more, from the beginning
        assert hook(0, x, logits) is logits
        assert hook(1, x.index_fill(1, torch.tensor([3]), 4), logits) is logits
    steps = recorders[0].steps
    assert (recorders[0].calls, recorders[0].ends, recorders[0].made_with) == (2, 2, (None, None, 5))
    assert [step.progress for step in steps] == [0, 0.5] * 2
    assert [picture(step) for step in steps] == [["-GG??", "GGG??"], ["-GG.?", "GGG.?"]] * 2
    for step in steps:
        assert step.temperature == 0.5
        assert (step.reserved, step.prompts, step.generator) == (RESERVED, ["x", "y"], None)
        assert (step.tokenizer, step.images) == (tokenizer, None)
