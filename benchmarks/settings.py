"""Settings that experiments name, so that they stay the same whatever the defaults are."""

from typing import Any

from redge_guidance.updates import Natural

# One price for all sequences, the reward asked at every step, twelve draws a step, q starting from p: the defaults of
# the tables that say so.
PLAIN: dict[str, Any] = {
    "scale": 2.0,
    "num_draws": 4,
    "estimator": "entropy_mix",
    "update": Natural(3, 1 / 3),
    "every": 1,
    "warm_start": 0.0,
}
