"""What users rely on, on CUDA as on the CPU; `REDGE_GUIDANCE_TEST_DEVICE=cpu` runs the same cases there."""

import copy
import json
import os
import re
from dataclasses import replace

import pytest
import torch

from redge_guidance import GuidanceConfig, LogitsGuidance, RelaxedTokens, generate, guide
from redge_guidance.cli import main
from redge_guidance.constraints import RegexConstraint
from redge_guidance.estimators import ESTIMATORS, StraightThrough
from redge_guidance.rewards import BlackBoxReward, LengthReward, LexicalReward, TextClassifierReward
from redge_guidance.stopping import Settled
from redge_guidance.tilting import guided_logits
from tests.helpers import hosts
from tests.helpers.images import tiny_image_pipeline
from tests.helpers.settings import plain_config
from tests.helpers.tiny import WORDS, tiny_llada2, tiny_pipeline, tiny_reward, tiny_uniform, word_tokenizer
from tests.helpers.watching import watched

DEVICE = os.environ.get("REDGE_GUIDANCE_TEST_DEVICE", "cuda")
PROMPTS = ["a b", "", "c [MASK] [MASK] d"]
FORM = RegexConstraint("a( [bc]){1,4}")

pytestmark = [
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA here"),
    pytest.mark.filterwarnings("default"),  # those of other packages differ by the device
]


