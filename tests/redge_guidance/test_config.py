import dataclasses

import pytest

from redge_guidance import GuidanceConfig, ReDGE, StraightThrough
from redge_guidance.estimators import ESTIMATORS
from redge_guidance.updates import Adam, Natural

CONFIGS = [
    GuidanceConfig(),
    GuidanceConfig(scale=0.5, estimator="redge", update="adam", support=None, kl_budget=0.1),
    GuidanceConfig(estimator=ReDGE(3, 0.6), update=Adam(5, 0.1), num_samples=2, start=0.1, stop=0.9, support=64),
    GuidanceConfig(update=Natural(2, 0.5, 0.1)),
    *[GuidanceConfig(estimator=name) for name in ESTIMATORS],
]


@pytest.mark.parametrize("config", CONFIGS)
def test_json_round_trip(config):
    assert GuidanceConfig.from_json(config.to_json()) == config


def test_names_and_objects_are_the_same_thing():
    assert GuidanceConfig(estimator="straight_through", update="natural") == GuidanceConfig(
        estimator=StraightThrough(), update=Natural()
    )
    assert GuidanceConfig.from_json('{"scale": 2, "update": "adam"}') == GuidanceConfig(scale=2, update=Adam())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": -1.0}, "`scale` must be a finite number >= 0, got -1.0"),
        ({"scale": float("nan")}, "`scale` must be a finite number"),
        ({"scale": "2"}, "`scale` must be a finite number"),
        ({"start": 0.5, "stop": 0.5}, "got start=0.5, stop=0.5"),
        ({"start": 0.6, "stop": 0.5}, "0 <= start < stop <= 1"),
        ({"stop": 1.5}, "0 <= start < stop <= 1"),
        (
            {"estimator": "gumbel"},
            "`estimator` must be one of entropy_mix, gumbel_softmax, .*straight_through or an object, got 'gumbel'",
        ),
        ({"update": "sgd"}, "`update` must be one of adam, natural or an object, got 'sgd'"),
        ({"estimator": "reinforce_loo", "num_samples": 1}, "`num_samples` must be >= 2 for ReinforceLOO, got 1"),
        ({"num_samples": 0}, "`num_samples` must be an integer >= 1, got 0"),
        ({"support": 1}, "`support` must be an integer >= 2, got 1"),
        ({"kl_budget": 0.0}, "`kl_budget` must be > 0 nats"),
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
    with pytest.raises(ValueError, match="`estimator` is a custom object"):
        GuidanceConfig(estimator=lambda logits, hard, generator: logits).to_json()


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GuidanceConfig().scale = 1.0
