import copy
import dataclasses
import json
import math
import pickle
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redge_guidance import GuidanceConfig, ReDGE, StraightThrough
from redge_guidance.estimators import ESTIMATORS, Estimator, Pathwise, ReinforceLOO, Soft
from redge_guidance.guidance import Guidance
from redge_guidance.updates import Adam, Natural

CONFIGS = [
    GuidanceConfig(),
    GuidanceConfig(scale=0.5, estimator="redge", update="adam", support=None, kl_budget=0.1),
    GuidanceConfig(estimator=ReDGE(3, 0.6), update=Adam(5, 0.1), num_draws=2, start=0.1, stop=0.9, support=64),
    GuidanceConfig(update=Natural(2, 0.5, 0.1), max_tilt=3.5),
    GuidanceConfig(max_tilt=float("inf"), kl_budget=float("inf")),
    *[GuidanceConfig(estimator=name) for name in ESTIMATORS],
    *[GuidanceConfig(estimator=kind(hard=False)) for kind in ESTIMATORS.values() if kind is not ReinforceLOO],
]


class Tempered(Estimator):
    """A toy: everything written by hand."""

    def __call__(self, logits, generator=None):
        return torch.nn.functional.gumbel_softmax(logits, hard=self.hard)


@dataclasses.dataclass(frozen=True)
class Sharpened(Pathwise):
    """A toy: mathematics on rows."""

    power: float = 2.0

    def soft(self, logits, noise):
        return (self.power * logits).softmax(-1)

    def vjp(self, logits, noise, drawn, grad):
        return self.power * super().vjp(self.power * logits, noise, drawn, grad)


@pytest.mark.parametrize("config", CONFIGS)
def test_json_round_trip(config):
    text = config.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    again = GuidanceConfig.from_json(text)
    assert again == config
    assert again.estimator.hard == config.estimator.hard


@pytest.mark.parametrize("toy", [Tempered(), Tempered(hard=False), Sharpened(), Sharpened(3.0, hard=False)], ids=repr)
def test_an_estimator_of_one_s_own(toy, monkeypatch):
    config = GuidanceConfig(estimator=toy)
    assert config.estimator is toy
    assert config.estimator(torch.zeros(4, 3), generator=None).shape == (4, 3)
    with pytest.raises(ValueError, match=f"`estimator` is {type(toy).__name__}, which is not registered"):
        config.to_json()
    monkeypatch.setitem(ESTIMATORS, "toy", type(toy))
    assert GuidanceConfig.from_json(config.to_json()) == config
    assert GuidanceConfig(estimator="toy").estimator == type(toy)()


def test_an_estimator_of_one_s_own_has_the_gradient_it_states():
    logits = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(Sharpened(hard=False), logits)


def test_estimator_is_always_read_as_an_object():
    config = GuidanceConfig(estimator="redge")
    for same in (config, copy.deepcopy(config), pickle.loads(pickle.dumps(config)), dataclasses.replace(config)):
        assert same == GuidanceConfig(estimator=ReDGE())
        assert same.estimator == ReDGE()
    assert dataclasses.replace(config, estimator="soft").estimator == Soft()
    assert GuidanceConfig().estimator == Soft()
    assert "estimator=ReDGE(" in repr(config)


