"""Every host on the real pipeline class around a tiny model."""

import pytest
import torch
from diffusers import BlockRefinementScheduler, DiscreteDDIMScheduler, EntropyBoundScheduler

from redge_guidance import GuidanceConfig, guide
from redge_guidance.hosts import find_host, is_a, supports
from redge_guidance.text import text_mask
from tests.helpers.hosts import JUMP, RESERVED, TEXTS, all_of_a, count_of_a, gemma, llada2, spied, state_of
from tests.helpers.tiny import WORDS, tiny_gemma, tiny_llada2, tiny_pipeline, tiny_uniform, word_tokenizer

every_case = pytest.mark.parametrize("make", TEXTS.values(), ids=TEXTS)


@every_case
def test_scale_zero_gives_the_tokens_of_the_bare_host(make):
    pipe, run = make()
    bare = run()
    with guide(pipe, count_of_a, GuidanceConfig(scale=0.0)):
        assert torch.equal(run(), bare)
    with guide(pipe, count_of_a, GuidanceConfig(scale=8.0)):
        assert not torch.equal(run(), bare)


@every_case
def test_removal_and_exceptions_leave_the_host_as_it_was(make):
    pipe, run = make()
    bare = run()
    before = state_of(pipe)

    def broken(tokens):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), guide(pipe, broken):
        run()
    assert state_of(pipe) == before
    assert torch.equal(run(), bare)


@every_case
def test_reward_rises_with_scale(make):
    pipe, run = make()
    means = []
    for scale in (0.0, 8.0):
        with guide(pipe, count_of_a, GuidanceConfig(scale=scale)):
            means.append(torch.stack([(run(seed) == WORDS.index("a")).float().mean() for seed in range(5)]).mean())
    assert means[1] > means[0] + 0.1


@every_case
def test_guided_logits_are_the_exact_optimum_and_fixed_positions_keep_theirs(make):
    """For a reward linear in the tokens one full natural step is the tilted p; every single step is compared."""
    pipe, run = make()
    calls = spied(pipe)
    host_reads = []

    def reward(tokens):
        host_reads.append(tokens)
        return all_of_a(tokens)

    model_logits = []
    pipe.model.register_forward_hook(lambda module, args, output: model_logits.append(output.logits.clone()))
    with guide(pipe, reward, JUMP):
        run()
    assert len(calls) == len(model_logits)
    tilt = torch.zeros(len(WORDS))
    tilt[WORDS.index("a")] = JUMP.scale
    tilt[RESERVED] = -torch.inf
    reads = iter(host_reads)
    for (name, arguments), logits in zip(calls, model_logits, strict=True):
        guided, length = arguments["model_output"], arguments["sample"].shape[1]
        logits = logits[:, -length:]
        moved = (guided != logits).any(-1)
        if not moved.any():
            continue
        tokens = next(reads)
        free = torch.zeros_like(moved)
        free[moved.any(-1)] = tokens.free[:, -length:]  # finished sequences are not shown
        assert not tokens.free[:, :-length].any()
        assert not (moved & ~free).any()
        temperature = temperature_of(name, pipe.scheduler, arguments)
        expected = ((logits / temperature).log_softmax(-1) + tilt).log_softmax(-1)
        ours = (guided / temperature).log_softmax(-1)
        torch.testing.assert_close(ours[free].exp(), expected[free].exp(), atol=1e-5, rtol=1e-4)


def temperature_of(name, scheduler, arguments):
    """As the schedulers document it."""
    if name == "step_correct" or arguments.get("sampling_method") == "greedy":
        return 1.0
    if isinstance(scheduler, EntropyBoundScheduler):
        t_max, t_min = scheduler.config.t_max, scheduler.config.t_min
        return t_min + (t_max - t_min) * (1 - arguments["timestep"] / scheduler.num_inference_steps)
    return arguments.get("temperature") or 1.0


@every_case
def test_reserved_tokens_are_not_produced_by_guidance(make):
    """The uniform schedulers renoise with any token; what they draw from the logits is never reserved."""
    pipe, run = make()
    calls = spied(pipe)
    with guide(pipe, count_of_a, GuidanceConfig(support=4)) as handle:
        run()
    for _, arguments in calls:
        guided = (arguments["model_output"][..., RESERVED] == -torch.inf).all(-1)
        assert guided.any() or (is_a(pipe, "LLaDA2Pipeline") and not (arguments["sample"] == 2).any())
    progress = [step.progress for step in handle.trace]
    assert progress == sorted(progress)
    assert progress[0] == 0
    assert progress[-1] < 1


