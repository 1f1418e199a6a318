"""Text that was given survives: no text ends before it, padding is no text, and texts end where their end was drawn."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForMaskedLM, EsmConfig, EsmForMaskedLM, GenerationConfig

from redge_guidance import GuidanceConfig, guide
from redge_guidance.hosts.callables import DreamLogitsHook, GuidanceLogitsProcessor
from redge_guidance.pipelines import MaskedDiffusionScheduler, MaskedTextPipeline
from redge_guidance.rewards import LengthReward
from tests.helpers.hosts import llada2, seeded
from tests.helpers.tiny import tiny_gemma, tiny_pipeline, tiny_uniform, word_tokenizer
from tests.helpers.watching import guided, linear, watched

PAD, EOS, MASK = 0, 1, 2
ENDS = torch.tensor([0, 20.0, 0, 0, 0, 0, 0, 0])  # a reward that wants the end of the text everywhere
STRONG = GuidanceConfig(8.0, num_draws=2, support=None)
GAPS = ["a [MASK] [MASK] b", "[MASK] c", "[MASK] a [MASK] b [MASK] [MASK]", "d [MASK] [MASK]"]
MAKE = {"masked": tiny_pipeline, "uniform": tiny_uniform}


def eager(pipe):
    """With a model that ends texts wherever it may."""
    pipe.model.decoder.bias.data[EOS] = 4.0
    return pipe


@pytest.mark.filterwarnings(
    "ignore:.*moved nothing in this call", "ignore:a length of .* cannot be reached"
)  # what is wanted may not be drawn
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize("reward", [None, linear(ENDS), LengthReward(0, 1)], ids=["unguided", "ends", "short"])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.5}])
def test_no_text_ends_before_what_was_given(make, reward, settings):
    pipe = eager(make())

    def draw():
        return pipe(GAPS, generator=seeded(), num_inference_steps=3, **settings)

    if reward is None:
        output = draw()
    else:
        with guide(pipe, reward, STRONG):
            output = draw()
    for prompt, text, row in zip(GAPS, output.texts, output.sequences.tolist(), strict=True):
        words = prompt.split()
        last = max(i for i, word in enumerate(words) if word != "[MASK]")
        row = row[len(row) - max(6, len(words) + 1) :]  # without padding
        assert EOS not in row[: last + 1]
        given_words = iter(text.split())
        assert all(word in given_words for word in words if word != "[MASK]"), (prompt, text)


@pytest.mark.filterwarnings("ignore:a length of .* cannot be reached")
def test_an_end_that_was_forbidden_stays_so_in_every_update():
    pipe = eager(tiny_pipeline())
    for support in (None, 3):
        config = GuidanceConfig(8.0, num_draws=2, support=support)
        pairs, _ = guided(pipe, lambda: pipe(GAPS[:2], generator=seeded()), LengthReward(0, 1), config)
        for step, logits in pairs:
            if logits is not None:
                assert step.unending[step.free].all()
                assert (logits[:, EOS] == -torch.inf).all()
                assert not logits.isnan().any()


@settings(max_examples=20)
@given(words=st.lists(st.sampled_from(["a", "b", "[MASK]"]), min_size=1, max_size=6))
def test_any_prompt_comes_back_whole(words):
    pipe = eager(tiny_pipeline())
    (text,) = pipe(" ".join(words), generator=seeded(1), num_inference_steps=2).texts
    found = text.split()
    last = max((i for i, word in enumerate(words) if word != "[MASK]"), default=-1)
    assert len(found) > last
    assert all(word in ("[MASK]", found[i]) for i, word in enumerate(words[: last + 1]))


def test_an_end_beside_other_text_may_be_all_that_is_left():
    pipe = tiny_pipeline()
    with pytest.raises(ValueError, match="`suppress_tokens` must leave a token beside the end of the text"):
        pipe("a [MASK] b", suppress_tokens=[3, 4, 5, 6, 7])
    assert pipe("a", suppress_tokens=[3, 4, 5, 6, 7]).texts == ["a"]


def test_guidance_forbids_ends_in_the_gaps_of_samplers_that_take_a_function():
    x = torch.tensor([[3, MASK, MASK, 4, MASK, MASK]])
    hook = DreamLogitsHook(word_tokenizer(), linear(ENDS), STRONG, steps=2)
    logits = hook(0, x, torch.zeros(1, 6, 8))
    assert (logits[0, [1, 2], EOS] == -torch.inf).all()
    assert logits[0, [4, 5], EOS].isfinite().all()
    tail = torch.tensor([[3, MASK, MASK, EOS, EOS, EOS]])  # which is no text
    assert hook(0, tail, torch.zeros(1, 6, 8))[0, [1, 2], EOS].isfinite().all()


@pytest.mark.filterwarnings(
    "ignore:.*moved nothing in this call", "ignore:a length of .* cannot be reached"
)  # what is wanted may not be drawn
@pytest.mark.filterwarnings("ignore:a length of .* cannot be reached")
def test_an_end_that_was_suppressed_is_never_drawn_nor_ends_anything():
    pipe = eager(tiny_pipeline())
    for reward in (LengthReward(0, 1), linear(ENDS)):
        with guide(pipe, reward, STRONG):
            output = pipe(["a", "a [MASK] b"], suppress_tokens=[EOS], generator=seeded())
        assert not (output.sequences[0] == EOS).any()
        assert [len(text.split()) for text in output.texts] == [6, 3]


# ---- padding ----

PADS = {"none": None, "own": "[PAD]", "eos": "[EOS]", "mask": "[MASK]", "unk": "e"}


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=8, max_position_embeddings=24, initializer_range=0.5, **sizes)
    return BertForMaskedLM(config).eval()


def counting():
    """A model that counts the masks of a row."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"vocab_size": 8, "max_position_embeddings": 26, "initializer_range": 0.5}
    return EsmForMaskedLM(EsmConfig(**sizes, pad_token_id=0, mask_token_id=2, token_dropout=True)).eval()


