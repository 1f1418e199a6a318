"""Conversations as prompts, and the answers beside the texts."""

import pytest
import torch

from redge_guidance.chats import key_of
from redge_guidance.pipelines.sampling import Source
from redge_guidance.pipelines.text.bound import Scoring
from tests.helpers.tiny import CHAT_TEMPLATE, tiny_pipeline, tiny_uniform

ASK = {"role": "user", "content": "b c"}
TURNS = [
    {"role": "system", "content": "e"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "d"},
    ASK,
]
MAKE = [tiny_pipeline, tiny_uniform]


def chatting(make=tiny_pipeline, template=CHAT_TEMPLATE, **kwargs):
    pipe = make(**kwargs)
    pipe.tokenizer.chat_template = template
    return pipe


def drawn(pipe, prompt, **settings):
    return pipe(prompt, gen_length=4, generator=torch.Generator().manual_seed(0), **settings)


@pytest.mark.parametrize("make", MAKE)
def test_a_conversation_is_what_the_template_makes_of_it(make):
    pipe = chatting(make, length=16)
    output = drawn(pipe, TURNS)
    ids = pipe.tokenizer.apply_chat_template(TURNS, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert output.sequences[0, : len(ids)].tolist() == ids
    assert output.texts == [f"e a d b c a {output.answers[0]}".strip()]
    one = drawn(pipe, [ASK])
    alike = (drawn(pipe, "b c", use_chat_template=True), drawn(pipe, [[ASK]]), drawn(pipe, ([ASK],)))
    for other in alike:
        assert torch.equal(one.sequences, other.sequences)
        assert one.answers == other.answers


@pytest.mark.parametrize("make", MAKE)
def test_batches_of_conversations_and_strings(make):
    pipe = chatting(make, length=16)
    prompts = [TURNS, [ASK], "b c"]
    with pytest.raises(ValueError, match="`prompt` has both strings and lists of messages; pass `use_chat_template="):
        drawn(pipe, prompts)
    seen = []
    output = drawn(
        pipe,
        prompts,
        use_chat_template=True,
        callback_on_step_end=lambda pipe, *_: seen.append(pipe.drawing) or {},
    )
    assert all(drawing.chat and drawing.prompts == prompts for drawing in seen)
    assert len(output.answers) == 3
    for text, answer in zip(output.texts, output.answers, strict=True):
        assert text.endswith(answer)
    assert all(not text.startswith("e a") for text in output.texts[1:])


@pytest.mark.parametrize("make", MAKE)
def test_answers_of_plain_prompts_and_of_prompts_with_gaps(make):
    pipe = make(length=8)
    output = drawn(pipe, ["a b", ""])
    assert output.texts == [f"a b {output.answers[0]}".strip(), output.answers[1]]
    gaps = ["a [MASK] b", "[MASK] b", "a [MASK]"] if make is tiny_pipeline else []
    output = drawn(pipe, gaps)
    assert output.answers == output.texts
    assert len(drawn(pipe, "a", return_dict=False)) == 2


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ([{"role": "user"}], "`prompt` must be made of messages .* of strings, got None as the content of message 0"),
        ([{"role": "user", "content": ["a"]}], r"got \['a'\] as the content of message 0"),
        ([{"content": "a"}], "got None as the role of message 0"),
        ([*TURNS, {"role": "assistant", "content": "a"}], "`prompt` must end before the answer"),
        ([{"role": "user", "content": "a [MASK]"}], r"`prompt` must not contain reserved tokens, got '\[MASK\]'"),
        ([{"role": "user", "content": "a [EOS]"}], r"`prompt` must not contain reserved tokens, got '\[EOS\]'"),
        ([[ASK], []], r"`prompt` must be a string or a list of strings, or of messages .* got \[\]"),
        ([3], "`prompt` must be a string or a list of strings, or of messages .* got 3"),
        ({"role": "user", "content": "a"}, "`prompt` must be a string or a list of strings, or of messages"),
    ],
)
def test_what_is_no_conversation(prompt, error):
    with pytest.raises(ValueError, match=error):
        drawn(chatting(length=16), prompt)


def test_a_conversation_needs_a_template_that_takes_it():
    with pytest.raises(ValueError, match="`prompt` of messages needs a chat template, and the tokenizer has none; "):
        drawn(tiny_pipeline(), [ASK])
    picky = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}{% endfor %}"
    with pytest.raises(ValueError, match="cannot be written in the chat template .* none. It has turns of system"):
        drawn(chatting(template=picky, length=16), TURNS)


def test_the_bound_on_the_probability_of_an_answer():
    pipe = chatting(length=16)
    front = "b c [EOS] a"
    ids = pipe.tokenizer(f"{front} d e").input_ids
    generator = [torch.Generator().manual_seed(1) for _ in range(2)]
    found = pipe.nll("d e", prompts=[ASK], num_corruptions=4, generator=generator[0])
    levels = (torch.arange(4) + torch.rand(4, generator=generator[1])) / 4
    how = Scoring(4, 4, 32, Source(generator[1], 4))
    expected = pipe._corrupted_nll(torch.tensor([ids] * 4), levels, how).mean()
    torch.testing.assert_close(found, expected[None])


def test_keys_of_prompts():
    assert key_of([ASK]) == key_of(({"content": "b c", "role": "user"},))
    assert len({key_of(one) for one in ("b c", [ASK], None, TURNS)}) == 4
