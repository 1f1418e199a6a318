"""Set-ups with constraints, as the model `redge` answers requests under them."""

import re

import pytest

from redge_guidance import save
from redge_guidance.constraints import RegexConstraint
from redge_guidance.harness.loading import load_setup
from redge_guidance.harness.model import RedgeLM
from redge_guidance.harness.options import Options
from redge_guidance.pipelines import TextPipeline
from redge_guidance.rewards import LengthReward
from tests.helpers.tiny import tiny_pipeline, tiny_reward
from tests.redge_guidance.harness.test_model import texts_of

FORM = RegexConstraint(r"\s*a( [bc])+", answer_only=True)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "pipe"
    tiny_pipeline(length=12).save_pretrained(folder)
    return TextPipeline.from_pretrained(folder)


@pytest.mark.parametrize("reward", [FORM, LengthReward(2, answer_only=True) & FORM])
def test_answers_have_the_form_of_the_set_up(reward, pipe, tmp_path):
    save(tmp_path / "setup.yaml", pipe, reward)
    found = texts_of(RedgeLM(setup=str(tmp_path / "setup.yaml")), max_gen_toks=5)
    assert all(re.fullmatch(FORM.pattern, text) for text in found.values())
    cut = texts_of(RedgeLM(setup=str(tmp_path / "setup.yaml")), max_gen_toks=5, until=[" c"])
    assert cut == {k: text.partition(" c")[0] for k, text in found.items()}


def test_contexts_that_are_judged_too_and_do_not_fit_are_an_error(pipe, tmp_path):
    save(tmp_path / "setup.yaml", pipe, RegexConstraint("a( [bc])+"))
    with pytest.raises(ValueError, match="contradicts text .* have the answer alone judged"):
        texts_of(RedgeLM(setup=str(tmp_path / "setup.yaml")))


def test_another_reward_leaves_the_constraint(pipe, tmp_path):
    save(tmp_path / "setup.yaml", pipe, LengthReward(2) & FORM)
    setup, reward = str(tmp_path / "setup.yaml"), tiny_reward()
    found = load_setup(Options(setup=setup), reward=reward).reward
    assert (found.reward, found.constraint.pattern) == (reward, FORM.pattern)
    named = load_setup(Options(setup=setup, reward="builtin:sentiment", label="positive")).reward
    assert (named.reward.name, named.constraint.pattern) == ("TextClassifierReward", FORM.pattern)
    save(tmp_path / "setup.yaml", pipe, FORM)
    with pytest.raises(ValueError, match="`scale` is for guidance, which needs a `reward`"):
        load_setup(Options(setup=setup, scale=2.0))