def seeded(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


GENERATORS = {
    "of the device": lambda: seeded(5, DEVICE),
    "of the CPU": lambda: seeded(5),
    "a list": lambda: [seeded(k, DEVICE) for k in range(3)],
    "a list of the CPU": lambda: [seeded(k) for k in range(3)],
}
every_generator = pytest.mark.parametrize("generator", GENERATORS.values(), ids=GENERATORS)


def count_of_a(tokens):
    """Linear in the one-hots."""
    table = torch.zeros(len(WORDS), 1, device=tokens.weights.device)
    table[hosts.A] = 1.0
    return (tokens.embed(table)[..., 0] * tokens.attention_mask).sum(-1)


def classifier(device):
    return TextClassifierReward(copy.deepcopy(tiny_reward().model).to(device), word_tokenizer(), "good")


def drawn(device, reward=None, config=None, generator=None, prompts=PROMPTS, **settings):
    """Tokens on the CPU, and the trace, empty without a reward."""
    pipe, stop_when = tiny_pipeline().to(device), settings.pop("stop_when", None)
    settings = {"num_inference_steps": 4} | settings

    def run():
        return pipe(list(prompts), generator=seeded(5) if generator is None else generator, **settings).sequences.cpu()

    if reward is None:
        return run(), []
    with guide(pipe, reward, config, stop_when=stop_when) as handle:
        return run(), list(handle.trace)


# ---- estimators ----


def sampled(estimator, logits, device):
    """The sample and its gradient for a fixed slope, on the CPU; zeros where there is none."""
    leaf = logits.to(device).requires_grad_()
    sample = estimator(leaf, generator=seeded(3))
    slope = torch.randn(logits.shape, generator=seeded(4)).to(sample)
    grad = torch.autograd.grad(sample, leaf, slope)[0] if sample.requires_grad else torch.zeros_like(leaf)
    assert (sample.device.type, grad.device.type) == (torch.device(device).type,) * 2
    assert sample.dtype == grad.dtype == logits.dtype
    return sample.detach().cpu(), grad.cpu()


def distance(expected, found):
    """Relative."""
    expected, found = expected.double(), found.double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-9))


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("shape", [(2, 3, 11), (64, 5000)])
def test_samples_and_gradients_are_those_of_the_cpu(name, shape):
    estimator, logits = ESTIMATORS[name](), 2 * torch.randn(shape, generator=seeded())
    here, there = (sampled(estimator, logits, device) for device in ("cpu", DEVICE))
    same = here[0].argmax(-1) == there[0].argmax(-1)  # one of many may lie on an edge of rounding
    assert same.all() if len(shape) == 3 else same.sum() >= 62
    for ours, theirs in zip(here, there, strict=True):
        assert distance(ours[same], theirs[same]) < 5e-3
    if estimator.one_hot:
        assert torch.equal(there[0], torch.nn.functional.one_hot(there[0].argmax(-1), shape[-1]).float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_half_precision(name, dtype):
    logits = (2 * torch.randn(32, 100, generator=seeded())).to(dtype)
    here, there = (sampled(ESTIMATORS[name](), logits, device) for device in ("cpu", DEVICE))
    same = here[0].argmax(-1) == there[0].argmax(-1)
    assert same.sum() >= 31
    assert distance(here[1][same], there[1][same]) < 2e-2


def test_generators_of_the_device_repeat():
    logits = torch.randn(8, 1000, device=DEVICE)
    for kind in ESTIMATORS.values():
        assert torch.equal(*(kind()(logits, generator=seeded(1, DEVICE)) for _ in range(2)))


def test_a_category_of_probability_0_is_never_drawn():
    """At every number at which a sum over categories stands, also where sums round in another order."""
    logits = torch.randn(4096, generator=seeded())
    logits[torch.rand(4096, generator=seeded(1)) < 0.5] = -torch.inf
    soft = logits.softmax(-1).to(DEVICE).expand(4096, -1).contiguous()
    sums = soft.cumsum(-1)[0]
    found = StraightThrough().draw(soft, (sums / sums[-1]).clamp(max=1 - 2**-24)[:, None])
    assert (soft.gather(-1, found) > 0).all()


# ---- guided texts ----


@every_generator
def test_scale_zero_gives_the_tokens_of_the_bare_pipeline(generator):
    bare, _ = drawn(DEVICE, generator=generator())
    guided, trace = drawn(DEVICE, classifier(DEVICE), GuidanceConfig(scale=0), generator())
    assert torch.equal(guided, bare)
    assert not trace


@every_generator
def test_the_same_run_twice_is_the_same(generator):
    (first, one), (second, other) = (drawn(DEVICE, classifier(DEVICE), None, generator()) for _ in range(2))
    assert torch.equal(first, second)
    assert [step.reward for step in one] == pytest.approx([step.reward for step in other], rel=1e-4, abs=1e-4)


def test_unguided_tokens_of_a_generator_of_the_cpu_are_those_of_the_cpu():
    assert torch.equal(drawn(DEVICE)[0], drawn("cpu")[0])


def test_the_batch_does_not_matter_to_a_list_of_generators():
    config = GuidanceConfig(num_draws=2)
    together, _ = drawn(DEVICE, count_of_a, config, [seeded(k, DEVICE) for k in range(3)])
    for k, prompt in enumerate(PROMPTS):
        alone, _ = drawn(DEVICE, count_of_a, config, [seeded(k, DEVICE)], [prompt])
        assert torch.equal(alone[0], together[k])


def test_logits_of_the_soft_estimator_are_those_of_the_cpu():
    pipe = tiny_pipeline()
    steps, _ = watched(pipe, lambda: pipe(PROMPTS, generator=seeded(), num_inference_steps=4))
    config = plain_config(estimator="soft", num_draws=1, kl_budget=0.3)
    for step in steps:
        tensors = {name: value.to(DEVICE) for name, value in vars(step).items() if torch.is_tensor(value)}
        there, figures = guided_logits(replace(step, **tensors), classifier(DEVICE), config, seeded(1, DEVICE))
        here, expected = guided_logits(step, classifier("cpu"), config, seeded(1))
        torch.testing.assert_close(there.cpu().log_softmax(-1), here.log_softmax(-1), rtol=0, atol=1e-4)
        assert figures.kl == pytest.approx(expected.kl, rel=1e-3, abs=1e-5)


SETTINGS = {
    "defaults": {},
    "target": {"target": -0.3},
    "target within a budget": {"target": -0.1, "kl_budget": 0.1},
    "kl_budget": {"kl_budget": 0.2},
    "scale and budget": {"scale": 20.0, "kl_budget": 0.1},
    "asked every time": {"every": 1, "warm_start": 0.0},
    "asked every third time": {"every": 3, "warm_start": 1.0},
    "linear schedule": {"schedule": "linear", "scale": 3.0},
    "early, then none": {"schedule": "early", "start": 0.25},
    "whole vocabulary": {"support": None},
    "four tokens": {"support": 4},
    "adam": {"update": "adam", "scale": 2.0},
    "stop_when": {"stop_when": Settled(tolerance=10.0, patience=1), "every": 1},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_settings_do_what_they_do_on_the_cpu(settings):
    """With an estimator that draws nothing all figures can be compared."""
    stop_when = settings.get("stop_when")
    config = GuidanceConfig(estimator="soft", num_draws=1, **{k: v for k, v in settings.items() if k != "stop_when"})
    results = [
        drawn(device, classifier(device), config, num_inference_steps=6, stop_when=stop_when)
        for device in ("cpu", DEVICE)
    ]
    assert torch.equal(results[0][0], results[1][0])
    assert len(results[0][1]) == len(results[1][1]) > 0
    for here, there in zip(results[0][1], results[1][1], strict=True):
        for ours, theirs in zip(here.sequences, there.sequences, strict=True):
            assert (ours.free, ours.asked, ours.stopped) == (theirs.free, theirs.asked, theirs.stopped)
            assert theirs.kl == pytest.approx(ours.kl, rel=2e-2, abs=1e-3)
            assert theirs.reward == pytest.approx(ours.reward, rel=2e-2, abs=1e-3)


def test_sequences_drop_out_one_by_one():
    prompts = ["a a a a a [MASK]", "b b b [MASK] [MASK] [MASK]", "[MASK] a"]
    _, trace = drawn(DEVICE, count_of_a, GuidanceConfig(target=2.0, every=1), prompts=prompts, num_inference_steps=6)
    asked = [[one.asked for one in step.sequences] for step in trace]
    assert asked[0] == [True] * 3
    assert not all(map(all, asked))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_guides(name):
    _, trace = drawn(DEVICE, count_of_a, GuidanceConfig(scale=5.0, estimator=name))
    assert trace[0].kl > 0


REWARDS = {
    "classifier": lambda: classifier(DEVICE),
    "classifier on the CPU": lambda: classifier("cpu"),
    "word": lambda: LexicalReward("c"),
    "length": lambda: LengthReward(maximum=3),
    "strings": lambda: BlackBoxReward(lambda text: text.count("a")),
    "sum": lambda: classifier(DEVICE) + 0.5 * LexicalReward("c") + BlackBoxReward(lambda text: text.count("a")),
}


@pytest.mark.filterwarnings("ignore:.*moved nothing in this call")
@pytest.mark.parametrize("make", REWARDS.values(), ids=REWARDS)
def test_every_kind_of_reward_guides(make):
    _, trace = drawn(DEVICE, make(), GuidanceConfig(scale=4.0))
    assert any(step.kl > 0 for step in trace)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision(dtype):
    pipe = tiny_pipeline().to(DEVICE, dtype)
    with guide(pipe, classifier(DEVICE), GuidanceConfig(scale=4.0)) as handle:
        pipe(PROMPTS, generator=seeded(), num_inference_steps=3)
    assert handle.trace[0].kl > 0


def test_autocast():
    with torch.autocast(torch.device(DEVICE).type, torch.bfloat16):
        _, trace = drawn(DEVICE, classifier(DEVICE), GuidanceConfig(scale=4.0))
    assert trace[0].kl > 0


def test_inference_mode():
    outside, _ = drawn(DEVICE, classifier(DEVICE), GuidanceConfig(num_draws=2))
    pipe, reward = tiny_pipeline().to(DEVICE), classifier(DEVICE)
    with torch.inference_mode(), guide(pipe, reward, GuidanceConfig(num_draws=2)):
        inside = pipe(PROMPTS, generator=seeded(5), num_inference_steps=4).sequences.cpu()
    assert torch.equal(inside, outside)


def test_one_call_in_a_loop():
    guided = LogitsGuidance(count_of_a, GuidanceConfig(scale=5.0), tokenizer=word_tokenizer(), num_steps=3)
    ids = torch.tensor([[3, 2, 2, 4], [2, 2, 2, 2]], device=DEVICE)
    logits = torch.randn(2, 4, len(WORDS), generator=seeded()).to(DEVICE)
    moved = guided(logits, ids, generator=seeded(0, DEVICE))
    assert (moved.device, moved.dtype, moved.shape) == (logits.device, logits.dtype, logits.shape)
    free = ids == hosts.MASK
    assert (moved.softmax(-1) - logits.softmax(-1))[free][:, hosts.A].min() > 0


# ---- constraints, records and the command ----


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_uniform, tiny_llada2])
@pytest.mark.parametrize("rewarded", [False, True])
def test_constraints_hold(make, rewarded):
    reward = classifier(DEVICE) & FORM if rewarded else FORM
    settings = {"gen_length": 6, "use_chat_template": False} if make is tiny_llada2 else {"num_inference_steps": 3}
    prompts = ["a", "a b"] if make is tiny_llada2 else ["", "a", "a [MASK] c"]
    found = list(generate(make().to(DEVICE), prompts, reward, samples_per_prompt=2, **settings))
    assert len(found) == 2 * len(prompts)
    texts = [record.text for record in found]
    if make is tiny_llada2:  # whose texts come without their prompts
        texts = [f"{record.prompt} {record.text}" for record in found]
    assert all(re.fullmatch(FORM.pattern, text) for text in texts), texts


