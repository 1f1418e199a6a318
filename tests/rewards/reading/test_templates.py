"""A chat template may change the answer's white space at either end: the value is that of the rendered conversation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redge_guidance.rewards import TextPreferenceReward
from tests.helpers.reward_models import relaxed, reward_model
from tests.helpers.tokenizers import tokenizer

# white space alone, left out or not, is no character of a piece
pytestmark = pytest.mark.filterwarnings("ignore:.*of the generated tokens get a gradient")

CONTENTS = (
    "m['content']",
    "m['content'].strip()",
    "m['content'] | trim",
    "m['content'].lstrip()",
    "m['content'].rstrip()",
    "m['content'].strip('\\n')",
    "m['content'].lstrip('\\n')",
    "m['content'].rstrip(' ')",
)
BESIDE = ("", " ", "\n", "<|end|>", "\n\n")
ANSWERS = ("he", " he", "he ", " he ", "\nhe", "he\n", "\n he \n", "", " ", "\n")


def template(content, left, right):
    return (
        "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'user' %}{{ m['content'] }}{% else %}"
        f"{{{{ {left!r} + ({content}) + {right!r} }}}}{{% endif %}}\n{{% endfor %}}"
    )


def official(reward, written, answer):
    """The whole conversation through the template, and the model."""
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": answer}]
    text = reward.tokenizer.apply_chat_template(turns, tokenize=False, chat_template=written)
    ids = reward.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        return reward.model(input_ids=ids).logits[0, 0]


WORDS = {kind: tokenizer(kind) for kind in ("byte", "unigram")}
MODELS = {kind: reward_model(made) for kind, made in WORDS.items()}


def check(kind, written, answers, generators=tuple(WORDS)):
    reward = TextPreferenceReward(MODELS[kind], WORDS[kind], "Who?", chat_template=written)
    expected = torch.stack([official(reward, written, answer) for answer in answers])
    torch.testing.assert_close(reward.score(answers), expected, atol=1e-5, rtol=1e-5)
    for generator in generators:
        tokens = relaxed(WORDS[generator], answers)
        expected = torch.stack([official(reward, written, answer) for answer in tokens.texts()])
        torch.testing.assert_close(reward(tokens), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("kind", list(MODELS))
def test_every_way_of_stripping(kind, content):
    """Of the two generators in turn; what follows has both."""
    for k, (left, right) in enumerate((("", ""), (" ", " "), ("\n", "<|end|>"), ("", " "))):
        check(kind, template(content, left, right), ANSWERS, list(WORDS)[k % 2 :][:1])


@given(
    st.sampled_from(sorted(MODELS)),
    st.sampled_from(CONTENTS),
    st.sampled_from(BESIDE),
    st.sampled_from(BESIDE),
    st.lists(st.text("he\n .é", max_size=6), min_size=1, max_size=3),
)
@settings(max_examples=25)
def test_any_template_and_any_answer(kind, content, left, right, answers):
    check(kind, template(content, left, right), answers)


def test_a_template_that_leaves_out_what_was_thought_has_its_value_and_no_gradient_there():
    written = template("m['content'].split('</t>')[-1]", "", "<|end|>")
    check("byte", written, ["a</t>he", "he", "he</t>"])
    reward = TextPreferenceReward(MODELS["byte"], WORDS["byte"], "Who?", chat_template=written)
    tokens = relaxed(WORDS["byte"], ["a</t>he"])
    (grad,) = torch.autograd.grad(reward(tokens).sum(), tokens.weights)
    assert grad[-2].abs().sum() > 0  # "he"
    assert grad[0].abs().sum() == 0


@pytest.mark.parametrize("content", ["m['content'] | upper", "m['content'] | e", "m['content'] ~ m['content']"])
def test_a_template_that_writes_another_answer_is_refused(content):
    with pytest.raises(ValueError, match="`chat_template` must write the assistant's last turn"):
        TextPreferenceReward(MODELS["byte"], WORDS["byte"], "Who?", chat_template=template(content, "", ""))