def test_the_reward_sees_prompt_finished_blocks_and_the_block():
    pipe, run = llada2(editing_threshold=None)
    seen = []

    def watched(tokens):
        seen.append(tokens)
        return count_of_a(tokens)

    watched.whole_batch = True  # finished sequences too
    with guide(pipe, watched, JUMP):
        sequences = run()
    assert [t.ids[1].tolist()[:2] for t in seen] == [[0, 5]] * len(seen)  # padding, then the prompt "c"
    assert {tuple(t.ids.shape) for t in seen} == {(2, 4), (2, 8), (2, 12)}
    assert not seen[0].attention_mask[1, 0]
    assert seen[0].attention_mask[1, 1]
    assert not seen[-1].free[:, :8].any()
    assert torch.equal(seen[-1].ids[:, 2:8], sequences[:, :6])  # finished blocks, as they came out
    run_twice = []
    with guide(pipe, lambda tokens: (run_twice.append(tokens), count_of_a(tokens))[1], JUMP) as handle:
        run()
        run()
    assert [step.progress for step in handle.trace] == 2 * [step.progress for step in handle.trace[: len(seen)]]


def test_the_tail_beyond_the_length_asked_for_is_left_alone():
    pipe, run = llada2(gen_length=5, eos_early_stop=False)
    seen = []
    with guide(pipe, lambda tokens: (seen.append(tokens), count_of_a(tokens))[1], JUMP):
        run()
    assert seen[-1].ids.shape[1] == 8
    assert not any(t.free[:, 7:].any() for t in seen)


def test_the_end_of_a_turn_in_the_prompt_does_not_end_the_text():
    ids = torch.tensor([[3, 1, 4, 5, 1, 5]])
    given = torch.tensor([[True, True, True, False, False, False]])
    assert text_mask(ids, word_tokenizer(), given=given).int().tolist() == [[1, 1, 1, 1, 1, 0]]
    pipe, run = gemma(DiscreteDDIMScheduler())  # whose chat template ends every turn with [EOS]
    seen = []
    with guide(pipe, lambda tokens: (seen.append(tokens), count_of_a(tokens))[1], JUMP):
        run()
    assert (seen[0].ids[:, 2] == 1).all()
    assert seen[0].attention_mask[:, :5].all()
    assert len({t.ids.shape[1] for t in seen}) == 2  # prompt and one canvas, prompt and two


def test_given_tokens_of_a_uniform_canvas_are_not_free():
    pipe = tiny_uniform(corrector_steps=1)
    seen = []
    with guide(pipe, lambda tokens: (seen.append(tokens), count_of_a(tokens))[1], JUMP) as handle:
        sequences = pipe(["b", "c [MASK] d", ""], generator=torch.Generator().manual_seed(0)).sequences
    assert sequences[0, 0] == 4
    assert (sequences[1, 0], sequences[1, 2]) == (5, 6)
    assert len(seen) == 4 + 3  # steps, and a sweep after all but the last
    assert all(t.free.sum(-1).tolist() == [5, 1, 6] for t in seen)
    assert [step.progress for step in handle.trace] == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75]


def test_committed_positions_of_a_uniform_canvas_stay():
    pipe, run = gemma(BlockRefinementScheduler(threshold=2.0))
    seen = []
    with guide(pipe, lambda tokens: (seen.append(tokens), count_of_a(tokens))[1], JUMP):
        run()
    assert [int(t.free.sum(-1)[0]) for t in seen] == [4, 3, 2, 1] * 2


def test_supports_says_what_and_how():
    assert "scheduler.step" in supports(tiny_pipeline())
    assert "LLaDA2Pipeline" in supports(tiny_llada2())
    assert "UniformTextPipeline" in supports(tiny_uniform())
    assert "step_correct" in supports(tiny_gemma(DiscreteDDIMScheduler()))
    assert supports(tiny_pipeline().model) is None
    with pytest.raises(
        ValueError, match="(?s)DiffusionGemmaPipeline.*LLaDA2Pipeline.*callables.*@register_host.*CONTRIBUTING"
    ):
        find_host(torch.nn.Linear(1, 1))


def test_a_scheduler_of_another_version_is_an_error_that_says_which_work(monkeypatch):
    """As if diffusers took its arguments in another way."""
    monkeypatch.setattr(BlockRefinementScheduler, "step", lambda self, **settings: None)
    pipe, run = llada2()
    with (
        guide(pipe, count_of_a),
        pytest.raises(
            RuntimeError,
            match=r"LLaDA2Host cannot read a denoising step off BlockRefinementScheduler\.step: KeyError 'sample'; "
            r"tested with diffusers 0\.40 to",
        ),
    ):
        run()
