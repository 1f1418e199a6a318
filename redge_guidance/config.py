"""Settings of guidance."""

import json
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from redge_guidance.estimators import ESTIMATORS, EntropyMix, Estimator
from redge_guidance.updates import UPDATES, Natural, Update


@dataclass(frozen=True)
class GuidanceConfig:
    """How strongly, where and by which computation a reward steers a sampler. The defaults are good defaults.

    At every denoising step guidance maximises, for each sequence, `scale * E_q[reward] - KL(q || p)` over factorised
    distributions q of the free positions, p being the model's own prediction there.

    Attributes:
        scale: nats of log-probability that one unit of reward is worth; 0 switches guidance off.
        estimator: how a differentiable sample is drawn, by a name of `ESTIMATORS` or as an object. The default,
            `"entropy_mix"`, shows the reward a mixture of tokens where the model is sure and a token where it is not;
            take `"straight_through"` for a reward that needs one-hot samples. `"reinforce_loo"` treats every reward as
            one without gradient; a reward, or a term of a sum, that says it has none is treated so anyway.
        update: how q is improved, by name (`"natural"`, `"adam"`) or as an object with its own step size and count.
        num_samples: relaxed samples drawn for every update, over which the gradient is averaged; 32 or more where a
            reward has no gradient.
        start, stop: guide while `start <= progress < stop`, progress the share of denoising steps done, in [0, 1).
        kl_budget: upper limit of KL(q || p) at every step, in nats per free token, averaged over a sequence; None: no
            limit. A q beyond it is moved back along the geometric path to p.
        support: q differs from p on this many likeliest tokens of every position only; None: on the whole vocabulary.
        decode_chunk_size: of images, this many are decoded to pixels at a time, and once more in the backward pass
            (gradient checkpointing), which bounds the memory; None: all at once, and only once.

    Raises:
        ValueError: a value out of range or an unknown name.

    >>> GuidanceConfig(scale=1.5).num_samples
    4
    """

    scale: float = 2.0
    estimator: str | Estimator = field(default_factory=EntropyMix)
    update: str | Update = field(default_factory=Natural)
    num_samples: int = 4
    start: float = 0.0
    stop: float = 1.0
    kl_budget: float | None = None
    support: int | None = 128
    decode_chunk_size: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "estimator", _by_name("estimator", self.estimator, ESTIMATORS))
        object.__setattr__(self, "update", _by_name("update", self.update, UPDATES))
        if not _is_number(self.scale) or not 0 <= self.scale < float("inf"):
            raise ValueError(f"`scale` must be a finite number >= 0, got {self.scale!r}; 0 switches guidance off.")
        if not _is_number(self.start) or not _is_number(self.stop) or not 0 <= self.start < self.stop <= 1:
            raise ValueError(
                f"`start` and `stop` must satisfy 0 <= start < stop <= 1, got start={self.start!r}, stop={self.stop!r};"
                " they are shares of the denoising steps."
            )
        if self.kl_budget is not None and not (_is_number(self.kl_budget) and self.kl_budget > 0):
            raise ValueError(f"`kl_budget` must be > 0 nats per free token or None, got {self.kl_budget!r}.")
        for name, lowest in (("num_samples", 1), ("support", 2), ("decode_chunk_size", 1)):
            value = getattr(self, name)
            if name != "num_samples" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
                raise ValueError(f"`{name}` must be an integer >= {lowest}, got {value!r}.")
        if hasattr(self.estimator, "gradient") and self.num_samples < 2:
            raise ValueError(
                f"`num_samples` must be >= 2 for {type(self.estimator).__name__}, got {self.num_samples}; each draw is "
                "compared with the mean of the others."
            )

    def to_json(self) -> str:
        """One line of JSON; `GuidanceConfig.from_json` gives an equal config back."""
        return json.dumps({f.name: _to_plain(getattr(self, f.name), f.name) for f in fields(self)})

    @classmethod
    def from_json(cls, text: str) -> "GuidanceConfig":
        """The inverse of `to_json`. Raises ValueError for an unknown field or an unknown name."""
        values = json.loads(text)
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"GuidanceConfig has no field `{sorted(unknown)[0]}`; it has {', '.join(_names(cls))}.")
        for name, registry in (("estimator", ESTIMATORS), ("update", UPDATES)):
            if isinstance(values.get(name), dict):
                settings = dict(values[name])
                kind = type(_by_name(name, settings.pop("name", None), registry))
                values[name] = kind(**settings)
        return cls(**values)


def _names(cls: Any) -> list[str]:
    return [f.name for f in fields(cls)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _by_name(argument: str, value: Any, registry: dict[str, Any]) -> Any:
    if callable(value):
        return value
    if not isinstance(value, str) or value not in registry:
        raise ValueError(f"`{argument}` must be one of {', '.join(sorted(registry))} or an object, got {value!r}.")
    return registry[value]()


def _to_plain(value: Any, name: str) -> Any:
    if not is_dataclass(value) or isinstance(value, type):
        if callable(value):
            raise ValueError(f"`{name}` is a custom object and cannot be written as JSON; use a registered one.")
        return value
    names = {kind: key for registry in (ESTIMATORS, UPDATES) for key, kind in registry.items()}
    if type(value) not in names:
        raise ValueError(f"`{name}` is {type(value).__name__}, which is not registered and cannot be written as JSON.")
    return {"name": names[type(value)]} | {f.name: getattr(value, f.name) for f in fields(value)}