class Plain(torch.nn.Module):
    """A model that takes ids and nothing else."""

    def __init__(self):
        super().__init__()
        self.model = bert()

    def forward(self, input_ids):
        return self.model(input_ids=input_ids).logits


def padded(pipe, pad):
    pipe.tokenizer.unk_token = "e" if pad == "unk" else None
    pipe.tokenizer.pad_token = PADS[pad]
    return pipe


def of_kind(kind, attention, model):
    pipe = copy.copy(MAKE[kind]())
    pipe.register_modules(model=model)
    pipe.register_to_config(attention=attention)
    return pipe


@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("attention", ["2d", "4d", "4d eager", "none", "plain", "2d counting"])
def test_a_row_beside_a_longer_one_is_the_row_alone(attention, kind, pad):
    model = {"plain": Plain, "4d eager": lambda: tiny_pipeline().model, "2d counting": counting}.get(attention, bert)()
    pipe = padded(of_kind(kind, "2d" if attention == "plain" else attention.split()[0], model), pad)
    prompts = ["a b c d a b", "c", "c [MASK] [MASK] a"]

    def draw(chosen):
        logits = []
        output = pipe(
            [prompts[i] for i in chosen],
            gen_length=3,
            num_inference_steps=3,
            generator=[seeded(i) for i in chosen],
            callback_on_step_end=lambda pipe, step, t, tensors: logits.append(tensors["logits"]),
            callback_on_step_end_tensor_inputs=["logits"],
        )
        return output.texts, torch.stack(logits)

    texts, logits = draw([0, 1, 2])
    for i in range(3):
        (alone,), own = draw([i])
        assert texts[i] == alone
        new = own.shape[2]
        torch.testing.assert_close(logits[:, i, -new:].softmax(-1), own[:, 0].softmax(-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("kind", MAKE)
def test_what_a_reward_sees_of_a_padded_row(kind, pad):
    pipe = padded(MAKE[kind](), pad)
    seen = []
    pairs, _ = guided(
        pipe,
        lambda: pipe(["a b c d a b", "c"], gen_length=3, num_inference_steps=2, generator=seeded()),
        lambda tokens: (seen.append(tokens), linear(ENDS)(tokens))[1],
        GuidanceConfig(1.0, num_draws=1),
    )
    for step, _ in pairs:
        assert not (step.free[1] & (torch.arange(9) < 6)).any()
    for tokens in seen:
        assert not tokens.attention_mask[1, :5].any()
        assert tokens.texts()[1].split()[0] == "c"


def test_padding_that_cannot_be_told_from_text_is_warned_of():
    tokenizer, model = word_tokenizer(), tiny_gemma(None).model
    tokenizer.pad_token = "[MASK]"
    settings = {"max_denoising_steps": 4, "t_min": 0.5, "t_max": 0.9}
    processor = GuidanceLogitsProcessor(model, tokenizer, linear(ENDS), STRONG, **settings)
    with pytest.warns(UserWarning, match="Pass `attention_mask`"):
        processor(torch.tensor([[MASK, 3]]), torch.zeros(1, 4, 8), cur_step=4)


# ---- ends ----


def with_ends(pipe, *named):
    pipe.model.generation_config = GenerationConfig(eos_token_id=list(named))
    return pipe


def instructed():
    """A tokenizer whose e is the end of a turn, and a model that knows."""
    pipe = tiny_pipeline()
    pipe.tokenizer.add_tokens(["e"], special_tokens=True)
    pipe.model.decoder.bias.data[7] = 1.0
    return with_ends(pipe, 1, 7)


def test_texts_end_at_all_ends_that_the_model_names():
    pipe = instructed()
    assert pipe.ends == (1, 7)
    seen = []
    with guide(pipe, lambda tokens: (seen.append(tokens), linear(ENDS)(tokens))[1], GuidanceConfig(0.1)):
        output = pipe(["a"] * 16, generator=seeded())
    rows = output.sequences.tolist()
    assert any(7 in row for row in rows)
    for row, text in zip(rows, output.texts, strict=True):
        end = min((row.index(i) for i in (1, 7) if i in row), default=6)
        assert len(text.split()) == end
    for tokens in seen:
        ends = torch.isin(tokens.ids, torch.tensor([1, 7])).cumsum(-1)
        assert torch.equal(tokens.attention_mask, ends.cumsum(-1) <= 1)


def test_no_text_ends_at_what_is_a_word():
    pipe = tiny_pipeline()
    with_ends(pipe, 1, 3)
    assert pipe.ends == (1,)
    with pytest.warns(UserWarning, match="names 3, which to the tokenizer is 'a'"):
        MaskedTextPipeline(pipe.model, pipe.tokenizer, MaskedDiffusionScheduler())


def test_llada2_ends_where_its_call_says():
    pipe, run = llada2(eos_token_id=5, eos_early_stop=False)
    steps, _ = watched(pipe, run)
    assert all(step.ends == (5,) for step in steps)
    assert all(list(step.reserved) == [PAD, MASK] for step in steps)
    seen = []
    with guide(pipe, lambda tokens: (seen.append(tokens), linear(ENDS)(tokens))[1], GuidanceConfig(0.1)):
        run()
    for tokens in seen:
        after = ((tokens.ids == 5) & ~tokens.given).cumsum(-1).cumsum(-1) > 1
        assert not (tokens.attention_mask & after).any()
        assert (tokens.attention_mask | after | (tokens.ids == PAD) | ~tokens.free).all()


@pytest.mark.parametrize(("asked", "expected"), [(None, (1,)), (6, (6,)), ([5, 6], (5, 6))])
def test_generate_ends_where_it_is_told(asked, expected):
    model, settings = tiny_gemma(None).model, {"max_denoising_steps": 4, "t_min": 0.5, "t_max": 0.9}
    seen = []
    processor = GuidanceLogitsProcessor(
        model,
        word_tokenizer(),
        lambda tokens: (seen.append(tokens.ends), linear(ENDS)(tokens))[1],
        STRONG,
        eos_token_id=asked,
        **settings,
    )
    processor(torch.tensor([[3, 4]]), torch.zeros(1, 4, 8), cur_step=4)
    assert set(seen) == {expected}
    with pytest.raises(ValueError, match="`eos_token_id` must be a token id"):
        GuidanceLogitsProcessor(model, word_tokenizer(), linear(ENDS), eos_token_id="a", **settings)
