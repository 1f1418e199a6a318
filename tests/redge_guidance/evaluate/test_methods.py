"""Methods are what they are called: held against the public functions that they stand for."""

import dataclasses
import json

import pytest
import torch

from redge_guidance import GuidanceConfig, generate
from redge_guidance.estimators import ESTIMATORS, EntropyMix, ReDGE
from redge_guidance.evaluate import method, methods_of
from redge_guidance.evaluate.methods import GROUPS
from redge_guidance.particles import ParticleConfig, search
from redge_guidance.pipelines import MaskedImagePipeline
from redge_guidance.rewards import ImageClassifierReward, LexicalReward
from redge_guidance.updates import UPDATES, Adam, Natural

HOW = {"seed": 3, "batch_size": 8, "temperature": 0.5, "settings": {"num_inference_steps": 3}}


def drawn(name, pipe, reward, prompts=("", "", "a")):
    return method(name).draw(pipe, reward, prompts, **HOW)


def texts(pipe, reward=None, config=None, **how):
    records = generate(pipe, ["", "", "a"], reward, config, seed=3, num_inference_steps=3, **how)
    return [record.text for record in records]


def test_unguided_is_the_bare_sampler_and_best_of_one_too(pipe, reward):
    assert drawn("unguided", pipe, reward) == drawn("best-of-1", pipe, reward) == texts(pipe)


def test_guided_is_generate(pipe, reward):
    assert drawn("guided[scale: 4]", pipe, reward) == texts(pipe, reward, GuidanceConfig(scale=4.0))
    assert drawn("redge", pipe, reward) == texts(pipe, reward, GuidanceConfig(estimator="redge"))


def test_the_best_of_n_is_the_best_of_n_samples(pipe, reward):
    every = texts(pipe, samples_per_prompt=4)
    best = [max(every[k : k + 4], key=lambda text: reward.score([text]).item()) for k in (0, 4, 8)]
    assert drawn("best-of-4", pipe, reward) == best


def test_particles_are_search_at_the_temperature_of_the_task_or_their_own(pipe, reward):
    def found(temperature, guidance=None):
        config = ParticleConfig(num_particles=4, temperature=temperature)
        made = search(pipe, ["", "", "a"], reward, config, guidance, seed=3, batch_size=8, num_inference_steps=3)
        return [one.best for one in made]

    assert drawn("fk-4", pipe, reward) == found(0.5)
    assert drawn("fk-4[temperature: 0.1]", pipe, reward) == found(0.1)
    guided = GuidanceConfig(scale=2.0)
    assert drawn("guided-fk-4[scale: 2, particles: {temperature: 0.1}]", pipe, reward) == found(0.1, guided)


def test_settings_in_brackets_are_those_of_the_config():
    made = method("guided[scale: 2, estimator: {redge: {num_steps: 8}}, update: adam]")
    assert made.guidance == GuidanceConfig(scale=2.0, estimator=ReDGE(num_steps=8), update=Adam())
    assert method(" entropy_mix[scale: 3] ").guidance == GuidanceConfig(scale=3.0, estimator="entropy_mix")


def test_settings_of_the_sampler_are_those_of_its_call(pipe, reward):
    greedy = [record.text for record in generate(pipe, ["", "", "a"], seed=3, num_inference_steps=3, temperature=0.0)]
    assert drawn("unguided[sampler: {temperature: 0}]", pipe, reward) == greedy
    one_step = [record.text for record in generate(pipe, ["", "", "a"], seed=3, num_inference_steps=1)]
    assert drawn("unguided[sampler: {num_inference_steps: 1}]", pipe, reward) == one_step
    assert method("fk-2[sampler: {temperature: 2}]").to_dict(1.0, reward)["sampler"] == {"temperature": 2}


def test_an_estimator_may_be_spelled_with_its_name():
    assert method("guided[estimator: {name: redge}]").guidance == GuidanceConfig(estimator="redge")


