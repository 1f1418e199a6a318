"""Hosts that take a function: transformers' generate with the real class, and the contract of Dream's hook."""

import copy
import re
import types
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from redge_guidance import GuidanceConfig
from redge_guidance.hosts.callables import DreamLogitsHook, GuidanceLogitsProcessor
from tests.helpers.hosts import JUMP, RESERVED, all_of_a, count_of_a
from tests.helpers.tiny import WORDS, tiny_gemma, tiny_pipeline, word_tokenizer

SETTINGS = {"max_new_tokens": 8, "max_denoising_steps": 4, "t_min": 0.5, "t_max": 0.9, "disable_compile": True}
PROMPT = torch.tensor([[0, 3, 1, 4], [5, 6, 1, 4]])  # padding; the end of a turn


@pytest.fixture
def gemma():
    model = tiny_gemma(None).model
    model.generation_config.eos_token_id = None
    return model


def generate(model, *processors, seed=0, **settings):
    torch.manual_seed(seed)
    settings = SETTINGS | {"logits_processor": LogitsProcessorList(processors)} | settings
    return model.generate(PROMPT, attention_mask=PROMPT != 0, **settings).sequences


def processor(model, reward=count_of_a, config=JUMP):
    settings = {name: SETTINGS[name] for name in ("max_denoising_steps", "t_min", "t_max")}
    return GuidanceLogitsProcessor(model, word_tokenizer(), reward, config, **settings)


@pytest.mark.parametrize("cache", [None, "static"])
def test_generate_with_scale_zero_is_generate(gemma, cache):
    settings = {} if cache is None else {"cache_implementation": cache}
    bare = generate(gemma, **settings)
    assert torch.equal(generate(gemma, processor(gemma, config=GuidanceConfig(scale=0.0)), **settings), bare)
    guided = generate(gemma, processor(gemma, config=GuidanceConfig(scale=8.0)), **settings)
    assert torch.equal(guided[:, :4], PROMPT)
    assert (guided[:, 4:] == 3).float().mean() > (bare[:, 4:] == 3).float().mean()
    assert torch.equal(generate(gemma, **settings), bare)


def test_generate_gets_the_exact_optimum_of_a_linear_reward(gemma):
    pairs = []

    class Spy(LogitsProcessor):
        def __call__(self, input_ids, scores, cur_step):
            guided = guidance(input_ids, scores, cur_step=cur_step)
            pairs.append((int(cur_step), scores, guided))
            return guided

    guidance = processor(gemma, all_of_a)
    generate(gemma, Spy())
    tilt = torch.zeros(len(WORDS))
    tilt[3] = JUMP.scale
    tilt[RESERVED] = -torch.inf
    assert [left for left, *_ in pairs] == [4, 3, 2, 1] * 2
    for left, scores, guided in pairs:
        temperature = 0.5 + 0.4 * left / 4
        expected = ((scores / temperature).log_softmax(-1) + tilt).softmax(-1)
        torch.testing.assert_close((guided / temperature).softmax(-1), expected, atol=1e-5, rtol=1e-4)
    assert [step.progress for step in guidance.trace] == [0.0, 0.25, 0.5, 0.75] * 2


def test_generate_shows_the_reward_prompt_and_canvas(gemma):
    seen = []
    guidance = processor(gemma, lambda tokens: (seen.append(tokens), count_of_a(tokens))[1])
    for _ in range(2):  # the same processor may serve again
        generate(gemma, guidance)
    assert [t.ids.shape[1] for t in seen] == ([8] * 4 + [12] * 4) * 2
    for tokens in seen:
        assert not tokens.free[:, :-4].any()
        assert tokens.free[:, -4:].all()
        assert not tokens.attention_mask[0, 0]
        assert tokens.attention_mask[:, 1:5].all()  # the turn's end in the prompt does not end the text


def test_generate_needs_to_know_its_steps(gemma):
    gemma.generation_config.max_denoising_steps = None
    with pytest.raises(ValueError, match="`max_denoising_steps` is not in the generation config"):
        GuidanceLogitsProcessor(gemma, word_tokenizer(), count_of_a)


@torch.no_grad()
def dream_generate(model, x, steps, generation_logits_hook_func, seed=0):
    """As Dream calls its hook: logits of the token after, shifted, one revealed at a time."""
    generator = torch.Generator().manual_seed(seed)
    x = x.clone()
    for i in range(steps):
        logits = model(input_ids=x, attention_mask=torch.ones_like(x)).logits
        logits = torch.cat([logits[:, :1], logits[:, :-1]], 1)
        logits = generation_logits_hook_func(i, x, logits)
        for row in range(len(x)):
            first = (x[row] == 2).nonzero()[0]
            x[row, first] = torch.multinomial(logits[row, first].softmax(-1), 1, generator=generator)[:, 0]
            x[row, first] = x[row, first].where(x[row, first] != 2, 4)
    return x


