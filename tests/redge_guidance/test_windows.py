"""`start` and `stop` on every host: guided are the steps with `start <= progress < stop`, and no others."""

import pytest
import torch

from redge_guidance.hosts.callables import DreamLogitsHook, GuidanceLogitsProcessor
from tests.helpers.hosts import ALL, JUMP, any_reward, count_of_a
from tests.helpers.settings import plain_config
from tests.helpers.tiny import tiny_gemma, word_tokenizer
from tests.helpers.watching import guided

WINDOW = {"scale": 2.0, "num_draws": 1, "update": JUMP.update}
every_host = pytest.mark.parametrize("make", ALL.values(), ids=ALL)


@every_host
def test_guided_are_the_steps_of_the_window(make):
    start, stop = 0.25, 0.75  # which are the progress of steps themselves in calls of four steps
    pipe, run = make()
    pairs, trace = guided(pipe, run, any_reward(pipe), plain_config(**WINDOW, start=start, stop=stop))
    inside = [start <= step.progress < stop and bool(step.free.any()) for step, _ in pairs]
    assert [logits is not None for _, logits in pairs] == inside
    assert [figures.progress for figures in trace] == [step.progress for step, logits in pairs if logits is not None]
    assert 0 < len(trace) < len(pairs)


@every_host
def test_an_empty_window_gives_the_tokens_of_the_bare_pipeline(make):
    pipe, run = make()
    bare, found = run(), []
    config = plain_config(**WINDOW | {"scale": 100.0}, start=0.98)
    pairs, trace = guided(pipe, lambda: found.append(run()), any_reward(pipe), config)
    assert torch.equal(found[0], bare)
    assert max(step.progress for step, _ in pairs) < 0.98
    assert not trace


def test_windows_of_callables_are_shares_of_their_steps():
    config, logits = plain_config(**WINDOW, start=0.25, stop=0.75), torch.zeros(1, 4, 8)
    model, x = tiny_gemma(None).model, torch.full((1, 4), 2)
    settings = {"max_denoising_steps": 4, "t_min": 0.5, "t_max": 0.9}
    processor = GuidanceLogitsProcessor(model, word_tokenizer(), count_of_a, config, **settings)
    hook = DreamLogitsHook(word_tokenizer(), count_of_a, config, steps=4)
    left = [processor(torch.tensor([[3, 4]]), logits, cur_step=n) is logits for n in (4, 3, 2, 1)]
    assert left == [True, False, False, True]
    assert [hook(n, x, logits) is logits for n in range(4)] == [True, False, False, True]
    for trace in (processor.trace, hook.trace):
        assert [step.progress for step in trace] == [0.25, 0.5]