def test_images_of_every_method_are_pixels():
    pipe = MaskedImagePipeline.from_pretrained("builtin:mnist-masked")
    pipe.set_progress_bar_config(disable=True)
    reward = ImageClassifierReward.from_pretrained("builtin:mnist-classifier", "3")
    for name in ("unguided", "best-of-2", "guided-best-of-2", "fk-2"):
        (found,) = drawn(name, pipe, reward, (None,))
        assert (found.shape, found.dtype) == ((3, 28, 28), torch.float32)
        assert 0 <= found.min() < found.max() <= 1


def test_groups_are_there_in_full_and_names_once():
    configs = [one.guidance for one in methods_of(["estimators"])]
    for update in UPDATES.values():
        mine = [config for config in configs if isinstance(config.update, update)]
        assert {type(config.estimator) for config in mine} == set(ESTIMATORS.values())
        assert EntropyMix(weight=1.0) in [config.estimator for config in mine]
        assert {config.estimator.hard for config in mine if isinstance(config.estimator, ReDGE)} == {True, False}
    assert len(set(map(repr, configs))) == len(configs)
    assert [one.name for one in methods_of(["guided", " guided"])] == ["guided"]
    assert [one.name for one in methods_of("guided")] == ["guided"]
    assert [one.name for one in methods_of(["guided", "main"])][:2] == ["guided", "unguided"]
    assert [one.name for one in methods_of([*GROUPS])] == list(dict.fromkeys(sum(GROUPS.values(), ())))


def test_the_update_of_a_plain_function_is_that_of_what_the_pipeline_makes():
    made = method("guided")
    assert made.to_dict(1.0, len)["guidance"]["update"]["num_updates"] == 2
    assert made.to_dict(1.0, len, images=True)["guidance"]["update"]["num_updates"] == 3


def test_all_settings_are_written_down():
    made = method("guided-fk-2[scale: 2]")
    told = made.to_dict(0.25, LexicalReward("a"))
    assert told["particles"] == dataclasses.asdict(ParticleConfig(num_particles=2, temperature=0.25))
    assert GuidanceConfig.from_json(json.dumps(told["guidance"])) == GuidanceConfig(scale=2.0, update=Natural())
    of_images = made.to_dict(0.25, ImageClassifierReward.from_pretrained("builtin:mnist-classifier", "7"))
    assert of_images["guidance"]["update"] == {
        "name": "natural",
        "num_updates": 3,
        "step_size": 1 / 3,
        "damping": 0.001,
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("guided[scale: 2", "the settings of `guided[scale: 2` must end with `]`, which is missing"),
        ("guidd", "there is no method `guidd`; did you mean `guided`?"),
        ("best-of", "the method `best-of` has a number, as `best-of-8`, got `best-of`."),
        ("best-of-0", "must have a number from 1 to 1,000,000"),
        ("best-of-" + "9" * 20, "must have a number from 1 to 1,000,000"),
        ("unguided[sampler: {seed: 3}]", "`sampler` is for the pipeline's call, got `seed`"),
        ("unguided[sampler: {prompts: a}]", "got `prompts`, which `evaluate` says itself"),
        ("best-of-2[sampler: {target: 1}]", "got `target`, which `evaluate` says itself"),
        ("redge[estimator: reinmax]", "`redge[estimator: reinmax]` names its estimator twice"),
        ("guided[estimator: {redge: 3}]", "`redge` must have its settings by name, got 3."),
        ("guided-3", "the method `guided` has no number"),
        ("unguided[scale: 1]", "the method `unguided` has no settings but `sampler`"),
        ("fk-2[sampler: 1]", "`sampler` must be settings by name, got 1"),
        ("guided[scal: 1]", "guidance has no setting `scal`; did you mean `scale`?"),
        ("guided[scale: -1]", "`scale` must be a finite number >= 0"),
        ("fk-4[temprature: 1]", "particles have no setting `temprature`; did you mean `temperature`?"),
        ("guided-fk-4[particles: {potential: mean}]", "`potential` must be one of difference, max, sum"),
        ("guided-fk-4[particles: 3]", "`particles` must be settings by name, got 3"),
        ("guided[scale: ]]", "is no YAML"),
        ("", "there is no method ``"),
    ],
)
def test_what_is_no_method_is_one_clear_error(name, message):
    with pytest.raises(ValueError, match=r".*") as error:
        method(name)
    assert message in str(error.value)