def test_names_and_objects_are_the_same_thing():
    assert GuidanceConfig(estimator="straight_through", update="natural") == GuidanceConfig(
        estimator=StraightThrough(), update=Natural()
    )
    assert GuidanceConfig.from_json('{"scale": 2, "update": "adam"}') == GuidanceConfig(scale=2, update=Adam())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": -1.0}, "`scale` must be a finite number >= 0, got -1.0"),
        ({"scale": 1e19}, r"`scale` must be <= 1e\+15, got 1e\+19"),
        ({"scale": float("nan")}, "`scale` must be a finite number"),
        ({"scale": "2"}, "`scale` must be a finite number"),
        ({"start": 0.5, "stop": 0.5}, "got start=0.5, stop=0.5"),
        ({"start": 0.6, "stop": 0.5}, "0 <= start < stop <= 1"),
        ({"stop": 1.5}, "0 <= start < stop <= 1"),
        (
            {"estimator": "gumbel"},
            "`estimator` must be one of entropy_mix, gumbel_softmax, .*straight_through or an Estimator, got 'gumbel'",
        ),
        ({"estimator": StraightThrough}, "or an Estimator, got <class"),
        ({"estimator": torch.softmax}, "or an Estimator, got <built-in"),
        ({"estimator": ["redge"]}, r"or an Estimator, got \['redge'\]"),
        ({"update": "sgd"}, "`update` must be one of adam, natural or an object, got 'sgd'"),
        ({"estimator": "reinforce_loo", "num_draws": 1}, "`num_draws` must be >= 2 for ReinforceLOO, got 1"),
        ({"num_draws": 0}, "`num_draws` must be an integer >= 1, got 0"),
        ({"support": 1}, "`support` must be an integer >= 2, got 1"),
        ({"kl_budget": 0.0}, "`kl_budget` must be > 0 nats"),
        ({"max_tilt": 0.0}, "`max_tilt` must be > 0 nats or None, got 0.0; math.inf is no limit"),
        ({"max_tilt": float("nan")}, "`max_tilt` must be > 0 nats or None, got nan"),
        ({"max_tilt": "7"}, "`max_tilt` must be > 0 nats or None, got '7'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        GuidanceConfig(**settings)


def test_bad_json():
    with pytest.raises(ValueError, match="GuidanceConfig has no field `strength`"):
        GuidanceConfig.from_json('{"strength": 1}')
    with pytest.raises(ValueError, match="`estimator` must be one of"):
        GuidanceConfig.from_json('{"estimator": {"name": "nope"}}')
    with pytest.raises(ValueError, match="`hard` must be True for ReinforceLOO"):
        GuidanceConfig.from_json('{"estimator": {"name": "reinforce_loo", "hard": false}}')
    with pytest.raises(ValueError, match="`update` is a custom object"):
        GuidanceConfig(update=lambda log_p, ascent, project: log_p).to_json()


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GuidanceConfig().scale = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        GuidanceConfig().estimator = "soft"


PLAIN = st.sampled_from([None, True, 0, 1, 2, -1, 0.5, math.nan, math.inf, 10**400, "", "redge", "0.5"])
OTHER = st.lists(PLAIN, max_size=2) | st.dictionaries(st.sampled_from(["name", "hard"]), PLAIN, max_size=2)
FIELDS = st.sampled_from([field.name for field in dataclasses.fields(GuidanceConfig)])
NAMES = st.sampled_from([*ESTIMATORS, "natural", "adam", "nope", None, 3, ["redge"]])
SETTINGS = ["num_steps", "t1", "hard", "tau", "weight", "step_size", "damping", "num_updates", "nope"]
NAMED = st.builds(lambda name, key, value: {"name": name, key: value}, NAMES, st.sampled_from(SETTINGS), PLAIN | OTHER)


@given(PLAIN | OTHER | st.dictionaries(FIELDS, PLAIN | OTHER | NAMED, max_size=2))
def test_any_json_is_a_config_or_a_valueerror(content):
    """And a config that is read is written and read again as what it was."""
    try:
        config = GuidanceConfig.from_json(json.dumps(content))
    except ValueError:
        return
    assert GuidanceConfig.from_json(config.to_json()) == config
    assert config.scale is None or math.isfinite(config.scale)


@pytest.mark.parametrize("update", [{}, {"name": None}, {"num_updates": 3}, 0, False, "", "none"])
def test_only_null_leaves_the_update_to_the_reward(update):
    with pytest.raises(
        ValueError, match=re.escape(f"`update` must be one of adam, natural or an object, got {update!r}")
    ):
        GuidanceConfig.from_json(json.dumps({"update": update}))
    assert GuidanceConfig.from_json('{"update": null}') == GuidanceConfig()


@pytest.mark.parametrize("text", ["", "{", "[1", "nul", "\ud800", b"\xff", None, 3, {"scale": 1}, "[" * 100_000])
def test_what_is_no_json(text):
    with pytest.raises(ValueError, match="`text` must be"):
        GuidanceConfig.from_json(text)


@given(st.integers(-(2**66), 2**66) | st.floats() | st.text(max_size=3) | st.none() | st.booleans() | st.just([1]))
def test_a_seed_is_what_torch_takes_as_one(seed):
    try:
        torch.Generator().manual_seed(seed)
        taken = not isinstance(seed, bool)
    except (TypeError, RuntimeError, ValueError, OverflowError):
        taken = False
    if taken:
        Guidance(len, seed=seed)
    else:
        with pytest.raises(ValueError, match="`seed` must be an integer from"):
            Guidance(len, seed=seed)


@pytest.mark.parametrize(
    ("settings", "first", "later"),
    [
        ({}, 1, 1),  # `soft` draws nothing
        ({"estimator": "entropy_mix"}, 4, 1),
        ({"estimator": "redge", "target": 1.0}, 4, 1),
        ({"estimator": "redge", "scale": 2.0}, 1, 1),
        ({"num_draws": 3}, 3, 3),
        ({"estimator": "reinforce_loo"}, 32, 32),
    ],
)
def test_usual_numbers_of_draws(settings, first, later):
    config = GuidanceConfig(**settings)
    assert [config.draws_of(config.estimator, at_first) for at_first in (True, False)] == [first, later]