def test_dream_hook():
    model = tiny_pipeline().model
    x = torch.tensor([[0, 1, 3, 2, 2, 2], [4, 1, 5, 2, 2, 2]])
    bare = dream_generate(model, x, 3, lambda step, x, logits: logits)
    off = DreamLogitsHook(word_tokenizer(), count_of_a, GuidanceConfig(scale=0.0), steps=3)
    assert torch.equal(dream_generate(model, x, 3, off), bare)
    seen = []

    def reward(tokens):
        seen.append(tokens)
        return all_of_a(tokens)

    hook = DreamLogitsHook(
        word_tokenizer(), reward, JUMP, steps=3, temperature=0.5, attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]])
    )
    assert hook(None, x, None) is None

    def checked(step, x, logits):
        guided = hook(step, x, logits)
        free = x == 2
        assert torch.equal(guided[~free], logits[~free])
        tilt = torch.zeros(len(WORDS))
        tilt[3] = JUMP.scale
        tilt[RESERVED] = -torch.inf
        expected = ((logits / 0.5).log_softmax(-1) + tilt).softmax(-1)
        torch.testing.assert_close((guided / 0.5).softmax(-1)[free], expected[free], atol=1e-5, rtol=1e-4)
        return guided

    sequences = dream_generate(model, x, 3, checked)
    assert torch.equal(sequences[:, :3], x[:, :3])
    assert [int(t.free.sum()) for t in seen] == [6, 4, 2]
    assert not seen[0].attention_mask[0, 0]
    assert seen[0].attention_mask[:, 1:3].all()  # [EOS] in the prompt ends nothing
    assert [step.progress for step in hook.trace] == [0, 1 / 3, 2 / 3]
    tokenizer = word_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="`tokenizer` must have a `mask_token_id`"):
        DreamLogitsHook(tokenizer, reward, steps=3)
    with pytest.raises(ValueError, match="`steps` must be >= 1"):
        DreamLogitsHook(word_tokenizer(), reward, steps=0)


class DreamConfig(GenerationConfig):
    """A generation config with fields of its own, as Dream's."""

    def __init__(self, **settings):
        own = {"steps": 512, "temperature": 0.0, "eps": 1e-3, "mask_token_id": None, "max_new_tokens": None}
        for name, value in own.items():
            setattr(self, name, settings.pop(name, value))
        self._from_model_config = settings.pop("_from_model_config", False)

    def validate(self, is_init=False, **settings):
        pass


class Dream:
    """What Dream's `diffusion_generate` does with its config and its hook, around the tiny model."""

    def __init__(self):
        self.model = tiny_pipeline().model
        self.config = types.SimpleNamespace(mask_token_id=2)
        self.generation_config = DreamConfig()

    @torch.no_grad()
    def diffusion_generate(self, inputs, generation_config=None, **kwargs):
        if generation_config is None:
            generation_config = DreamConfig.from_model_config(self.model.config)
        config = copy.deepcopy(generation_config)
        config.update(**kwargs)
        hook = kwargs.get("generation_logits_hook_func", lambda step, x, logits: logits)
        noise = torch.linspace(1, config.eps, config.steps + 1)
        x = torch.nn.functional.pad(inputs, (0, config.max_new_tokens), value=config.mask_token_id)
        for i in range(config.steps):
            hidden = x == config.mask_token_id
            logits = self.model(input_ids=x, attention_mask=torch.ones_like(x)).logits
            logits = hook(i, x, torch.cat([logits[:, :1], logits[:, :-1]], 1))
            drawn = torch.multinomial((logits[hidden] / config.temperature).softmax(-1), 1)[:, 0]
            shown = torch.rand(drawn.shape) < (1 - noise[i + 1] / noise[i] if i < config.steps - 1 else 1)
            x = x.masked_scatter(hidden, drawn.where(shown, config.mask_token_id))
        return x


def documented_call():
    """The call of Dream in docs/samplers.md, as a function of `model`, `ids` and `hook`, with 8 steps and tokens."""
    text = (Path(__file__).parents[2] / "docs" / "samplers.md").read_text(encoding="utf-8")
    call = re.search(r"model\.diffusion_generate\((?:[^()]|\n)*\)", text).group()
    assert call.count("128") == 2
    return lambda model, ids, hook: eval(call.replace("128", "8"), {"model": model, "ids": ids, "hook": hook})


def test_the_documented_call_of_dream():
    """Without a config Dream asks transformers for one, and gets one without Dream's own fields."""
    model, ids = Dream(), torch.tensor([[3, 4, 5], [6, 3, 4]])
    call = documented_call()

    def run(hook):
        torch.manual_seed(0)
        return call(model, ids, hook)

    bare = run(lambda step, x, logits: logits)
    settings = {"steps": 8, "temperature": 0.2}
    off = DreamLogitsHook(word_tokenizer(), count_of_a, GuidanceConfig(scale=0.0), **settings)
    assert torch.equal(run(off), bare)
    hook = DreamLogitsHook(word_tokenizer(), all_of_a, GuidanceConfig(scale=16.0), **settings)
    guided = run(hook)
    assert torch.equal(guided[:, :3], ids)
    assert (guided[:, 3:] == 3).float().mean() > (bare[:, 3:] == 3).float().mean() + 0.2
    assert [step.progress for step in hook.trace][:2] == [0, 1 / 8]
    with pytest.raises(AttributeError, match="GenerationConfig' object has no attribute"):
        model.diffusion_generate(ids, max_new_tokens=4, **settings)


def test_padding_of_a_processor_is_known_by_its_mask_and_else_only_in_front():
    """A padding token inside a prompt is a token."""
    seen = []
    for mask, expected in ((None, [0, 0, 1, 1, 1, 1]), (torch.tensor([[0, 1, 1, 1]]), [0, 1, 1, 1, 1, 1])):
        guidance = GuidanceLogitsProcessor(
            tiny_gemma(None).model,
            word_tokenizer(),
            lambda tokens: (seen.append(tokens), count_of_a(tokens))[1],
            JUMP,
            max_denoising_steps=1,
            attention_mask=mask,
        )
        guidance(torch.tensor([[0, 0, 3, 0]]), torch.zeros(1, 2, len(WORDS)), cur_step=1)
        assert seen[-1].attention_mask[0, :4].int().tolist() == expected[:4]
