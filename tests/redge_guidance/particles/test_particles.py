"""What particles come to at the ends of their settings, what is refused, and that a copy is a copy of everything."""

import warnings

import numpy as np
import pytest
import torch
from diffusers import DiscreteDDIMScheduler, EntropyBoundScheduler

from redge_guidance import GuidanceConfig, generate, guide
from redge_guidance.constraints import RegexConstraint
from redge_guidance.course import Course
from redge_guidance.particles import Found, ParticleConfig, best_of_n, particles, search
from redge_guidance.reward import Reward
from redge_guidance.rewards import BlackBoxReward, LexicalReward, TextClassifierReward
from redge_guidance.tilts import Kept, Tilts
from redge_guidance.trace import SequenceFigures, of_sequences
from tests.helpers.hosts import any_reward, llada2, masked_image, seeded
from tests.helpers.tiny import tiny_gemma, tiny_llada2, tiny_pipeline, tiny_reward, tiny_uniform

GUIDED = GuidanceConfig(scale=2.0, every=2)
makers = pytest.mark.parametrize("make", [tiny_pipeline, tiny_uniform], ids=["masked", "uniform"])
four = ParticleConfig(num_particles=4)


def generators(count, seed=0):
    return [seeded(100 * seed + k) for k in range(count)]


@pytest.fixture(scope="module")
def reward():
    return tiny_reward()


# ---- the ends ----


@makers
def test_one_particle_is_guidance(make, reward):
    pipe = make()
    with guide(pipe, reward, GUIDED, seed=3):
        expected = pipe(["a b"] * 6, generator=generators(6)).sequences
    with particles(pipe, reward, ParticleConfig(num_particles=1), GUIDED, seed=3) as handle:
        assert torch.equal(pipe(["a b"] * 6, generator=generators(6)).sequences, expected)
    assert handle.outcome.log_weights.tolist() == [[0.0]] * 6
    assert len(handle.trace) > 0


