import re

import pytest
import torch

import redge_guidance
from redge_guidance import GuidanceConfig
from redge_guidance.harness.loading import Setup, load_setup
from redge_guidance.harness.options import Options
from tests.helpers.tiny import tiny_pipeline, tiny_reward, tiny_uniform


def test_names_of_others():
    llada = {"model_path": "x", "mc_num": 128, "cfg": 0.5, "steps": 64, "gen_length": 64, "block_length": 32}
    llada |= {"remasking": "low_confidence", "mask_id": 7, "is_check_greedy": False, "max_length": 4096}
    found = Options.of(llada)
    assert (found.pretrained, found.num_corruptions, found.guidance_scale) == ("x", 128, 1.5)
    assert (found.num_inference_steps, found.unmasking_order, found.mask_token_id) == (64, "confidence", 7)
    dream = {"pretrained": "x", "max_new_tokens": 256, "diffusion_steps": 256, "alg": "entropy", "alg_temp": 0.0}
    found = Options.of(dream | {"add_bos_token": True, "nll_type": "mc", "escape_until": True, "top_p": 0.95})
    assert (found.gen_length, found.num_inference_steps, found.unmasking_order) == (256, 256, "entropy")
    assert Options.of({"alg": "origin"}).unmasking_order == "ancestral"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pretrain": "x"}, "`pretrain` is no argument of the model `redge`; is it `pretrained`?"),
        ({"qqq": 1}, "known are pretrained"),
        ({"steps": 3, "num_inference_steps": 4}, "`steps` and `num_inference_steps` are the same setting"),
        ({"mc_num": 0}, "`num_corruptions` must be a whole number >= 1, got 0"),
        ({"is_check_greedy": "no"}, "`is_check_greedy` must be True or False"),
        ({"batch_size": "many"}, "`batch_size` must be a whole number >= 1, or 'auto'"),
        ({"nll_type": "ar_ftb"}, "`nll_type` can only be 'mc'"),
        ({"cfg": "high"}, "`cfg` must be a number"),
        ({"seed": 0.5}, "`seed` must be a whole number"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Options.of(given)


def test_batch_sizes():
    assert [Options.of({"batch_size": size}).most_at_once() for size in (4, "4", "auto", "auto:2")] == [4, 4, 64, 64]
    assert Options.of({"batch_size": "auto", "max_batch_size": 8}).most_at_once() == 8


def test_what_is_loaded():
    found = load_setup(Options.of({"pretrained": "builtin:tatoeba-uniform", "device": "cpu", "dtype": "bfloat16"}))
    assert (type(found.pipe).__name__, found.pipe.model.dtype) == ("UniformTextPipeline", torch.bfloat16)
    assert found.reward is None
    guided = {"reward": "builtin:sentiment", "label": "positive", "scale": 1, "num_draws": 2}
    found = load_setup(Options.of(guided), pipe=tiny_pipeline())
    assert found.config == GuidanceConfig(scale=1, num_draws=2)
    assert found.reward.label_name == "positive"
    aimed = {"target": -0.1, "kl_budget": 0.5, "every": 3, "schedule": "linear", "warm_start": 0.5, "max_tilt": 3}
    found = load_setup(Options.of(aimed), pipe=tiny_pipeline(), reward=tiny_reward())
    assert found.config == GuidanceConfig(**aimed)


def test_a_set_up_of_a_file(monkeypatch):
    setup = Setup(tiny_pipeline(), tiny_reward(), GuidanceConfig(scale=3.0))
    monkeypatch.setattr(redge_guidance, "load", lambda name: {"run.yaml": setup}[name], raising=False)
    found = load_setup(Options.of({"setup": "run.yaml", "unmasking_order": "entropy"}))
    assert (found.pipe, found.reward, found.config) == (setup.pipe, setup.reward, setup.config)
    assert found.pipe.scheduler.config.unmasking_order == "entropy"
    assert load_setup(Options.of({"setup": "run.yaml", "scale": 1.0})).config.scale == 1.0


@pytest.mark.parametrize(
    ("given", "pipe", "message"),
    [
        ({}, None, "one of `pretrained=NAME` and `setup=FILE.yaml`"),
        ({"pretrained": "x", "setup": "y"}, None, "got 2 of them"),
        ({"scale": 2.0}, tiny_pipeline, "`scale` is for guidance, which needs a `reward`"),
        ({"pretrained": "builtin:tatoeba-masked", "dtype": "auto"}, None, "`dtype` must be float32"),
        ({"remasking": "random"}, tiny_uniform, "`unmasking_order` cannot be used with UniformTextPipeline"),
        ({}, lambda: 3, "`pipe` must be a TextPipeline, got int"),
    ],
)
def test_what_cannot_be_loaded(given, pipe, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_setup(Options.of(given), pipe=pipe and pipe())
