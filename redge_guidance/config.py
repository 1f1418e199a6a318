"""Settings of guidance."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, Generic, TypeVar

from redge_guidance.checks import as_real, whole_number
from redge_guidance.estimators import ESTIMATORS, Estimator, Soft
from redge_guidance.updates import UPDATES, Update

_Kind = TypeVar("_Kind")
Schedule = Callable[[float], float]
SCHEDULES: dict[str, Schedule] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "early": lambda progress: float(progress < 0.5),
}
_DRAWS, _DRAWS_FOR_STRENGTH, _DRAWS_BY_VALUES = 1, 4, 32
_MOST = 1e15  # nats a unit of reward, whose squares float32 still holds


class _Named(Generic[_Kind]):
    """A field that takes an object, or its name in a registry, and is read as the object.

    A descriptor as the default of a dataclass's field (see the documentation of `dataclasses`): what it gives for the
    class is the field's default.
    """

    def __init__(self, registry: dict[str, Any], default: Callable[[], _Kind], check: Callable[[Any], bool], kind: str):
        self._registry, self._default, self._check, self._kind = registry, default, check, kind

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, config: object, owner: type | None = None) -> _Kind:
        if config is None:  # a dataclass asks its fields for their defaults
            return self._default()
        value: _Kind = config.__dict__[self._name]
        return value

    def __set__(self, config: object, value: str | _Kind) -> None:
        if isinstance(value, str) and value in self._registry:
            value = self._registry[value]()
        if isinstance(value, str) or not self._check(value):
            names = ", ".join(sorted(self._registry))
            raise ValueError(f"`{self._name}` must be one of {names} or an {self._kind}, got {value!r}.")
        config.__dict__[self._name] = value


def _is_estimator(value: Any) -> bool:
    return isinstance(value, Estimator)


def _is_update(value: Any) -> bool:
    return value is None or (callable(value) and not isinstance(value, type))


@dataclass(frozen=True)
class GuidanceConfig:
    """How strongly, where and by which computation a reward steers a sampler. The defaults are good defaults.

    At every denoising step guidance moves, for each sequence, a factorised distribution q of the free positions away
    from p, the model's own prediction there: as little as `E_q[reward] >= target` asks for, KL(q || p) being at most
    `kl_budget`; or, with `scale`, to the maximum of `scale * E_q[reward] - KL(q || p)`. With neither the target is the
    reward's own, `Reward.usual_target`; a reward that names none, or is a sum with such a term, is raised as far as the
    budget allows. Numbers may be NumPy's, fractions or tensors without dimension; they are kept as plain ones.

    Attributes:
        scale: nats of log-probability that one unit of reward is worth, whatever the reward is; 0 switches guidance
            off. None: as many, for every sequence and step, as the target and the budget ask for.
        estimator: how a differentiable sample is drawn: an `Estimator`, or its name in `ESTIMATORS`, which makes one of
            default settings. The default, `"soft"`, shows the reward the mean of what q draws, and draws nothing
            itself; take `"straight_through"` for a reward that needs one-hot samples.
            `"reinforce_loo"` treats every reward as one without gradient; a reward, or a term of a sum, that says it
            has none is treated so anyway.
        update: how q is improved, by name (`"natural"`, `"adam"`) or as an object with its own step size and count.
            None: `Natural()`, two updates of half a step; for a reward of images three of a third, which is less
            linear (`redge_guidance.strength.update_of`).
        num_draws: relaxed samples drawn for every update, over which the gradient is averaged; None: 1, of random ones
            4 where by them it is found what the budget buys, and 32 where a reward, or a term of a sum, has no
            gradient.
        start, stop: guide while `start <= progress < stop`, progress the share of denoising steps done, in [0, 1).
        kl_budget: upper limit of KL(q || p) at every step, in nats per free token, averaged over a sequence. A q beyond
            it is moved back along the geometric path to p. Without `scale` it also says how much a unit of reward may
            cost: the strength that spends it when the reward of a sequence is first asked is the most that is used
            later. None: with `scale` no limit, else `Reward.usual_scale`, or the budget
            1 for a reward that names none, of images 2 (`redge_guidance.strength.USUAL_BUDGET`).
        support: q differs from p on this many likeliest tokens of every position only; None: on the whole vocabulary.
        target: the reward that a sequence is to reach, in the reward's own units. One that has reached it is left
            alone, one that cannot spends its budget; `SequenceFigures.reached` says which. Not with `scale`.
        schedule: what `scale`, or without it the price that is paid, is multiplied by in the course of the steps:
            `"constant"`; `"linear"`, from 1 down to 0; `"early"`, 1 in the first half and 0 after it; or a function
            from the share of the steps that are done, in [0, 1), to a number >= 0.
        every: the reward is asked at every n-th step. At the steps between, `log q - log p` is kept, position by
            position and token by token, on top of what the model then says.
        warm_start: the share of `log q - log p` of the step before from which q starts, in [0, 1], so that gradients
            are averaged over steps as well; 0: from p.
        max_tilt: the most nats by which `log q - log p` of a token may be above the mean of its position under p, so
            that what promises most is not taken for more than the reward can hold, see `divergence.path`; `math.inf`:
            no limit. None: `redge_guidance.strength.USUAL_TILT` for rewards with a `usual_scale`; else, and with
            `scale`, none.

    Raises:
        ValueError: a value out of range or an unknown name.

    >>> GuidanceConfig(target=-0.1).every
    2
    >>> GuidanceConfig(estimator="redge").estimator.num_steps
    4
    """

    scale: float | None = None
    estimator: _Named[Estimator] = _Named(ESTIMATORS, Soft, _is_estimator, "Estimator")
    update: _Named[Update | None] = _Named(UPDATES, lambda: None, _is_update, "object")
    num_draws: int | None = None
    start: float = 0.0
    stop: float = 1.0
    kl_budget: float | None = None
    support: int | None = 128
    target: float | None = None
    schedule: str | Schedule = "constant"
    every: int = 2
    warm_start: float = 0.5
    max_tilt: float | None = None

    def __post_init__(self) -> None:
        scale, target, start, stop = (as_real(value) for value in (self.scale, self.target, self.start, self.stop))
        if self.scale is not None:
            if scale is None or not 0 <= scale < float("inf"):
                raise ValueError(f"`scale` must be a finite number >= 0, got {self.scale!r}; 0 switches guidance off.")
            if scale > _MOST:
                raise ValueError(f"`scale` must be <= {_MOST:g}, got {self.scale!r}; squares of it leave float32.")
        if self.target is not None:
            if target is None or not abs(target) < float("inf"):
                raise ValueError(
                    f"`target` must be a finite number, in units of the reward, or None, got {self.target!r}; for as "
                    "much as a budget buys leave it out and set `kl_budget`."
                )
            if scale is not None:
                raise ValueError(
                    f"`target` and `scale` exclude each other, got target={target!r} and scale={scale!r}: a target "
                    "finds its own strength. Leave one out."
                )
        if start is None or stop is None or not 0 <= start < stop <= 1:
            raise ValueError(
                f"`start` and `stop` must satisfy 0 <= start < stop <= 1, got start={self.start!r}, stop={self.stop!r};"
                " they are shares of the denoising steps."
            )
        budget = as_real(self.kl_budget)
        if self.kl_budget is not None and (budget is None or not budget > 0):
            raise ValueError(f"`kl_budget` must be > 0 nats per free token or None, got {self.kl_budget!r}.")
        warm_start = as_real(self.warm_start)
        if warm_start is None or not 0 <= warm_start <= 1:
            raise ValueError(f"`warm_start` must lie in [0, 1], got {self.warm_start!r}; 0 starts from the model's p.")
        if not (callable(self.schedule) or (isinstance(self.schedule, str) and self.schedule in SCHEDULES)):
            raise ValueError(
                f"`schedule` must be one of {', '.join(SCHEDULES)}, or a function of the share of the steps that are "
                f"done, got {self.schedule!r}."
            )
        plain: dict[str, Any] = {"scale": scale, "target": target, "start": start, "stop": stop, "kl_budget": budget}
        plain |= {"every": whole_number("every", self.every, 1), "warm_start": warm_start}
        max_tilt = as_real(self.max_tilt)
        if self.max_tilt is not None and (max_tilt is None or not max_tilt > 0):
            raise ValueError(f"`max_tilt` must be > 0 nats or None, got {self.max_tilt!r}; math.inf is no limit.")
        plain["max_tilt"] = max_tilt
        plain["num_draws"] = None if self.num_draws is None else whole_number("num_draws", self.num_draws, 1)
        plain["support"] = None if self.support is None else whole_number("support", self.support, 2)
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        if self.estimator.needs == "values" and self.draws_of(self.estimator) < 2:
            raise ValueError(
                f"`num_draws` must be >= 2 for {type(self.estimator).__name__}, got {self.num_draws}; each draw is "
                "compared with the mean of the others."
            )

    def draws_of(self, estimator: Estimator, first: bool = False) -> int:
        """Samples of an update by an estimator; `first`: where a sequence is asked for the first time."""
        if self.num_draws is not None:
            return self.num_draws
        if estimator.needs == "values":
            return _DRAWS_BY_VALUES
        return _DRAWS_FOR_STRENGTH if first and self.scale is None and estimator.is_random else _DRAWS

    def factor(self, progress: float) -> float:
        """What the schedule multiplies the scale, or the budget, by.

        Raises:
            ValueError: a function of one's own gives no number, or a negative or infinite one.
        """
        schedule = SCHEDULES[self.schedule] if isinstance(self.schedule, str) else self.schedule
        found: Any = schedule(progress)
        factor = as_real(found)
        if factor is None or not 0 <= factor < float("inf"):
            raise ValueError(
                f"`schedule` must return a finite number >= 0, got {found!r} at progress {progress:g}; 0 leaves the "
                "step as the model has it."
            )
        return factor

    def to_json(self) -> str:
        """One line of JSON, in which infinity is `"inf"`; `GuidanceConfig.from_json` gives an equal config back."""
        return json.dumps({f.name: _to_plain(getattr(self, f.name), f.name) for f in fields(self)})

    @classmethod
    def from_json(cls, text: str) -> "GuidanceConfig":
        """The inverse of `to_json`.

        Raises:
            ValueError: no JSON, or none of an object; an unknown field or name; a value out of range.
        """
        try:
            values = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"`text` must be JSON, as of `to_json`, and is not: {error}.") from error
        if not isinstance(values, dict):
            raise ValueError(f"`text` must be a JSON object of settings, got {type(values).__name__}.")
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"GuidanceConfig has no field `{sorted(unknown)[0]}`; it has {', '.join(_names(cls))}.")
        values |= {name: float("inf") for name in ("kl_budget", "max_tilt") if values.get(name) == "inf"}
        for name, registry in (("estimator", ESTIMATORS), ("update", UPDATES)):
            if isinstance(values.get(name), dict):
                settings = dict(values[name])
                kind = settings.pop("name", None)
                if isinstance(kind, str):  # what is nothing known the config refuses
                    values[name] = _made(name, registry[kind], settings) if kind in registry else kind
        return cls(**values)


def _made(name: str, kind: Any, settings: dict[str, Any]) -> Any:
    try:
        return kind(**settings)
    except TypeError as error:
        raise ValueError(
            f"`{name}` has settings that {kind.__name__} does not: {error}; it has {', '.join(_names(kind))}."
        ) from error


def _names(cls: Any) -> list[str]:
    return [f.name for f in fields(cls)]


def _to_plain(value: Any, name: str) -> Any:
    if not is_dataclass(value) or isinstance(value, type):
        if callable(value):
            raise ValueError(f"`{name}` is a custom object and cannot be written as JSON; use a registered one.")
        return "inf" if value == float("inf") else value
    names = {kind: key for registry in (ESTIMATORS, UPDATES) for key, kind in registry.items()}
    if type(value) not in names:
        raise ValueError(f"`{name}` is {type(value).__name__}, which is not registered and cannot be written as JSON.")
    return {"name": names[type(value)]} | asdict(value)
