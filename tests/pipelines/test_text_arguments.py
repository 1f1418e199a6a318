"""What text pipelines are given and cannot use is one clear error."""

import pytest
from diffusers import DiscreteDDIMScheduler

from redge_guidance.pipelines import MaskedDiffusionScheduler, MaskedTextPipeline, UniformTextPipeline
from redge_guidance.pipelines.text.prompts import encode
from tests.helpers.tiny import tiny_pipeline, tiny_uniform
from tests.helpers.tokenizers import tokenizer

MAKE = {"masked": tiny_pipeline, "uniform": tiny_uniform}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize("prompt", [None, 3, [1], [None], {"a"}, b"a", [["a"]], (text for text in ["a"])])
def test_a_prompt_is_a_string_or_a_list_of_strings(make, prompt):
    with pytest.raises(ValueError, match="`prompt` must be a string or a list of strings"):
        make()(prompt)


def test_several_prompts_may_be_a_tuple_or_none_at_all():
    assert len(tiny_pipeline()(("a", "b")).texts) == 2
    assert tiny_pipeline()([]).texts == []


def test_a_mask_of_another_model_is_a_word():
    with pytest.warns(UserWarning, match=r"`prompt` holds '\[MASK\]', which is a word to this model; its mask is '<"):
        encode(tokenizer("byte"), "a [MASK]", "prompt")
    with pytest.raises(
        ValueError, match=r"reserved tokens, got '<\|end\|>' in .*; remove it; its mask is '<\|mask\|>'"
    ):
        encode(tokenizer("byte"), "a<|end|>", "prompt")


PARTS = [
    ({"scheduler": "entropy"}, "`scheduler` must be a .*Scheduler, got 'entropy'; make one"),
    ({"scheduler": None}, "`scheduler` must be a .*Scheduler, got None"),
    ({"scheduler": MaskedDiffusionScheduler}, "`scheduler` must be a .*Scheduler, got <class"),
    ({"model": "gpt2"}, "`model` must be a model that maps ids to logits, got 'gpt2'.*loads one by its name"),
    ({"tokenizer": "gpt2"}, "`tokenizer` must be a tokenizer of transformers, got 'gpt2'"),
    ({"tokenizer": None}, "`tokenizer` must be a tokenizer of transformers, got None"),
    ({"suppress_tokens": "a"}, "`suppress_tokens` must be token ids, got 'a'"),
    ({"suppress_tokens": ["a"]}, "`suppress_tokens` must be token ids, got 'a'"),
    ({"suppress_tokens": [3.0]}, r"`suppress_tokens` must be token ids, got 3\.0"),
    ({"suppress_tokens": [True]}, "`suppress_tokens` must be token ids, got True"),
    ({"suppress_tokens": [-1]}, "`suppress_tokens` must be token ids, got -1"),
]


@pytest.mark.parametrize(("wrong", "message"), PARTS)
def test_what_a_pipeline_is_made_of(wrong, message):
    made = tiny_pipeline()
    parts = {"model": made.model, "tokenizer": made.tokenizer}
    with pytest.raises(ValueError, match=message):
        MaskedTextPipeline(**parts | {"scheduler": MaskedDiffusionScheduler()} | wrong)
    with pytest.raises(ValueError, match=message):
        UniformTextPipeline(**parts | {"scheduler": DiscreteDDIMScheduler()} | wrong)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": 3}, "`prompts` must be a string or a list of strings, or of messages .* got 3"),
        ({"prompts": [None]}, "`prompts` must be a string or a list of strings"),
        ({"generator": 3}, "`generator` must be a torch.Generator"),
    ],
)
def test_what_a_probability_is_asked_of(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline().nll(["a"], **settings)
