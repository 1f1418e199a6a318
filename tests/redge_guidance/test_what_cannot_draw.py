"""What is told at `guide`, before anything is drawn: a pipeline that fails by itself, and what is no pipeline."""

import types

import diffusers
import pytest

from redge_guidance import guide
from redge_guidance.hosts import supports
from redge_guidance.pipelines import MaskedDiffusionScheduler, MaskedTextPipeline
from tests.helpers.hosts import count_of_a, state_of
from tests.helpers.tiny import gemma_pipeline_draws, tiny_gemma, tiny_pipeline, word_tokenizer


@pytest.fixture
def pipe():
    """DiffusionGemmaPipeline, whether or not it draws with the transformers that is here."""
    pipe = tiny_gemma(None)
    pipe.scheduler = diffusers.DiscreteDDIMScheduler()
    return pipe


def renamed(config, inputs_embeds, cache, decoder_attention_mask=None):
    """As transformers 5.24 calls what was `past_key_values`."""


MESSAGE = (
    r"(?s)DiffusionGemmaPipeline of diffusers [\d.]+ cannot draw with transformers [\d.]+, guided or not: it passes "
    r"`past_key_values` to `create_diffusion_decoder_attention_mask`, which takes config, inputs_embeds, cache, .*"
    r"tested with, transformers 5\.0 to 5\.23.*`model\.generate\(logits_processor=...\)` with "
    r"`redge_guidance\.hosts\.callables\.GuidanceLogitsProcessor`"
)


def test_a_pipeline_that_cannot_call_its_model_is_told_at_guide(pipe, monkeypatch):
    monkeypatch.setattr(pipe.model.model.decoder, "create_diffusion_decoder_attention_mask", renamed)
    before = state_of(pipe)
    with pytest.raises(RuntimeError, match=MESSAGE):
        guide(pipe, count_of_a)
    assert state_of(pipe) == before


@pytest.mark.filterwarnings("ignore:.*past_key_values.*:FutureWarning")
def test_guide_refuses_what_fails_by_itself_and_nothing_else(pipe):
    """By the pipeline and the model that are installed."""
    pipe.tokenizer = pipe.processor
    call = {"gen_length": 4, "num_inference_steps": 1, "output_type": "seq"}
    if gemma_pipeline_draws(pipe.model):
        with guide(pipe, count_of_a):
            pipe("a", **call)
        return
    with pytest.raises(TypeError, match="past_key_values"):
        pipe("a", **call)
    with pytest.raises(RuntimeError, match=MESSAGE):
        guide(pipe, count_of_a)


def test_a_pipeline_that_passes_what_the_model_takes_is_not_refused(pipe, monkeypatch):
    """As a diffusers to come may do it, whatever its variable is called."""
    monkeypatch.setattr(pipe.model.model.decoder, "create_diffusion_decoder_attention_mask", renamed)

    class DiffusionGemmaPipeline(type(pipe)):
        def __call__(self, prompt):
            past_key_values = None
            return self.model.model.decoder.create_diffusion_decoder_attention_mask(
                config=None, inputs_embeds=None, cache=past_key_values, decoder_attention_mask=None
            )

    pipe.__class__ = DiffusionGemmaPipeline
    with guide(pipe, count_of_a):
        assert pipe("a") is None


class Model:
    """What a model of transformers has."""

    def __init__(self, kind, **methods):
        self.config = types.SimpleNamespace(model_type=kind)
        vars(self).update(methods)

    def forward(self, input_ids):
        return input_ids


PLACES = {
    "llada2_moe": r"`diffusers\.LLaDA2Pipeline\(model, scheduler=BlockRefinementScheduler\(\), tokenizer=tokenizer",
    "diffusion_gemma": r"`diffusers\.DiffusionGemmaPipeline\(.*`redge_guidance\.hosts\.callables\.GuidanceLogits",
    "Dream": r"`redge_guidance\.pipelines\.MaskedTextPipeline.from_pretrained.*callables\.DreamLogitsHook",
    "bert": r"`redge_guidance\.pipelines\.TextPipeline\.from_pretrained\(name\)`, or `MaskedTextPipeline\(model, tok",
}


@pytest.mark.parametrize("kind", PLACES)
def test_a_model_is_told_its_pipeline(kind):
    model = Model(kind, **({"diffusion_generate": print} if kind == "Dream" else {}))
    message = (
        rf"`pipe` must be a pipeline, got the model Model of type '{kind}', which has no scheduler.*{PLACES[kind]}"
    )
    with pytest.raises(ValueError, match=message):
        guide(model, count_of_a)
    assert supports(model) is None


def test_what_was_advised_is_guided():
    """The names in the messages, and the pipelines around real models."""
    for text in PLACES.values():
        for name in ("LLaDA2Pipeline", "DiffusionGemmaPipeline", "BlockRefinementScheduler"):
            assert name not in text or hasattr(diffusers, name)
    model = tiny_pipeline().model
    for pipe in (
        diffusers.LLaDA2Pipeline(model, scheduler=diffusers.BlockRefinementScheduler(), tokenizer=word_tokenizer()),
        MaskedTextPipeline(model, word_tokenizer(), MaskedDiffusionScheduler()),
    ):
        guide(pipe, count_of_a).remove()
