"""Adapted, compiled, offloaded and quantised models, as generator and as reward, in guided generation."""

import copy
import warnings

import pytest
import torch
from accelerate import cpu_offload, disk_offload

from redge_guidance import GuidanceConfig, guide
from redge_guidance.rewards import TextClassifierReward
from tests.helpers.tiny import tiny_pipeline, tiny_reward, word_tokenizer

peft = pytest.importorskip("peft")


def drawn(wrap_model, wrap_reward):
    pipe = tiny_pipeline()
    pipe.register_modules(model=wrap_model(pipe.model))
    reward = TextClassifierReward(wrap_reward(copy.deepcopy(tiny_reward().model)), word_tokenizer(), "good")
    generators = [torch.Generator().manual_seed(k) for k in range(4)]
    with guide(pipe, reward, GuidanceConfig(scale=4.0)):
        return pipe(["a", "b c", "", "d"], gen_length=4, generator=generators).sequences


def as_it_is(model):
    return model


def adapted(*layers):
    def wrap(model):
        torch.manual_seed(3)
        config = peft.LoraConfig(r=2, target_modules=list(layers), init_lora_weights=False)
        return peft.get_peft_model(model, config).eval()

    return wrap


ATTENTION, EMBEDDING = adapted("Wqkv"), adapted("tok_embeddings")
PLACES = pytest.mark.parametrize("place", ["generator", "reward"])


def at(place, wrap):
    return drawn(wrap, as_it_is) if place == "generator" else drawn(as_it_is, wrap)


@pytest.mark.parametrize(
    ("place", "wrap"),  # merging into the embedding of this generator would change its tied head too
    [("generator", ATTENTION), ("reward", ATTENTION), ("reward", EMBEDDING)],
)
def test_an_adapter_is_worth_what_it_is_merged(place, wrap):
    assert torch.equal(at(place, wrap), at(place, lambda model: wrap(model).merge_and_unload()))


def test_an_adapter_on_the_embedding_has_the_gradient_of_the_merged_model():
    from tests.helpers.reward_models import relaxed

    words, grads = word_tokenizer(), []
    for merge in (False, True):
        model = EMBEDDING(copy.deepcopy(tiny_reward().model))
        reward = TextClassifierReward(model.merge_and_unload() if merge else model, words, "good")
        tokens = relaxed(words, ["a b c", "d"])
        grads.append(torch.autograd.grad(reward(tokens).sum(), tokens.weights)[0])
    torch.testing.assert_close(*grads)


@PLACES
def test_compiled_models_draw_the_same(place):
    """By the longer of the ways without a C compiler: `aot_eager` is `eager` and a graph of the gradient."""
    assert torch.equal(at(place, lambda model: torch.compile(model, backend="aot_eager")), drawn(as_it_is, as_it_is))


def test_a_reward_may_be_compiled_after_it_was_made():
    from tests.helpers.reward_models import relaxed

    reward, words = TextClassifierReward(copy.deepcopy(tiny_reward().model), word_tokenizer(), "good"), word_tokenizer()
    expected = reward(relaxed(words, ["a b c", "d"]))
    reward.model.compile(backend="eager")
    torch.testing.assert_close(reward(relaxed(words, ["a b c", "d"])), expected)


@PLACES
@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_offloaded_models_draw_the_same(place, kind, tmp_path):
    def wrap(model):
        if kind == "cpu":
            return cpu_offload(model, execution_device=torch.device("cpu"))
        return disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))

    assert torch.equal(at(place, wrap), drawn(as_it_is, as_it_is))


@PLACES
def test_half_precision_beside_full(place):
    found = at(place, lambda model: model.to(torch.bfloat16))
    assert found.shape == drawn(as_it_is, as_it_is).shape


def int8(model):
    quantisation = pytest.importorskip("torchao.quantization")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao, of torch
        quantisation.quantize_(model, quantisation.Int8WeightOnlyConfig())
    assert any(type(weight) is not torch.nn.Parameter for weight in model.parameters())
    return model


def test_int8_weights_of_a_reward_draw_the_same():
    assert torch.equal(at("reward", int8), drawn(as_it_is, as_it_is))


def rounded(model):
    """The plain model whose weights are those that int8 keeps."""
    for layer in int8(model).modules():
        weight = getattr(layer, "weight", None)
        if hasattr(weight, "dequantize") and type(weight) is not torch.nn.Parameter:
            layer.weight = torch.nn.Parameter(weight.dequantize().float())
    return model


def test_int8_weights_of_a_generator_draw_as_the_rounded_weights():
    assert torch.equal(at("generator", int8), at("generator", rounded))