def test_what_the_memory_does_not_hold_is_halved(caplog):
    """By an error of the allocator itself."""
    pipe, sizes = tiny_pipeline().to(DEVICE), []
    expected = [r.text for r in generate(pipe, PROMPTS, classifier(DEVICE), num_inference_steps=3, batch_size=1)]

    def hook(module, args, kwargs):
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        sizes.append(len(ids))
        if len(ids) > 1:
            torch.empty(2**50, dtype=torch.uint8, device=DEVICE)

    pipe.model.register_forward_pre_hook(hook, with_kwargs=True)
    found = [r.text for r in generate(pipe, PROMPTS, classifier(DEVICE), num_inference_steps=3, batch_size=3)]
    assert sizes[0] == 3
    assert sizes[-1] == 1
    assert "out of memory" in caplog.text
    assert found == expected


def test_the_command(tmp_path):
    device = "cuda:0" if DEVICE == "cuda" else DEVICE
    fast = ["--samples-per-prompt", "2", "--num-inference-steps", "3", "--label", "negative", "--device", device]
    assert main(["generate", *fast, "--output", str(tmp_path / "out.jsonl")]) == 0
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(records) == 2
    assert all(record["text"] and record["reward"] <= 0 for record in records)


# ---- every host, and images ----


@pytest.mark.parametrize("name", hosts.ONE_OF_EACH)
def test_every_host_is_guided(name, monkeypatch):
    """With generators of the device, which all pipelines take."""
    pipe, run = hosts.ONE_OF_EACH[name]()
    pipe.to(DEVICE)
    monkeypatch.setattr(hosts, "seeded", lambda seed=0: seeded(seed, DEVICE))
    try:
        bare = run()
    except (RuntimeError, NotImplementedError) as error:
        if name in ("masked", "uniform", "images"):
            raise
        pytest.skip(f"the bare pipeline fails there: {error}")
    reward = hosts.brightness if hasattr(pipe, "vqvae") else count_of_a
    with guide(pipe, reward, GuidanceConfig(scale=0)):
        assert torch.equal(run(), bare)
    with guide(pipe, reward, GuidanceConfig(scale=50.0, num_draws=2, support=4)) as handle:
        run()
    assert any(step.kl > 0 for step in handle.trace)


