"""Classes of uniform diffusion, and its last step."""

import types

import pytest
import torch

from redge_guidance.pipelines import UniformTextPipeline
from tests.helpers.tiny import WORDS, word_tokenizer


class OfClasses(torch.nn.Module):
    """Logits that depend on class, time and text in ways that are easily told apart."""

    config = types.SimpleNamespace(vocab_size=len(WORDS), cfg_num_classes=2)

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(4, len(WORDS), generator=torch.Generator().manual_seed(3)))
        self.asked = []

    def forward(self, input_ids, timesteps, cond=None):
        self.asked.append(None if cond is None else cond.tolist())
        own = self.table[3] if cond is None else self.table[cond][:, None]
        padding = torch.nn.functional.one_hot(torch.zeros_like(input_ids), len(WORDS))
        return own + padding * input_ids.roll(1, -1)[..., None]  # which the text moves, and which is never drawn


@pytest.fixture
def of_classes():
    pipe = UniformTextPipeline.from_model(OfClasses(), word_tokenizer(), "udlm")
    pipe.set_progress_bar_config(disable=True)
    pipe.model.asked.clear()
    return pipe


def last_logits(pipe, **settings):
    seen = []

    def keep(pipe, step, t, tensors):
        seen.append((tensors["sample"], tensors["logits"]))

    names = {"callback_on_step_end": keep, "callback_on_step_end_tensor_inputs": ["sample", "logits"]}
    pipe(
        ["a", "b"], gen_length=3, num_inference_steps=2, generator=torch.Generator().manual_seed(0), **names, **settings
    )
    return seen


def test_a_class_is_asked_for_and_guides_without_a_classifier(of_classes):
    """UDLM: `log p ~ gamma log p(x | class) + (1 - gamma) log p(x)`, before the posterior."""
    gamma, table = 1.5, of_classes.model.table.detach()
    (_, logits), _ = last_logits(of_classes, class_labels=[1, 0], guidance_scale=gamma)
    assert of_classes.model.asked == [[1, 0], [2, 2]] * 2
    allowed = logits[0, -1] > -torch.inf
    expected = (gamma * table[[1, 0]] + (1 - gamma) * table[2])[:, None].expand_as(logits[:, 1:])
    found = logits[:, 1:, allowed].softmax(-1)  # at the first step nothing is left, and the posterior is the prediction
    torch.testing.assert_close(found, expected[..., allowed].softmax(-1))
    of_classes.model.asked.clear()
    last_logits(of_classes, class_labels=1)
    assert of_classes.model.asked == [[1, 1]] * 2
    with pytest.raises(ValueError, match="`class_labels` must be one, or one for each of 2 texts, of the 2 classes"):
        last_logits(of_classes, class_labels=2)
    with pytest.raises(ValueError, match="`guidance_scale` needs `class_labels`, got 2 and None"):
        last_logits(of_classes, guidance_scale=2)


def test_a_greedy_end_takes_the_model_s_own_likeliest(of_classes):
    (before, _), (after, _) = last_logits(of_classes, noise_removal="greedy")
    with torch.no_grad():
        own = of_classes.model(before, None)
    own[..., [0, 2]] = -torch.inf  # padding and mask
    assert torch.equal(after[:, 1:], own.argmax(-1)[:, 1:])
    with pytest.raises(ValueError, match="`noise_removal` must be one of ancestral, greedy, got 'none'"):
        last_logits(of_classes, noise_removal="none")


def test_each_text_has_its_own_class_whatever_its_padding(of_classes):
    seen = []

    def keep(pipe, step, t, tensors):
        seen.append(pipe.drawing.class_labels.tolist())

    of_classes(["a b", "c"], gen_length=3, num_inference_steps=1, class_labels=[1, 0], callback_on_step_end=keep)
    assert of_classes.model.asked == [[1], [0]]
    assert seen == [[1, 0]]  # which rewards may ask for


def test_a_corrector_sweep_is_of_the_class_too(of_classes):
    of_classes.scheduler.register_to_config(corrector_steps=1)
    last_logits(of_classes, class_labels=[1, 0], guidance_scale=2.0)
    assert of_classes.model.asked == [[1, 0], [2, 2]] * 3
