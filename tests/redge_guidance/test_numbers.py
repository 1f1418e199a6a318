"""Numbers of NumPy, fractions and tensors without dimension do what plain ones do, wherever a number is taken."""

import dataclasses
import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redge_guidance import GuidanceConfig, guide
from redge_guidance.estimators import EntropyMix, GumbelSoftmax, ReDGE, ReDGECov
from redge_guidance.guidance import Guidance
from redge_guidance.hosts.callables import DreamLogitsHook
from redge_guidance.pipelines import MaskedDiffusionScheduler
from redge_guidance.pipelines.uniform_scheduler import UniformDiffusionScheduler
from redge_guidance.rewards import FluencyReward, LengthReward, LexicalReward, TextClassifierReward
from redge_guidance.samples.images import ImageDecoder
from redge_guidance.updates import Adam, Natural
from tests.helpers import reward_models
from tests.helpers.hosts import brightness, count_of_a, seeded
from tests.helpers.images import tiny_image_pipeline
from tests.helpers.tiny import tiny_pipeline, tiny_uniform, word_tokenizer
from tests.helpers.tokenizers import tokenizer

WHOLE = {"numpy": np.int64, "unsigned": np.uint8, "array": np.array, "tensor": torch.tensor}
REAL = {"numpy": np.float64, "array": np.array, "tensor": lambda x: torch.tensor(x, dtype=torch.float64)}
REAL |= {"fraction": Fraction, "half": lambda x: torch.tensor(x, dtype=torch.bfloat16), "single": np.float32}
whole_kinds = pytest.mark.parametrize("whole", WHOLE.values(), ids=WHOLE)
BAD = [None, "1", True, float("nan"), [1], torch.tensor([1, 2])]

MADE = {  # of a whole number 3 and a real number 0.5, which every kind has exactly
    "scale": lambda n, x: GuidanceConfig(scale=x, num_draws=n, start=x, stop=1.0, kl_budget=x, max_tilt=x, support=n),
    "target": lambda n, x: GuidanceConfig(
        target=x, num_draws=n, every=n, warm_start=x, kl_budget=x, max_tilt=x, support=n
    ),
    "natural": lambda n, x: Natural(n, x, x),
    "adam": lambda n, x: Adam(n, x),
    "redge": lambda n, x: ReDGE(n, x),
    "redge_cov": lambda n, x: ReDGECov(n, x),
    "gumbel": lambda n, x: GumbelSoftmax(x),
    "entropy_mix": lambda n, x: EntropyMix(x),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
@given(whole=st.sampled_from([*WHOLE.values()]), real=st.sampled_from([*REAL.values()]))
def test_settings_are_kept_as_plain_numbers(make, whole, real):
    expected, found = make(3, 0.5), make(whole(3), real(0.5))
    assert found == expected
    assert hash(found) == hash(expected)
    assert repr(found) == repr(expected)
    values = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    numbers = {name: value for name, value in values.items() if name not in ("estimator", "update", "schedule")}
    apart = {name for name, value in numbers.items() if value is None}  # of which a config has one
    assert apart <= {"scale", "target"}
    assert {type(value) for name, value in numbers.items() if name not in apart} <= {int, float, bool}


def test_the_config_is_written_as_json():
    inner = {"estimator": ReDGE(np.int32(3), np.float32(0.5)), "update": Adam(torch.tensor(2), Fraction(1, 2))}
    config = GuidanceConfig(scale=np.float32(2.5), kl_budget=Fraction(1, 8), support=np.int16(9), **inner)
    assert GuidanceConfig.from_json(config.to_json()) == config
    assert json.loads(config.to_json())["kl_budget"] == 0.125


@pytest.mark.parametrize("bad", BAD, ids=repr)
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("scale", lambda bad: GuidanceConfig(scale=bad) if bad is not None else raise_("`scale`")),  # none is no scale
        ("target", lambda bad: GuidanceConfig(target=bad) if bad is not None else raise_("`target`")),
        ("every", lambda bad: GuidanceConfig(every=bad)),
        ("warm_start", lambda bad: GuidanceConfig(warm_start=bad)),
        ("start", lambda bad: GuidanceConfig(start=bad)),
        ("num_draws", lambda bad: GuidanceConfig(num_draws=bad) if bad is not None else raise_("`num_draws`")),
        ("num_updates", lambda bad: Natural(num_updates=bad)),
        ("step_size", lambda bad: Natural(step_size=bad)),
        ("learning_rate", lambda bad: Adam(learning_rate=bad)),
        ("num_steps", lambda bad: ReDGE(num_steps=bad)),
        ("tau", lambda bad: GumbelSoftmax(tau=bad)),
        ("choice_temperature", lambda bad: MaskedDiffusionScheduler(choice_temperature=bad)),
        ("random_steps", lambda bad: MaskedDiffusionScheduler(random_steps=bad)),
        ("eps", lambda bad: MaskedDiffusionScheduler(eps=bad)),
        ("num_inference_steps", lambda bad: MaskedDiffusionScheduler().set_timesteps(bad)),
        ("corrector_k", lambda bad: UniformDiffusionScheduler(corrector_k=bad)),
        ("minimum", lambda bad: LengthReward(bad)),
        ("wanted", lambda bad: LexicalReward({"a": bad})),
        ("seed", lambda bad: Guidance(count_of_a, seed=bad)),
        ("steps", lambda bad: DreamLogitsHook(word_tokenizer(), count_of_a, steps=bad)),
        ("temperature", lambda bad: TextClassifierReward(CLASSIFIER, BYTES, 0, temperature=bad)),
        ("label", lambda bad: TextClassifierReward(CLASSIFIER, BYTES, bad) if bad != "1" else raise_("`label`")),
    ],
)
def test_what_is_no_number_is_refused(name, make, bad):
    with pytest.raises(ValueError, match=f"`{name}`"):
        make(bad)


