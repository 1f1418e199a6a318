"""What CONTRIBUTING.md shows works as it stands there."""

import re
from pathlib import Path

import pytest
import torch

from redge_guidance import GuidanceConfig, guide
from redge_guidance.estimators import ESTIMATORS
from redge_guidance.hosts import registered_hosts, supports, unregister_host
from tests.helpers.hosts import A, count_of_a, seeded
from tests.helpers.tiny import WORDS, tiny_pipeline, word_tokenizer

CODE = re.findall(r"```python\n(.*?)```", (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(), re.DOTALL)


def run(number):
    names = {"__name__": "example"}
    exec(CODE[number], names)
    assert len(CODE[number].splitlines()) < 30
    return names


def test_there_is_one_of_each():
    assert len(CODE) == 3


def test_the_reward_shortens_texts():
    pipe, brevity = tiny_pipeline(), run(0)["Brevity"]()
    lengths = []
    for scale in (0.0, 4.0):
        with guide(pipe, brevity, GuidanceConfig(scale=scale)):
            lengths.append(sum(len(text.split()) for text in pipe([""] * 32, generator=seeded()).texts))
    assert lengths[1] < lengths[0] / 2


def test_the_estimator_is_found_by_name_and_guides():
    try:
        tempered = run(1)["Tempered"]
        logits = torch.randn(3, 5, requires_grad=True)
        slope = torch.randn(3, 5)
        (grad,) = torch.autograd.grad((tempered()(logits) * slope).sum(), logits)
        (expected,) = torch.autograd.grad(((logits / 2).softmax(-1) * slope).sum(), logits)
        torch.testing.assert_close(grad, expected)
        config = GuidanceConfig(scale=8.0, estimator="tempered")
        assert GuidanceConfig.from_json(config.to_json()) == config
        pipe = tiny_pipeline()
        bare = (pipe([""] * 16, generator=seeded()).sequences == A).float().mean()
        with guide(pipe, count_of_a, config):
            assert (pipe([""] * 16, generator=seeded()).sequences == A).float().mean() > bare + 0.1
    finally:
        ESTIMATORS.pop("tempered", None)


class MyPipeline:
    """Its scheduler is itself."""

    num_inference_steps = 1

    def __init__(self):
        self.scheduler, self.tokenizer = self, word_tokenizer()

    def set_timesteps(self, number):
        pass

    def step(self, model_output, timestep, sample, mask_token_id=2):
        return torch.where(sample == mask_token_id, model_output.argmax(-1), sample)

    def __call__(self):
        return self.step(torch.zeros(1, 3, len(WORDS)), 0, torch.tensor([[2, 4, 2]]), mask_token_id=2)


def test_the_host_guides_a_pipeline_of_ones_own():
    host = run(2)["MyHost"]
    try:
        assert registered_hosts()[0] is host
        pipe = MyPipeline()
        bare = pipe().tolist()
        with guide(pipe, count_of_a):
            assert pipe().tolist() == [[3, 4, 3]]
        assert pipe().tolist() == bare == [[0, 4, 0]]
        assert not {"step", "set_timesteps"} & set(vars(pipe))
        run(2)  # as when a notebook's cell runs again
        assert len([kind for kind in registered_hosts() if kind.__name__ == "MyHost"]) == 1
    finally:
        unregister_host(host)
    assert supports(MyPipeline()) is None


def test_a_users_host_wins_over_ours_and_its_errors_stay_its_own():
    code = CODE[2].replace('is_a(pipe, "MyPipeline")', 'is_a(pipe, "MaskedTextPipeline")')
    names = {"__name__": "example"}
    exec(code.replace('arguments["timestep"]', "self.pipe.timestep_that_is_not_there"), names)
    pipe = tiny_pipeline()
    try:
        assert supports(pipe).startswith("MyPipeline")
        with guide(pipe, count_of_a), pytest.raises(AttributeError, match="timestep_that_is_not_there"):
            pipe("")
    finally:
        unregister_host(names["MyHost"])
    with guide(pipe, count_of_a) as handle:
        pipe("")
    assert handle.trace
