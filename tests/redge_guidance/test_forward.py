"""Samplers that are functions of a model, guided at its forward: who is guided, by what, and what is left behind."""

import copy
import inspect
import pickle
import threading

import pytest
import torch

from redge_guidance import GuidanceConfig, guide
from tests.helpers.hosts import JUMP, MASK, RESERVED, all_of_a, count_of_a, seeded
from tests.helpers.tiny import WORDS, tiny_pipeline, tiny_reward, word_tokenizer

TOKENS = word_tokenizer()
PROMPT = torch.tensor([[3, 4, MASK, MASK, MASK, MASK], [5, 6, MASK, MASK, MASK, MASK]])


@pytest.fixture
def model():
    return tiny_pipeline().model


@torch.no_grad()
def sampled(model, ids=PROMPT, generator=None, **inputs):
    """One position a step, from left to right, as a function of a model."""
    ids = ids.clone()
    while (ids == MASK).any():
        logits = model(input_ids=ids, **inputs).logits
        logits[..., RESERVED] = -torch.inf
        for row in range(len(ids)):
            at = (ids[row] == MASK).nonzero()[0]
            drawn = torch.multinomial(logits[row, at].softmax(-1), 1, generator=generator)
            ids[row, at] = drawn[:, 0]
    return ids


def calls_of(model, run):
    """Pairs of what the model gave and what its caller was given."""
    pairs, hooks = [], []

    def hook(module, args, output):
        pairs.append(output.logits.clone())

    hooks = [model.register_forward_hook(hook, prepend=True), model.register_forward_hook(hook)]
    run()
    for one in hooks:
        one.remove()
    return list(zip(pairs[::2], pairs[1::2], strict=True))


def test_the_masks_of_every_call_get_the_exact_tilt(model):
    tilt = torch.zeros(len(WORDS))
    tilt[3] = JUMP.scale
    tilt[RESERVED] = -torch.inf
    seen = []

    def reward(tokens):
        seen.append(tokens)
        return all_of_a(tokens)

    with guide(model, reward, JUMP, tokenizer=TOKENS, temperature=0.5) as handle:
        pairs = calls_of(model, lambda: sampled(model, generator=seeded()))
    assert len(pairs) == len(handle.trace) == 4
    for (before, after), tokens in zip(pairs, seen, strict=True):
        where = tokens.free
        expected = ((before[where] / 0.5).log_softmax(-1) + tilt).softmax(-1)
        torch.testing.assert_close((after[where] / 0.5).softmax(-1), expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(before[~where], after[~where])
        assert tokens.given[:, :2].all()
        assert not tokens.given[:, 2:].any()
    assert [round(step.progress, 2) for step in handle.trace] == [0.0, 0.25, 0.5, 0.75]


def test_scale_zero_and_removal_leave_the_sampler_as_it_is(model):
    bare = sampled(model, generator=seeded())
    before = dict(vars(model))
    with guide(model, count_of_a, GuidanceConfig(scale=0.0), tokenizer=TOKENS):
        assert torch.equal(sampled(model, generator=seeded()), bare)
    with guide(model, count_of_a, GuidanceConfig(scale=8.0), tokenizer=TOKENS) as handle:
        assert not torch.equal(sampled(model, generator=seeded()), bare)
        with pytest.raises(ValueError, match="guided already"):
            guide(model, count_of_a, tokenizer=TOKENS)
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        assert all(torch.equal(sampled(one, generator=seeded()), bare) for one in copies)
        assert b"redge_guidance" not in pickle.dumps(model)
    assert torch.equal(sampled(model, generator=seeded()), bare)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert vars(model).keys() == before.keys()
    handle.remove()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_inference_mode(model, mode, dtype):
    reward = tiny_reward()
    model.to(dtype)
    with mode(), guide(model, reward, GuidanceConfig(scale=4.0, num_draws=1), tokenizer=TOKENS):
        pairs = calls_of(model, lambda: sampled(model, generator=seeded()))
    assert all(after.dtype == dtype for _, after in pairs)
    assert not torch.equal(*pairs[0])


def test_a_pipeline_under_inference_mode():
    pipe, reward = tiny_pipeline(), tiny_reward()
    with guide(pipe, reward):
        expected = pipe(["a b", ""], generator=seeded()).sequences
    with torch.inference_mode(), guide(pipe, reward):
        assert torch.equal(pipe(["a b", ""], generator=seeded()).sequences, expected)


def test_a_reward_that_was_made_under_inference_mode_is_refused():
    pipe, reward = tiny_pipeline(), tiny_reward()
    with torch.inference_mode():
        table = torch.nn.Embedding(len(WORDS), 4)
        head = torch.nn.Linear(4, 1)
        bad = lambda tokens: head(tokens.embed(table.weight).tanh()).sum((1, 2))  # noqa: E731
        with guide(pipe, bad), pytest.raises(RuntimeError, match="Load them outside"):
            pipe("a", generator=seeded())
    with guide(pipe, reward):
        pipe("a", generator=seeded())


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict"])
def test_what_a_forward_may_return(model, kind):
    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, indices, sigma=None):
            logits = self.inner(input_ids=indices).logits
            return {"tensor": logits, "tuple": (logits, None), "dict": {"logits": logits, "more": 1}}[kind]

    wrapped = Wrapped().eval()
    with torch.no_grad():
        bare = wrapped(PROMPT)
        with guide(wrapped, all_of_a, JUMP, tokenizer=TOKENS):
            moved = wrapped(PROMPT, None)
    assert type(moved) is type(bare)
    one, other = (x if kind == "tensor" else x[0 if kind == "tuple" else "logits"] for x in (bare, moved))
    assert (other[:, 2:, 3] > one[:, 2:, 3]).all()
    assert torch.equal(one[:, :2], other[:, :2])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft calls it
