"""Every host on the real pipeline class around a tiny model."""

import functools
import inspect

import pytest
import torch
from diffusers import BlockRefinementScheduler, DiscreteDDIMScheduler, EntropyBoundScheduler

from redge_guidance import GuidanceConfig, guide
from redge_guidance.hosts import EXAMPLE, HOSTS, find_host, is_a, supports
from redge_guidance.text import text_mask
from redge_guidance.updates import Natural
from tests.helpers.tiny import WORDS, tiny_gemma, tiny_llada2, tiny_pipeline, tiny_uniform, word_tokenizer

RESERVED = [0, 2]  # [PAD], [MASK]
JUMP = GuidanceConfig(
    scale=1.5,
    estimator="straight_through",
    update=Natural(num_updates=1, step_size=1.0, damping=0.0),
    num_samples=1,
    support=None,
)


def llada2(prompt=("a b", "c"), **settings):
    pipe = tiny_llada2()
    defaults = {"gen_length": 8, "block_length": 4, "num_inference_steps": 4, "temperature": 1.0}
    defaults |= {"use_chat_template": False, "editing_threshold": None, "output_type": "seq"}

    def run(seed=0):
        return pipe(list(prompt), generator=torch.Generator().manual_seed(seed), **defaults | settings).sequences

    return pipe, run


def gemma(scheduler, **settings):
    pipe = tiny_gemma(scheduler)
    defaults = {"gen_length": 8, "num_inference_steps": 4, "temperature": 1.0, "eos_early_stop": False}
    defaults |= {"confidence_threshold": None, "output_type": "seq"}

    def run(seed=0):
        generator = torch.Generator().manual_seed(seed)
        return pipe(["a b", "c d"], generator=generator, **defaults | settings).sequences

    return pipe, run


def uniform(**scheduler):
    """Without a prompt and with the model's logits as they are, for the comparison with the exact optimum."""
    pipe = tiny_uniform(prediction_type="denoiser", **scheduler)

    def run(seed=0):
        return pipe(["", ""], generator=torch.Generator().manual_seed(seed)).sequences

    return pipe, run


CASES = {
    "uniform": lambda: uniform(),
    "uniform, corrector": lambda: uniform(corrector_steps=1, corrector_k=2),
    "llada2": lambda: llada2(),
    "llada2 editing": lambda: llada2(editing_threshold=0.3, max_post_steps=2),
    "llada2 greedy": lambda: llada2(temperature=0.0),
    "llada2 greedy method": lambda: llada2(sampling_method="greedy", temperature=0.5),
    "llada2 top-k, top-p, threshold": lambda: llada2(top_k=5, top_p=0.9, threshold=0.2, temperature=0.8),
    "llada2 no early stop, odd length": lambda: llada2(eos_early_stop=False, gen_length=5),
    "gemma block refinement": lambda: gemma(BlockRefinementScheduler()),
    "gemma block refinement, editing": lambda: gemma(BlockRefinementScheduler(editing_threshold=0.3)),
    "gemma ddim": lambda: gemma(DiscreteDDIMScheduler()),
    "gemma ddim, corrector": lambda: gemma(DiscreteDDIMScheduler(corrector_steps=1, corrector_k=2)),
    "gemma entropy bound": lambda: gemma(EntropyBoundScheduler()),
    "gemma static cache, early stop": lambda: gemma(
        DiscreteDDIMScheduler(), cache_implementation="static", eos_early_stop=True, confidence_threshold=0.5
    ),
}
every_case = pytest.mark.parametrize("make", CASES.values(), ids=CASES)


def count_of_a(tokens):
    """Sum over all positions that count of being `a`: linear in the one-hots."""
    table = torch.zeros(len(WORDS), 1)
    table[WORDS.index("a")] = 1.0
    return (tokens.embed(table)[..., 0] * tokens.attention_mask).sum(-1)


def all_of_a(tokens):
    table = torch.zeros(len(WORDS), 1)
    table[WORDS.index("a")] = 1.0
    return tokens.embed(table)[..., 0].sum(-1)


def spied(pipe):
    """What the scheduler's own methods are called with, in a list; spy before guiding."""
    calls = []

    def spy(name, original):
        @functools.wraps(original)
        def method(*args, **kwargs):
            calls.append((name, inspect.signature(original).bind(*args, **kwargs).arguments))
            return original(*args, **kwargs)

        setattr(pipe.scheduler, name, method)

    for name in ("step", "step_correct"):
        if hasattr(pipe.scheduler, name):
            spy(name, getattr(pipe.scheduler, name))
    return calls


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
    before = set(vars(pipe)), set(vars(pipe.scheduler)), hooks(pipe)

    def broken(tokens):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), guide(pipe, broken):
        run()
    assert (set(vars(pipe)), set(vars(pipe.scheduler)), hooks(pipe)) == before
    assert torch.equal(run(), bare)


def hooks(pipe):
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in pipe.model.modules())


@every_case
def test_reward_rises_with_scale(make):
    pipe, run = make()
    means = []
    for scale in (0.0, 2.0, 8.0):
        with guide(pipe, count_of_a, GuidanceConfig(scale=scale)):
            means.append(torch.stack([(run(seed) == WORDS.index("a")).float().mean() for seed in range(8)]).mean())
    assert means[1] > means[0] - 0.05  # eight texts of sixteen tokens
    assert means[2] > means[0] + 0.1


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
        free = tokens.free[:, -length:]
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
    with guide(pipe, lambda tokens: (seen.append(tokens), count_of_a(tokens))[1], JUMP):
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
        ValueError, match="(?s)LLaDA2Pipeline.*DiffusionGemmaPipeline.*callables.*tested with diffusers.*class MyHost"
    ):
        find_host(torch.nn.Linear(1, 1))


def test_a_scheduler_of_another_version_is_an_error_that_says_which_work(monkeypatch):
    """As if diffusers had renamed an argument."""

    def step(self, model_output, time, sample, **kwargs):
        raise AssertionError("not reached")

    monkeypatch.setattr(DiscreteDDIMScheduler, "step", step)
    pipe = tiny_uniform()
    with (
        guide(pipe, count_of_a),
        pytest.raises(
            RuntimeError,
            match=r"UniformTextHost cannot read a denoising step off DiscreteDDIMScheduler\.step: KeyError 'timestep'; "
            r"tested with diffusers 0\.40 to",
        ),
    ):
        pipe("")


def test_the_example_of_a_host_guides_a_pipeline_of_ones_own(monkeypatch):
    class MyPipeline:
        """Its scheduler is itself."""

        num_inference_steps = 1

        def __init__(self):
            self.scheduler, self.tokenizer = self, word_tokenizer()

        def set_timesteps(self, number):
            pass

        def step(self, model_output, timestep, sample, mask_token_id=2):
            return torch.where(sample == mask_token_id, model_output.argmax(-1), sample)

        def __call__(self):
            return self.step(torch.zeros(1, 3, len(WORDS)), 0, torch.tensor([[2, 4, 2]]), mask_token_id=2)

    monkeypatch.setattr("redge_guidance.hosts.HOSTS", list(HOSTS))
    exec(EXAMPLE, {})
    pipe = MyPipeline()
    bare = pipe().tolist()
    with guide(pipe, count_of_a):
        assert pipe().tolist() == [[3, 4, 3]]
    assert pipe().tolist() == bare == [[0, 4, 0]]
    assert len(EXAMPLE.splitlines()) < 25