def raise_(text):
    raise ValueError(text)


BYTES = tokenizer("byte")
CLASSIFIER = reward_models.classifier(BYTES, num_labels=3)


@whole_kinds
def test_texts(whole):
    pipe, fraction = tiny_pipeline(unmasking_order="confidence"), Fraction(1, 2)
    plain = {"gen_length": 4, "block_length": 2, "num_inference_steps": 4, "temperature": 0.5, "top_k": 3, "top_p": 0.5}
    plain |= {"suppress_tokens": [4], "late_tokens": [5], "guidance_scale": 1.5}
    other = {name: whole(value) for name, value in plain.items() if isinstance(value, int)}
    other |= {"temperature": fraction, "top_p": np.float32(0.5), "guidance_scale": torch.tensor(1.5)}
    other |= {"suppress_tokens": torch.tensor([4]), "late_tokens": np.array([5])}
    expected, found = (pipe(["a b", "c"], generator=seeded(), **settings).sequences for settings in (plain, other))
    assert torch.equal(found, expected)
    settings = {"num_corruptions": whole(2), "batch_size": whole(3)}
    assert torch.equal(pipe.nll(["a b"], **settings), pipe.nll(["a b"], num_corruptions=2, batch_size=3))
    for bad in ("3", 2.5, True, np.True_, torch.tensor(2.5)):
        with pytest.raises(ValueError, match="`gen_length` must be a whole number, got"):
            pipe("", gen_length=bad)
    for bad in ("3", None, True, np.nan, [None]):
        if bad is not None:
            with pytest.raises(ValueError, match="`temperature` must be >= 0, got"):
                pipe("", temperature=bad)
        with pytest.raises(ValueError, match="`guidance_scale` must be finite, got"):
            pipe("", guidance_scale=bad)
    with pytest.raises(ValueError, match="`suppress_tokens` must be token ids below 8, got True"):
        pipe("", suppress_tokens=[True])


@whole_kinds
def test_uniform_texts_with_classes(whole):
    pipe = tiny_uniform()
    asked = []

    def forward(input_ids, cond=None, **kwargs):
        asked.append(cond)
        return logits(input_ids=input_ids, **kwargs)

    logits, pipe.model.forward = pipe.model.forward, forward
    pipe.model.config.cfg_num_classes = 3
    for labels in (whole(1), [whole(1)] * 2, np.array([1, 1]), torch.tensor([1, 1])):
        settings = {"class_labels": labels, "num_inference_steps": whole(2), "guidance_scale": np.float64(2.0)}
        pipe(["", "a"], generator=seeded(), **settings)
        assert [one.tolist() for one in asked] == [[1, 1], [3, 3]] * 2
        asked.clear()
    for bad in (1.0, "1", True, torch.tensor([1.0, 1.0]), np.array([[1, 1]])):
        with pytest.raises(ValueError, match="`class_labels` must be one, or one for each of 2 texts"):
            pipe(["", "a"], class_labels=bad)