@pytest.mark.parametrize("order", ["random", "confidence", "halton"])
def test_images(order):
    pipe = tiny_image_pipeline(unmasking_order=order).to(DEVICE)

    def images(generator):
        return pipe(class_labels=[0, 2], generator=generator, output_type="pt").images.float().cpu()

    bare = images(seeded(1))
    with guide(pipe, hosts.brightness, GuidanceConfig(scale=0)):
        torch.testing.assert_close(images(seeded(1)), bare, rtol=0, atol=5e-3)
    with guide(pipe, hosts.brightness, GuidanceConfig(scale=200.0), decode_chunk_size=2):
        assert images(seeded(1)).mean() > bare.mean()
        for generator in (seeded(1, DEVICE), [seeded(k) for k in range(2)]):
            assert images(generator).shape == bare.shape


def test_samples_move_between_devices_with_their_gradients():
    weights = torch.randn(4, len(WORDS), generator=seeded()).softmax(-1).to(DEVICE).requires_grad_()
    ids = torch.full((2, 2), 3, device=DEVICE)
    tokens = RelaxedTokens(ids, torch.ones_like(ids, dtype=torch.bool), weights, hard=False)
    value = tokens.to("cpu").embed(torch.randn(len(WORDS), 3, generator=seeded())).square().sum()
    (grad,) = torch.autograd.grad(value, weights)
    assert (grad.device, grad.shape) == (weights.device, weights.shape)
    assert grad.abs().sum() > 0