@makers
def test_without_resampling_it_is_the_bare_sampler_and_best_of_n(make, reward):
    pipe, temperature = make(), 0.5
    bare = pipe(["a b"] * 8, generator=generators(8))
    config = ParticleConfig(num_particles=4, resample_below=0, temperature=temperature)
    with particles(pipe, reward, config) as handle:
        output = pipe(["a b"] * 8, generator=generators(8))
    assert torch.equal(output.sequences, bare.sequences)
    scores = reward.score(bare.texts).double().view(2, 4)
    torch.testing.assert_close(handle.outcome.rewards, scores, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(handle.outcome.log_weights, (scores / temperature).log_softmax(-1), atol=1e-3, rtol=1e-4)
    expected = (scores / temperature).logsumexp(-1) - np.log(4)
    torch.testing.assert_close(handle.outcome.log_z, expected, atol=1e-3, rtol=1e-4)
    assert handle.outcome.best.tolist() == scores.argmax(-1).tolist()
    assert not any(bool(step.resampled.any()) for step in handle.steps)
    assert handle.trace is None


@makers
def test_a_pipeline_is_as_it_was_afterwards(make, reward):
    pipe = make()
    kind, before = type(pipe), pipe(["a"] * 4, generator=generators(4)).sequences
    with particles(pipe, reward, four):
        pipe(["a"] * 4, generator=generators(4))
    assert type(pipe) is kind
    assert torch.equal(pipe(["a"] * 4, generator=generators(4)).sequences, before)


def test_the_same_seeds_give_the_same_particles_and_another_resamples_otherwise(reward):
    pipe, found = tiny_pipeline(), []
    config = ParticleConfig(num_particles=4, resample_below=1.0)
    for seed in (1, 1, 2):
        with particles(pipe, reward, config, seed=seed):
            found.append(pipe([""] * 32, generator=seeded()).sequences)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_group_does_not_know_of_its_batch(reward):
    pipe, config = tiny_pipeline(), ParticleConfig(num_particles=4, resample_below=1.0)

    def run(prompts, first):
        with particles(pipe, reward, config, GUIDED) as handle:
            sequences = pipe(prompts, generator=[seeded(first + k) for k in range(len(prompts))]).sequences
        return sequences, handle.outcome

    together, of_both = run(["a b"] * 4 + ["c d"] * 4, 0)
    for group, prompt in enumerate(["a b", "c d"]):
        alone, outcome = run([prompt] * 4, 4 * group)
        assert torch.equal(alone, together[4 * group : 4 * group + 4])
        torch.testing.assert_close(outcome.log_z[0], of_both.log_z[group], atol=1e-4, rtol=1e-4)


def test_resampling_raises_what_is_asked_for(reward):
    pipe = tiny_pipeline()
    bare = reward.score(pipe([""] * 64, generator=seeded()).texts).mean()
    with particles(pipe, reward, ParticleConfig(num_particles=8, resample_below=1.0)):
        assert reward.score(pipe([""] * 64, generator=seeded()).texts).mean() > bare + 0.5


@makers
@pytest.mark.parametrize("potential", ["difference", "sum"])
def test_particles_are_resampled_after_every_step_but_the_last(make, potential, reward):
    pipe, config = make(), ParticleConfig(num_particles=4, resample_below=1.0, potential=potential)
    with particles(pipe, reward, config) as handle:
        pipe([""] * 32, generator=seeded(), num_inference_steps=5)
    resampled = [bool(step.resampled.any()) for step in handle.steps]
    assert resampled == [True, True, True, True, False]


def test_rewards_of_strings_are_asked_about_draws():
    pipe, shown = tiny_pipeline(), []

    def count(text):
        shown.append(text)
        return float(text.count("a"))

    with particles(pipe, BlackBoxReward(count), ParticleConfig(num_particles=8, num_completions=3)) as handle:
        texts = pipe(["b"] * 8, generator=seeded(), num_inference_steps=4).texts
    assert not any("[MASK]" in text for text in shown)
    assert handle.outcome.rewards[0].tolist() == [float(text.count("a")) for text in texts]
    assert len(shown) > 3 * 8  # of texts that it was asked about before it keeps the answer


def test_every_and_start_say_when_the_reward_is_asked(reward):
    pipe = tiny_pipeline()
    with particles(pipe, reward, ParticleConfig(num_particles=2, every=2, start=0.4)) as handle:
        pipe([""] * 4, generator=seeded(), num_inference_steps=5)
    assert [step.rewards is not None for step in handle.steps] == [False, False, True, False, True]
    assert [round(step.progress, 3) for step in handle.steps] == [0.0, 0.2, 0.4, 0.6, 0.8]


def test_images():
    pipe, _ = masked_image()
    with particles(pipe, any_reward(pipe), ParticleConfig(num_particles=2, temperature=0.01)) as handle:
        pipe(class_labels=[0, 0, 2, 2], guidance_scale=2.0, generator=seeded(), output_type="latent")
    assert handle.outcome.rewards.shape == (2, 2)
    with (
        particles(pipe, any_reward(pipe), ParticleConfig(num_particles=2, resample_below=0.0)),
        pytest.raises(ValueError, match="must be of one prompt, or class"),
    ):
        pipe(class_labels=[0, 1], guidance_scale=2.0, generator=seeded(), output_type="latent")


# ---- what a copy takes along ----


def test_what_guidance_keeps_goes_along():
    free, generator = torch.ones(3, 2, dtype=torch.bool), seeded()
    values = torch.randn(6, 4, generator=generator)
    tilts = Tilts()
    tilts.keep(free, Kept(values, torch.ones(6, 1), torch.ones(6, 1), None), torch.ones(3, dtype=torch.bool))
    tilts.reorder(torch.tensor([2, 1, 2]))
    _, kept = tilts.at(free)
    assert torch.equal(kept.values.view(3, 2, 4), values.view(3, 2, 4)[[2, 1, 2]])


def test_the_course_of_a_sequence_goes_along():
    course, free = Course(every=3), torch.ones(3, 2, dtype=torch.bool)
    plan = course.plan(free)
    figures = [SequenceFigures(k, 0.0, 0.0, 0.0, 2, ceiling=float(k), at_rest=k == 2) for k in range(3)]
    course.note(plan, of_sequences(0.0, figures))
    course.reorder(torch.tensor([2, 1, 1]))
    assert course.ceilings(torch.ones(3, dtype=torch.bool)).tolist() == [2.0, 1.0, 1.0]
    asked = [course.plan(free).asked.tolist() for _ in range(6)]
    assert [row[0] for row in asked] == [False] * 5 + [True]  # at rest: at every second of every third
    assert [row[2] for row in asked] == [False, False, True, True, True, True]


# ---- one call ----


def test_search_gives_the_best_of_every_prompt_whatever_the_batch(reward):
    pipe, config = tiny_pipeline(), ParticleConfig(num_particles=4, resample_below=1.0)
    prompts = ["a b", "", "c d [MASK]", "a"]
    found = list(search(pipe, prompts, reward, config, GUIDED, batch_size=8, seed=1))
    alone = [next(search(pipe, [prompt], reward, config, GUIDED, seed=1)) for prompt in prompts]
    assert [one.index for one in found] == [0, 1, 2, 3]
    for one, other in zip(found, alone, strict=True):
        assert one.samples == other.samples
        np.testing.assert_allclose(one.rewards, reward.score(one.samples), atol=1e-4)
        assert one.best == one.samples[int(np.argmax(one.rewards))]
        assert sum(np.exp(one.log_weights)) == pytest.approx(1.0)
        assert one.log_z == pytest.approx(other.log_z, abs=1e-3)


def test_best_of_n_is_the_samples_of_generate(reward):
    pipe, prompts = tiny_pipeline(), ["a", "b c", ""]
    records = list(generate(pipe, prompts, reward, GuidanceConfig(scale=0), samples_per_prompt=5, seed=2))
    for one in best_of_n(pipe, prompts, reward, 5, seed=2, batch_size=4):
        mine = [record for record in records if record.index == one.index]
        assert one.samples == [record.text for record in mine]
        assert one.rewards == pytest.approx([record.reward for record in mine], abs=1e-5)
        assert one.reward == max(one.rewards)


def test_best_of_n_asks_the_reward_once_for_every_sample(monkeypatch):
    reward, asked = TextClassifierReward.from_pretrained("builtin:sentiment", label="positive"), []
    forward = reward.model.forward

    def counted(**inputs):
        asked.append(len(inputs["attention_mask"]))
        return forward(**inputs)

    monkeypatch.setattr(reward.model, "forward", counted)
    list(best_of_n(tiny_pipeline(), ["a", "b c"], reward, 3, batch_size=2))
    assert sum(asked) == 6


def test_rewards_that_judge_no_texts_are_refused_before_anything_is_drawn():
    pipe = tiny_pipeline()
    pipe.model = None
    for reward in (lambda tokens: tokens.weights.sum((1, 2)), any_reward(pipe) + LexicalReward("a")):
        with pytest.raises(ValueError, match="judges no finished texts"):
            best_of_n(pipe, "a", reward, 2)
    with pytest.raises(ValueError, match="got a constraint alone"):
        best_of_n(pipe, "a", RegexConstraint("a*"), 2)


def test_best_of_n_takes_functions_that_generate_takes():
    lengths = [lambda t: -float(len(t.split())), lambda t: [-float(len(one.split())) for one in t]]
    of_one = BlackBoxReward(lambda text: -float(len(text.split())))
    (wanted,) = best_of_n(tiny_pipeline(), "a", of_one, 4)
    for length in lengths:
        with pytest.warns(UserWarning, match="is taken for a function of strings"):
            (found,) = best_of_n(tiny_pipeline(), "a", length, 4)
        assert found == wanted


def veto(text):
    return -float("inf") if "b" in text.split() else float(len(text))


@pytest.mark.parametrize(
    "reward",
    [
        veto,
        BlackBoxReward(veto),
        BlackBoxReward(lambda text: float("nan") if "b" in text.split() else float(len(text))),
    ],
)
def test_a_function_of_texts_may_rule_one_out(reward):
    pipe = tiny_pipeline()
    with pytest.warns(UserWarning, match="`reward` is not finite for"):
        (found,) = search(pipe, "", reward, ParticleConfig(8, every=99), seed=3)
    out = ["b" in text.split() for text in found.samples]
    assert 0 < sum(out) < 8
    assert [weight == -np.inf for weight in found.log_weights] == out
    assert "b" not in found.best.split()
    with pytest.warns(UserWarning, match="`reward` is not finite for .* of 8 samples of prompt 0, which are never"):
        (found,) = best_of_n(pipe, "", reward, 8, seed=3)
    assert [not np.isfinite(one) for one in found.rewards] == ["b" in text.split() for text in found.samples]
    assert found.reward == max(float(len(text)) for text in found.samples if "b" not in text.split())
    with pytest.raises(ValueError, match="must return a finite number"):  # where none competes it is an error
        list(generate(pipe, "b", reward, GuidanceConfig(scale=0.0)))


def test_what_is_infinite_is_no_target_and_a_weight_of_0_rules_nothing_out(reward):
    pipe, endless = tiny_pipeline(), BlackBoxReward(lambda text: float("inf") if "b" in text.split() else 0.0)
    with pytest.warns(UserWarning, match="not finite"):
        (found,) = best_of_n(pipe, "", endless, 8, seed=3, target=5.0, batch_size=8)
    assert len(found.samples) == 8
    assert found.reward == 0
    unweighted = reward + 0 * BlackBoxReward(veto)
    (found,) = best_of_n(pipe, "", unweighted, 8, seed=3)
    assert np.isfinite(found.rewards).all()
    (found,) = search(pipe, "", unweighted, ParticleConfig(8), seed=3)
    assert np.isfinite(found.rewards).all()


def test_what_is_ruled_out_is_said_once_and_a_veto_may_fall_on_any_text():
    pipe = tiny_pipeline()

    def often(text):
        return 1.0 if text.startswith("c") else veto(text)

    with pytest.warns(UserWarning, match="never the best") as told:
        assert len(list(best_of_n(pipe, ["", "c", "a"], BlackBoxReward(often), 8, seed=3))) == 3
    assert sum("never the best" in str(one.message) for one in told) == 1
    with pytest.warns(UserWarning, match="is taken for a function of strings"):
        (found,) = best_of_n(pipe, "", lambda t: -float("inf") if len(t) == len("Nothing much.") else 1.0, 2)
    assert found.reward == 1


def test_a_reward_without_score_is_refused(reward):
    class OfTokens(Reward):
        def __call__(self, tokens):
            return tokens.weights.sum((1, 2))

    for one in (OfTokens(), reward + OfTokens()):
        with pytest.raises(ValueError, match="OfTokens judges no finished texts"):
            best_of_n(tiny_pipeline(), "a", one, 2)


def test_a_prompt_none_of_whose_samples_is_worth_anything_is_an_error():
    with pytest.raises(ValueError, match="all 3 samples of prompt 0 have a reward that is NaN or infinite"):
        list(best_of_n(tiny_pipeline(), "b", veto, 3))


def test_greedy_sampling_has_no_ratio(reward):
    pipe = tiny_pipeline()
    with particles(pipe, reward, ParticleConfig(num_particles=1), GUIDED) as handle:
        pipe(["a"] * 2, generator=seeded(), temperature=0.0)
    torch.testing.assert_close(handle.outcome.log_z, handle.outcome.rewards[:, 0], atol=1e-5, rtol=1e-5)


def test_of_a_prompt_that_has_its_target_no_more_are_drawn(reward):
    pipe = tiny_pipeline()
    found = {one.prompt: one for one in best_of_n(pipe, ["a a a a", "b"], reward, 40, target=-0.01, batch_size=4)}
    lengths = {prompt: len(one.samples) for prompt, one in found.items()}
    assert lengths["a a a a"] < 40
    for one in found.values():
        assert (one.reward >= -0.0101) == (len(one.samples) < 40)


# ---- bad input ----


@pytest.mark.parametrize(
    ("prompts", "settings", "words"),
    [
        (["a"] * 6, {}, "`num_particles` must divide the batch, got 4 for 6"),
        (["a", "a", "b", "b"], {}, "must be of one prompt"),
        (["a"] * 4, {"temperature": 0.0}, "`temperature` 0 draws the likeliest token everywhere"),
    ],
)
def test_what_cannot_be_a_group(prompts, settings, words, reward):
    pipe = tiny_pipeline()
    with particles(pipe, reward, four), pytest.raises(ValueError, match=words):
        pipe(prompts, generator=seeded(), **settings)
    assert len(pipe(["a"] * 3, generator=seeded()).texts) == 3


@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
def test_one_that_is_not_finite_dies_and_that_is_said_once(bad):
    pipe = tiny_pipeline()

    def reward(tokens):
        values = tokens.embed(torch.zeros(len(pipe.tokenizer), 1)).sum((1, 2))
        values[1] = bad
        return values

    with particles(pipe, reward, ParticleConfig(num_particles=4, resample_below=0)) as handle:
        with pytest.warns(UserWarning, match="not finite for 1 of 4") as told:
            pipe([""] * 4, generator=seeded())
        assert len(told) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pipe([""] * 4, generator=seeded(1))
    weights = handle.outcome.log_weights.exp()[0]
    torch.testing.assert_close(weights, torch.tensor([1 / 3, 0, 1 / 3, 1 / 3], dtype=torch.float64))
    assert handle.outcome.best.tolist() == [0]


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
def test_one_that_was_once_not_finite_stays_dead(bad, potential):
    pipe, calls = tiny_pipeline(), []

    def reward(tokens):
        values = tokens.embed(torch.zeros(len(pipe.tokenizer), 1)).sum((1, 2))
        values[1] = values[1] if calls else bad
        calls.append(1)
        return values

    config = ParticleConfig(num_particles=4, potential=potential)
    with particles(pipe, reward, config) as handle, pytest.warns(UserWarning, match="not finite for 1 of 4"):
        pipe([""] * 4, generator=seeded(), num_inference_steps=4)
    weights = handle.outcome.log_weights.exp()[0]
    torch.testing.assert_close(weights, torch.tensor([1 / 3, 0, 1 / 3, 1 / 3], dtype=torch.float64))


def test_the_best_of_those_that_were_found_is_alive():
    found = Found(0, "a", ["x", "y", "z"], [float("nan"), 1.0, float("inf")])
    assert (found.best, found.reward) == ("y", 1.0)


def _told():
    return pytest.warns(UserWarning, match="not finite for 4 of 4")


def test_a_group_without_any_weight_is_an_error():
    pipe = tiny_pipeline()

    def reward(tokens):
        return torch.full((len(tokens),), float("nan"))

    with particles(pipe, reward, four), _told(), pytest.raises(ValueError, match="all 4 particles"):
        pipe([""] * 4, generator=seeded())


def test_what_is_no_reward_or_setting(reward):
    pipe = tiny_pipeline()
    with pytest.raises(ValueError, match="`config` must be a ParticleConfig"):
        particles(pipe, reward, GuidanceConfig())
    with pytest.raises(ValueError, match="`guidance` must be a GuidanceConfig"):
        particles(pipe, reward, four, four)
    for guidance in (None, GuidanceConfig(scale=0.0)):
        with pytest.raises(ValueError, match='`intermediate` "guidance" takes the rewards'):
            particles(pipe, reward, ParticleConfig(intermediate="guidance"), guidance)
    with pytest.raises(ValueError, match="`intermediate` must be one of completions, guidance"):
        ParticleConfig(intermediate="both")
    with pytest.raises(ValueError, match="`target` must be a number, in units of the reward"):
        ParticleConfig(target="high")
    with particles(pipe, reward + 2 * LexicalReward("a"), four) as handle:
        texts = pipe(["b"] * 4, generator=seeded()).texts
    expected = (reward + 2 * LexicalReward("a")).score(texts).double()
    torch.testing.assert_close(handle.outcome.rewards[0], expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(RuntimeError, match="its last call did not come to its end"):
        _ = particles(tiny_pipeline(), reward, four).outcome
    with pytest.raises(ValueError, match="must return shape"), particles(pipe, lambda tokens: torch.zeros(()), four):
        pipe([""] * 4)


def test_a_host_that_cannot_exchange_sequences_says_what_to_do():
    pipe, run = llada2(("a b", "a b"))
    config = ParticleConfig(num_particles=2, temperature=1e-4, resample_below=1.0)
    with particles(pipe, any_reward(pipe), config), pytest.raises(RuntimeError, match="eos_early_stop=False"):
        run()
    with pytest.raises(ValueError, match="call it under `particles`"):
        search(pipe, "a", any_reward(pipe), config)


KEPT = {"gen_length": 8, "temperature": 1.0, "eos_early_stop": False}
RESERVING = {  # hosts that may draw tokens which guidance forbids
    "llada2": (
        tiny_llada2,
        KEPT | {"block_length": 4, "num_inference_steps": 4, "use_chat_template": False, "editing_threshold": None},
    ),
    "gemma": (
        lambda: tiny_gemma(DiscreteDDIMScheduler()),
        KEPT | {"num_inference_steps": 4, "confidence_threshold": None},
    ),
}


@pytest.mark.parametrize(("make", "settings"), RESERVING.values(), ids=list(RESERVING))
def test_what_guidance_has_left_to_the_host_has_no_ratio(make, settings):
    """A target that every text has: nothing is moved, and what a text weighs is its reward."""
    pipe, guidance = make(), GuidanceConfig(target=-100.0, kl_budget=1.0)
    with particles(pipe, any_reward(pipe), ParticleConfig(num_particles=2, resample_below=0), guidance) as handle:
        pipe(["a b"] * 4, generator=seeded(1), **settings)
    assert max(step.kl for step in handle.trace) < 1e-6
    expected = handle.outcome.rewards.logsumexp(-1) - np.log(2)
    torch.testing.assert_close(handle.outcome.log_z, expected, atol=1e-5, rtol=0)


def test_guided_steps_that_exchange_tokens_are_refused(reward):
    pipe = tiny_uniform(corrector_steps=2, corrector_k=2)
    with particles(pipe, reward, four) as handle:
        pipe(["a"] * 8, generator=seeded())
    assert handle.outcome.log_z.isfinite().all()
    with particles(pipe, reward, four, GUIDED), pytest.raises(ValueError, match="exchange tokens drawn before"):
        pipe(["a"] * 8, generator=seeded())


def test_without_an_end_there_is_no_outcome(reward):
    """Of a sampler that leaves positions open, of a call that was interrupted, and of a handle that was removed."""
    pipe = tiny_gemma(EntropyBoundScheduler())
    settings = KEPT | {"num_inference_steps": 4, "confidence_threshold": None}
    with particles(pipe, any_reward(pipe), ParticleConfig(num_particles=2, resample_below=0)) as handle:
        with pytest.warns(UserWarning, match="left positions open"):
            pipe(["a b"] * 4, generator=seeded(1), **settings)
        with pytest.raises(RuntimeError, match="did not come to its end"):
            _ = handle.outcome

    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = True
        return {}

    pipe = tiny_pipeline()
    with particles(pipe, reward, four) as handle:
        pipe(["a"] * 4, generator=seeded())
        with pytest.warns(UserWarning, match="left positions open"):
            pipe(["a"] * 4, generator=seeded(), num_inference_steps=4, callback_on_step_end=stop)
        with pytest.raises(RuntimeError, match="did not come to its end"):
            _ = handle.outcome
    for pipe in (tiny_pipeline(), tiny_uniform()):
        handle = particles(pipe, reward, four)
        pipe(["a"] * 4, generator=seeded(), callback_on_step_end=lambda *_, handle=handle: handle.remove() or {})
        with pytest.raises(RuntimeError, match="did not come to its end"):
            _ = handle.outcome
