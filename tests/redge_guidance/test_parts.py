"""Parts of a pipeline whose loading is left to diffusers: none of their weights is at random either."""

import pytest
import torch
from diffusers import AmusedPipeline, PipelineQuantizationConfig
from safetensors.torch import load_file, save_file

from redge_guidance.remote.parts import load_pipeline
from tests.helpers.images import tiny_amused

OPTIONS = [
    {"low_cpu_mem_usage": True},
    {"device_map": "cpu"},
    {"variant": "fp16"},
    {"dtype": {"default": torch.float32}},
]
PARTS = ["transformer", "vqvae", "text_encoder"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_amused().save_pretrained(folder)
    tiny_amused().save_pretrained(folder, variant="fp16")
    return folder


def file_of(folder, part, variant):
    return next(f for f in (folder / part).glob("*.safetensors") if ("fp16" in f.name) == (variant == "fp16"))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_whole_pipelines_load(saved, options):
    pipe, expected = load_pipeline(AmusedPipeline, str(saved), **options), load_pipeline(AmusedPipeline, str(saved))
    for part in PARTS:
        found = getattr(pipe, part).state_dict()
        for name, weight in getattr(expected, part).state_dict().items():
            assert torch.equal(found[name], weight)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_missing_weights_are_refused(saved, options, part):
    file = file_of(saved, part, options.get("variant", ""))
    before = file.read_bytes()
    weights = load_file(file)
    name = min(weights)
    weights.pop(name)
    save_file(weights, file, {"format": "pt"})
    try:
        with pytest.raises(ValueError, match=rf"{part}` lacks {name} of .* would be random"):
            load_pipeline(AmusedPipeline, str(saved), **options)
    finally:
        file.write_bytes(before)


def test_a_variant_that_only_some_parts_have(saved, tmp_path):
    tiny_amused().save_pretrained(tmp_path)
    tiny_amused().transformer.save_pretrained(tmp_path / "transformer", variant="fp16")
    load_pipeline(AmusedPipeline, str(tmp_path), variant="fp16")


def test_weights_to_be_quantised_are_compared_before(saved):
    file = file_of(saved, "text_encoder", "")
    before, weights = file.read_bytes(), load_file(file)
    name = min(weights)
    weights.pop(name)
    save_file(weights, file, {"format": "pt"})
    quantised = PipelineQuantizationConfig(
        quant_backend="bitsandbytes_8bit", quant_kwargs={"load_in_8bit": True}, components_to_quantize=["text_encoder"]
    )
    try:
        with pytest.raises(ValueError, match=f"lacks {name}"):
            load_pipeline(AmusedPipeline, str(saved), quantization_config=quantised)
    finally:
        file.write_bytes(before)
