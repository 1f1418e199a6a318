"""Settings of guidance under which a step is a function of that step alone."""

from redge_guidance import GuidanceConfig
from redge_guidance.updates import Natural

# One price for all sequences, the reward asked at every step, q starting from p: what identities of a step are about.
PLAIN = {"scale": 2.0, "num_draws": 4, "estimator": "entropy_mix", "update": Natural(3, 1 / 3)}
PLAIN |= {"every": 1, "warm_start": 0.0}


def plain_config(scale=PLAIN["scale"], *args, **settings):
    """A `GuidanceConfig` of these settings, given as it takes them, and else of `PLAIN`."""
    names = ("estimator", "update")[: len(args)]
    return GuidanceConfig(**(PLAIN | {"scale": scale} | dict(zip(names, args, strict=True)) | settings))