@whole_kinds
def test_images(whole):
    pipe = tiny_image_pipeline(unmasking_order="confidence", choice_temperature=Fraction(1, 2), random_steps=whole(1))
    same = tiny_image_pipeline(unmasking_order="confidence", choice_temperature=0.5, random_steps=1)
    plain = {"class_labels": 1, "num_images_per_prompt": 2, "num_inference_steps": 3, "top_k": 5, "guidance_scale": 2.0}
    expected = same(**plain, temperature=[2.0, 1.0, 0.5], generator=seeded(), output_type="latent").tokens
    other = {name: whole(value) for name, value in plain.items() if name != "guidance_scale"}
    for labels in (other.pop("class_labels"), [whole(1)], torch.tensor([1]), np.array([1])):
        ramp = {"temperature": torch.tensor([2.0, 1.0, 0.5]), "guidance_scale": np.array([2.0, 2.0, 2.0])}
        settings = other | ramp | {"class_labels": labels, "generator": seeded(), "output_type": "latent"}
        assert torch.equal(pipe(**settings).tokens, expected)
    for bad in (1.7, [1.7], "1", True, torch.tensor([1.7])):
        with pytest.raises(ValueError, match=r"`class_labels` must lie in \[0, 3\), got"):
            pipe(bad)
    with guide(pipe, brightness, GuidanceConfig(num_draws=whole(1)), decode_chunk_size=whole(1), seed=whole(0)):
        pipe(1, num_inference_steps=1, output_type="latent")
    assert type(ImageDecoder(torch.zeros(1, 1), lambda x: x, whole(2)).chunk_size) is int
    json.loads(pipe.scheduler.to_json_string())


@whole_kinds
def test_the_seed_is_the_number(whole):
    pipe = tiny_pipeline()
    results = []
    for seed in (7, whole(7)):
        with guide(pipe, count_of_a, GuidanceConfig(num_draws=1), seed=seed) as handle:
            pipe(["", "a"], generator=seeded(), num_inference_steps=2)
        results.append([step.reward for step in handle.trace])
    assert results[0] == results[1]


@whole_kinds
def test_rewards(whole):
    texts = ["The old doctor", "small"]
    assert torch.equal(LengthReward(whole(2), whole(2)).score(texts), LengthReward(2, 2).score(texts))
    words = LexicalReward({"old": Fraction(1, 2)}, {"small": torch.tensor(0.25)})
    assert words.weights == {"old": 0.5, "small": -0.25}
    plain = TextClassifierReward(CLASSIFIER, BYTES, 1, against=0, temperature=0.5, max_length=8)
    settings = {"against": whole(0), "temperature": Fraction(1, 2), "max_length": whole(8)}
    assert torch.equal(TextClassifierReward(CLASSIFIER, BYTES, whole(1), **settings).score(texts), plain.score(texts))
    model = reward_models.masked_lm(BYTES)
    assert FluencyReward(model, BYTES, num_passes=whole(3)).num_passes == 3
    for factor in (np.float64(0.5), torch.tensor(0.5), Fraction(1, 2), np.array(0.5)):
        for total in (factor * words, words * factor):
            assert [term.weight for term in total.terms] == [0.5]
            assert type(total.terms[0].weight) is float


@whole_kinds
def test_settings_of_pipelines_are_written_to_a_file(whole, tmp_path):
    for pipe in (tiny_pipeline(whole(6)), tiny_uniform(whole(6)), tiny_image_pipeline()):
        pipe.register_to_config(temperature=np.array([1.0, 0.5]), num_inference_steps=whole(3), top_p=Fraction(1, 2))
        pipe.save_config(tmp_path)
        stored = pipe.load_config(tmp_path)
        assert (stored["temperature"], stored["num_inference_steps"], stored["top_p"]) == ([1.0, 0.5], 3, 0.5)
        assert stored.get("length", 6) == 6