def test_compiled_and_adapted_models(model):
    peft = pytest.importorskip("peft")

    def draw(other):
        with guide(model if other is None else other, all_of_a, JUMP, tokenizer=TOKENS) as handle:
            drawn = sampled(model if other is None else other, generator=seeded())
        assert len(handle.trace) == 4
        return drawn

    expected = draw(None)
    assert torch.equal(draw(torch.compile(model, backend="eager")), expected)
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["Wqkv"], r=2)).eval()
    assert torch.equal(draw(adapted), expected)


def test_calls_of_others_are_not_guided(model):
    plain = copy.deepcopy(model)
    with torch.no_grad():
        bare = plain(input_ids=PROMPT).logits

    def own_calls(tokens):
        with torch.no_grad():
            assert torch.equal(model(input_ids=PROMPT).logits, bare)
        return all_of_a(tokens)

    with guide(model, own_calls, JUMP, tokenizer=TOKENS) as handle:
        sampled(model, generator=seeded())
        assert len(handle.trace) == 4
        with pytest.warns(UserWarning, match="with gradients.*not guided"):
            assert torch.equal(model(input_ids=PROMPT).logits, bare)
        model.train()
        with torch.no_grad(), pytest.warns(UserWarning, match="in training mode: call"):
            assert torch.equal(model(input_ids=PROMPT).logits, bare)
        model.eval()
        assert len(handle.trace) == 4


