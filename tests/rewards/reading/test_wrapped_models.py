"""Models in what torch.compile and PEFT put around them, and in several threads."""

import threading

import pytest
import torch

from redge_guidance.positions import accepted, bare
from redge_guidance.rewards import FluencyReward, TextClassifierReward
from tests.helpers.kinds import model
from tests.helpers.reward_models import relaxed
from tests.helpers.tokenizers import tokenizer

TEXTS = ["the old doctor", "tom bought books near the river"]


class Adapted(torch.nn.Module):
    """As PEFT wraps a model of a task that it does not know."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, inner.config

    def get_base_model(self):
        return self.inner

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def compiled(inner):
    return torch.compile(inner, backend="eager")


@pytest.mark.parametrize("wrap", [Adapted, compiled])
def test_what_is_put_around_a_model_changes_no_value(wrap):
    words = tokenizer("wordpiece")
    for kind, make in ((("Bert", "MaskedLM"), FluencyReward), (("Bert", "SequenceClassification"), _margin)):
        inner = model(*kind, words)
        own, wrapped = make(inner, words), make(wrap(inner), words)
        assert bare(wrapped.model) is inner
        assert accepted(wrapped.model) == accepted(inner)
        torch.testing.assert_close(wrapped.score(TEXTS), own.score(TEXTS))
        mine, theirs = relaxed(words, TEXTS), relaxed(words, TEXTS)
        torch.testing.assert_close(wrapped(theirs), own(mine))
        (expected,) = torch.autograd.grad(own(mine).sum(), mine.weights)
        (found,) = torch.autograd.grad(wrapped(theirs).sum(), theirs.weights)
        torch.testing.assert_close(found, expected)


def _margin(classifier, words):
    return TextClassifierReward(classifier, words, 1, against=0)


def test_parts_of_a_model_may_be_compiled():
    words = tokenizer("wordpiece")
    classifier = model("Bert", "SequenceClassification", words)
    expected = _margin(classifier, words).score(TEXTS)
    classifier.bert.compile(backend="eager")
    reward = _margin(classifier, words)
    tokens = relaxed(words, TEXTS)
    torch.testing.assert_close(reward(tokens), expected)


def test_threads_may_share_a_model_whose_config_names_no_padding():
    words = tokenizer("byte")
    classifier = model("GPT2", "SequenceClassification", words, pad=False)
    reward, faults = _margin(classifier, words), []
    expected = reward.score(TEXTS)

    def work():
        for _ in range(60):
            try:
                torch.testing.assert_close(reward.score(TEXTS), expected)
            except Exception as error:  # of any kind
                faults.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert classifier.config.pad_token_id is None