def test_padding_and_prompts_reach_the_reward(model):
    seen = []

    def reward(tokens):
        seen.append(tokens)
        return count_of_a(tokens)

    ids = torch.tensor([[0, 3, MASK, MASK], [4, 5, MASK, MASK]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    four = (mask[:, None, None, :] & mask[:, None, :, None]).bool()
    additive = torch.zeros(2, 1, 4, 4).masked_fill(~four, -1e9)
    for one in (mask, four, additive):
        with guide(model, reward, JUMP, tokenizer=TOKENS, prompts=["x", "y"]) as handle:
            sampled(model, ids, attention_mask=one)
            handle.reset(["z", "w"])
            sampled(model, ids, attention_mask=one)
    for tokens in seen:
        assert tokens.attention_mask[:, :2].tolist() == [[False, True], [True, True]]
    assert [tokens.prompts for tokens in seen[:3]] == [["x", "y"], ["x", "y"], ["z", "w"]]


def test_what_is_for_models_is_refused_with_a_pipeline_by_name():
    pipe = tiny_pipeline()
    values = {"tokenizer": TOKENS, "mask_token_id": 2, "num_steps": 3, "block_length": 2, "prompts": ["a"]}
    values |= {"temperature": 0.5, "generator": seeded(), "classifier_free": None, "guidance_scale": 2.0}
    values |= {"conditional_first": False, "shift_logits": True, "images": (torch.eye(2), len), "vocabulary": slice(2)}
    values |= {"free": len, "start": len, "remasking": True}
    own = ("pipe", "reward", "config", "seed", "decode_chunk_size", "stop_when")
    assert set(values) == set(inspect.signature(guide).parameters) - {*own}
    for name, value in values.items():
        with pytest.raises(ValueError, match=f"^`{name}` is for models"):
            guide(pipe, count_of_a, **{name: value})
    with pytest.raises(ValueError, match="^`num_steps`, `temperature` are for models, .* leave them out"):
        guide(pipe, count_of_a, num_steps=3, temperature=2)
    guide(pipe, count_of_a, temperature=1, shift_logits=False).remove()


def test_bad_calls(model):
    with pytest.raises(ValueError, match="or pass its `tokenizer`"):
        guide(model, count_of_a)
    with pytest.raises(ValueError, match="`num_steps` is for models"):
        guide(tiny_pipeline(), count_of_a, num_steps=3)
    with pytest.raises(ValueError, match="`classifier_free` must be one of"):
        guide(model, count_of_a, tokenizer=TOKENS, classifier_free="both")
    for scale in (0, 1):
        with pytest.raises(ValueError, match="`guidance_scale` must be the w"):
            guide(model, count_of_a, tokenizer=TOKENS, guidance_scale=scale)
    with pytest.raises(ValueError, match="`guidance_scale` must be given where the call without"):
        guide(model, count_of_a, tokenizer=TOKENS, classifier_free="two_calls", conditional_first=False)
    no_mask = word_tokenizer()
    no_mask.mask_token = None
    with pytest.raises(ValueError, match="`mask_token_id` must be given"):
        guide(model, count_of_a, tokenizer=no_mask)
    with guide(model, count_of_a, tokenizer=TOKENS), torch.no_grad():  # noqa: SIM117
        with pytest.raises(ValueError, match="`inputs_embeds` was passed to the guided ModernBert"):
            model(inputs_embeds=torch.zeros(1, 3, 16))
    with guide(model.model, count_of_a, tokenizer=TOKENS), torch.no_grad():  # noqa: SIM117
        with pytest.raises(ValueError, match="guide the model with the head"):
            model(input_ids=PROMPT)
    assert not model._forward_hooks


def test_a_failed_reward_leaves_the_next_call_alone(model):
    def bad(tokens):
        raise KeyError("mine")

    with guide(model, bad, tokenizer=TOKENS), pytest.raises(KeyError, match="mine"):
        sampled(model)
    bare = sampled(model, generator=seeded())
    with guide(model, all_of_a, JUMP, tokenizer=TOKENS):
        assert not torch.equal(sampled(model, generator=seeded(1)), bare)


def test_shifted_logits(model):
    """Position i is predicted at i - 1, as Dream's sampler shifts it."""

    class Next(torch.nn.Module):
        def forward(self, input_ids):
            logits = model(input_ids=input_ids).logits
            return torch.cat([logits[:, 1:], logits[:, -1:]], 1)

    shifted = Next().eval()
    with torch.no_grad():
        with guide(model, all_of_a, JUMP, tokenizer=TOKENS):
            expected = model(input_ids=PROMPT).logits[:, 2:]
        with guide(shifted, all_of_a, JUMP, tokenizer=TOKENS, shift_logits=True):
            moved = shifted(PROMPT)
            logits = torch.cat([moved[:, :1], moved[:, :-1]], 1)
            torch.testing.assert_close(logits[:, 2:], expected)
            with pytest.warns(UserWarning, match="Begin texts with a token"):
                shifted(torch.full((1, 3), MASK))


def test_blocks_behind_a_cache(model):
    """The model is given a block at a time; the reward sees the text, prompt first."""

    class Cached(torch.nn.Module):
        def forward(self, input_ids, position_ids=None, past_key_values=None, use_cache=False):
            return model(input_ids=input_ids).logits

    blocks, seen = Cached().eval(), []

    def reward(tokens):
        seen.append(tokens)
        return all_of_a(tokens)

    def call(ids, first):
        positions = torch.arange(first, first + len(ids[0]))[None]
        return blocks(torch.tensor(ids), position_ids=positions, past_key_values=[], use_cache=True)

    with torch.no_grad(), guide(blocks, reward, JUMP, tokenizer=TOKENS) as handle:
        with pytest.raises(ValueError, match="begins at token 2 of a text, of which nothing was seen"):
            call([[MASK, MASK]], 2)
        for _ in range(2):
            call([[4, 5]], 0)
            call([[MASK, MASK]], 2)
            call([[6, MASK]], 2)
            call([[6, 3]], 2)
            call([[MASK, MASK]], 4)
        handle.reset(context=torch.tensor([[4, 5, 6, 7]]))
        call([[MASK, MASK]], 4)
    texts = [tokens.ids.where(~tokens.free, MASK)[0].tolist() for tokens in seen]
    once = [[4, 5, MASK, MASK], [4, 5, 6, MASK], [4, 5, 6, 3, MASK, MASK]]
    assert texts == [*once, *once, [4, 5, 6, 7, MASK, MASK]]
    given = [tokens.given.sum().item() for tokens in seen]
    assert given == [2, 2, 2, 2, 2, 2, 4]


class Wrapped(torch.nn.Module):
    """As DistributedDataParallel, which passes on whatever it is given."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs, **more):
        return self.module(*inputs, **more)


@pytest.mark.parametrize("wrap", [Wrapped, torch.nn.DataParallel])
def test_what_a_wrapper_passes_on_by_place_is_known_by_name(model, wrap):
    whole, seen = wrap(model).eval(), []
    mask = torch.ones_like(PROMPT)
    mask[0, 0] = 0

    def reward(tokens):
        seen.append(tokens.attention_mask[:, :2].tolist())
        return all_of_a(tokens)

    with guide(whole, reward, JUMP, tokenizer=TOKENS), torch.no_grad():
        whole(PROMPT, mask)
        whole(input_ids=PROMPT, attention_mask=mask)
    assert seen == [[[False, True], [True, True]]] * 2


def test_a_guided_model_in_the_reward_of_another_is_guided(model):
    other = tiny_pipeline().model
    bare = sampled(other, generator=seeded())

    def reward(tokens):
        assert not torch.equal(sampled(other, generator=seeded()), bare)
        model(input_ids=tokens.ids)  # its own calls are not
        return all_of_a(tokens)

    with guide(other, all_of_a, JUMP, tokenizer=TOKENS) as inner, guide(model, reward, JUMP, tokenizer=TOKENS) as outer:
        sampled(model)
    assert (len(inner.trace), len(outer.trace)) == (16, 4)


def test_a_batch_that_shrinks_has_one_generator(model):
    with torch.no_grad(), guide(model, all_of_a, JUMP, tokenizer=TOKENS, generator=[seeded(), seeded()]):
        model(input_ids=PROMPT)
        with pytest.raises(ValueError, match="`generator` must be one, or one for each of the batch of 1, got a list"):
            model(input_ids=PROMPT[:1])
    with pytest.raises(ValueError, match="`vocabulary` is for image tokens"):
        guide(model, all_of_a, tokenizer=TOKENS, vocabulary=slice(3))


def test_threads_that_take_turns_are_followed_apart(model):
    prompts = [PROMPT, torch.tensor([[7] + [MASK] * 4]), torch.tensor([[3, 4, 5] + [MASK] * 4])]
    config = GuidanceConfig(scale=4.0, num_draws=8, start=0.2, estimator="reinforce_loo")
    found, barrier = {}, threading.Barrier(3)

    def work(k):
        def model_in_turn(input_ids):
            barrier.wait(10)
            return model(input_ids=input_ids)

        found[k] = sampled(model_in_turn, prompts[k], generator=seeded(k))

    with guide(model, all_of_a, config, tokenizer=TOKENS, generator=seeded()) as handle:
        alone = [sampled(model, prompt, generator=seeded(k)) for k, prompt in enumerate(prompts)]
        threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(found[k], alone[k]) for k in range(3))
        progress = sorted(step.progress for step in handle.trace[-9:])
    assert progress == [0.25] * 3 + [0.5] * 3 + [0.75] * 3


def test_another_thread_meets_no_state_of_guidance_itself(model):
    found = []

    def reward(tokens):
        thread = threading.Thread(target=lambda: found.append(threading.current_thread().name))
        thread.start()
        thread.join()
        return all_of_a(tokens)

    with guide(model, reward, JUMP, tokenizer=TOKENS):
        sampled(model)
    assert len(found) == 4
