"""How hard guidance pushes: a fixed price of reward, or as little as reaches a target within a budget.

Along `q_s ~ p exp(s G)`, G the gradient of the reward with respect to the one-hot samples, both `KL(q_s || p)` and the
reward to first order, `r(q) + <q_s - q, G>`, grow with s. So "the least KL such that the reward is at least a target"
is one number s for every sequence, its Lagrange multiplier, found without asking the reward again.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from redge_guidance.config import GuidanceConfig
from redge_guidance.divergence import tilt_along
from redge_guidance.reward import AnyReward
from redge_guidance.terms import check_target, terms_of, usual_target
from redge_guidance.updates import LogProbs, Natural, Update, row_chunks

USUAL_BUDGET, USUAL_IMAGE_BUDGET = 1.0, 2.0  # nats per free token
USUAL_UPDATE, USUAL_IMAGE_UPDATE = Natural(), Natural(3, 1 / 3)
USUAL_TILT = 7.0  # nats that a token may be tilted above the mean of its position, for rewards that are in nats

_LOWEST, _HIGHEST = 1e-3, 1e3  # of s times the standard deviation of the reward under p, to first order
_HALVINGS = 12  # which leave s known to 0.3 %
_A_LITTLE = 1.004  # times what is found, from below
_FLAT = 1e-12  # units of reward; a reward that varies less does not vary
_REWARD_ROUNDING = 1e-5  # of a target, or units of reward
_ROUNDING = 1e-6  # of the largest gradient of a position: differences that are none


@dataclass(frozen=True)
class Strength:
    """What is pursued, and at what cost.

    Attributes:
        why: where the numbers come from, for people.
        scale: nats that a unit of reward is worth; None: as many as the target or the budget asks for.
        target: the reward that a sequence is to reach; None: as much as the budget buys.
        budget: the most that KL(q || p) may be, in nats per free token; None: no limit.
        most: nats that a unit of reward is worth at most; None: what the budget buys when it is first asked.
        forms: nats that a unit of a reward is worth that is an automaton, and followed exactly.
        factor: of a schedule, in this step.
        tilt: the most nats that a token may be tilted above the mean of its position; None: no limit.
    """

    why: str
    scale: float | None = None
    target: float | None = None
    budget: float | None = None
    most: float | None = None
    forms: float = 2.0
    factor: float = 1.0
    tilt: float | None = None

    def times(self, factor: float) -> "Strength":
        """The same at a point of a schedule: with `factor` of the scale, or of the price that a budget has found."""
        if factor == 1:
            return self
        scale = None if self.scale is None else factor * self.scale
        return replace(self, scale=scale, forms=factor * self.forms, factor=factor)

    @property
    def limit(self) -> float | None:
        """Nats per free token that KL(q || p) may be in this step; with `factor`, where the budget sets the price."""
        return self.budget if self.budget is None or self.scale is not None else self.factor * self.budget

    def __str__(self) -> str:
        goal = f"scale {self.scale:g}" if self.scale is not None else None
        if self.target is not None:
            goal = f"target {self.target:.4g}"
        limit = None if self.budget is None else f"at most {self.budget:g} nats per free token"
        if self.most is not None:
            limit = f"at most {self.most:g} nats a unit of reward"
        tilt = None if self.tilt is None or self.tilt == torch.inf else f"tilts at most {self.tilt:g}"
        return f"{', '.join(part for part in (goal, limit, tilt) if part)} ({self.why})"


def strength_of(reward: AnyReward | None, config: GuidanceConfig, images: bool = False) -> Strength:
    """What guidance pursues: what the config says, else the usual target of the reward, else what a budget buys.

    None for a reward is one that is followed exactly, as an automaton; `images` is as for `update_of`.
    """
    budget, tilt = config.kl_budget, config.max_tilt
    if config.scale is not None:
        return Strength("set by `scale`", config.scale, None, budget, forms=config.scale, tilt=tilt)
    if reward is None:
        if config.target is not None:
            warnings.warn(
                f"`target` {config.target:g} has nothing to act on: constraints, and words, lengths and expressions as "
                "rewards, are followed exactly; leave it out, or set `scale`.",
                stacklevel=2,
            )
        return Strength("rewards that are automata are followed exactly", Strength.forms, None, budget)
    target, said = usual_target(reward)
    usual_budget = USUAL_IMAGE_BUDGET if _is_of_images(reward, images) else USUAL_BUDGET
    price = getattr(reward, "usual_scale", None)
    most = price if budget is None else None
    if config.target is not None:
        check_target(config.target, reward)
        if target is None and budget is None and most is None:
            warnings.warn(
                f"`target` {config.target:g} is for a reward whose range is unknown ({said}), and no `kl_budget` is "
                f"set: a strength is assumed that spends at most {usual_budget:g} nats per free token; set `kl_budget` "
                "to say how much it may cost.",
                stacklevel=2,
            )
        target, said = config.target, "set by `target`"
    if budget is None and most is None:
        budget = usual_budget
    if tilt is None and price is not None:
        tilt = USUAL_TILT
    return Strength(said, None, target, budget, most, tilt=tilt)


def update_of(reward: AnyReward, config: GuidanceConfig, images: bool = False) -> Update:
    """How q is improved: what the config says, else what is usual for rewards of texts or of images.

    `images`: whether the sampler makes images, so that a plain function is a reward of them.
    """
    if config.update is not None:
        return config.update
    return USUAL_IMAGE_UPDATE if _is_of_images(reward, images) else USUAL_UPDATE


def _is_of_images(reward: AnyReward, images: bool) -> bool:
    kinds = [getattr(term.reward, "modality", None) for term in terms_of(reward)]
    return "image" in kinds or (images and "text" not in kinds)


def least_of(target: float) -> float:
    """The least reward that counts as `target`: rounding in float32 is none of its business.

    >>> least_of(0.5) < 0.5, round(least_of(-200.0), 3)
    (True, -200.002)
    """
    return target - _REWARD_ROUNDING * max(1.0, abs(target))


@dataclass(frozen=True, eq=False)
class Slope:
    """A reward to first order in the free positions of a step, whose rows belong to sequences.

    Attributes:
        value: `(batch,)`, of every sequence at q.
        gradient: `(rows, S)`, with respect to the one-hot samples, up to a constant a row.
        log_p, log_q: `(rows, S)` in nats, normalised; q is where it was taken.
        sequence: `(rows,)` int64, ascending.
        mass: `(rows,)`, the probability of the S tokens; elsewhere q is p.
        limit: of tilts, as in `divergence.path`.
    """

    value: Tensor
    gradient: Tensor
    log_p: LogProbs
    log_q: Tensor
    sequence: Tensor
    mass: Tensor
    limit: float | None = None

    @cached_property
    def mean(self) -> Tensor:
        """`<p, G>` of every row, `(rows, 1)`."""
        chunks = row_chunks(self.gradient.shape, self.gradient.device)
        return torch.cat([(self.log_p[rows].exp() * self.gradient[rows]).sum(-1, keepdim=True) for rows in chunks])

    def along(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """`<q_s, G - <p, G>>` and `KL(q_s || p)` of every sequence, `(batch,)` both, at strengths s `(batch,)`.

        With t the tilt of the path, from `log p` to `log p + t` before it is normalised, the latter is `<q_s, t>` less
        the log of the normaliser.
        """
        linear, divergence = torch.zeros_like(self.value), torch.zeros_like(self.value)
        for rows in row_chunks(self.gradient.shape, self.gradient.device):
            of, mass, centred = self.sequence[rows], self.mass[rows], self.gradient[rows] - self.mean[rows]
            tilt = tilt_along(centred, s[of, None], self.limit)
            tilted = self.log_p[rows] + tilt
            q = tilted.softmax(-1)
            linear.index_add_(0, of, mass * (q * centred).sum(-1))
            divergence.index_add_(0, of, mass * ((q * tilt).sum(-1) - tilted.logsumexp(-1)))
        return linear, divergence

    def at_q(self) -> Tensor:
        """`<q, G - <p, G>>` of every sequence, `(batch,)`."""
        total = torch.zeros_like(self.value)
        for rows in row_chunks(self.gradient.shape, self.gradient.device):
            mean = (self.log_q[rows].exp() * (self.gradient[rows] - self.mean[rows])).sum(-1)
            total.index_add_(0, self.sequence[rows], self.mass[rows] * mean)
        return total

    def deviation(self) -> Tensor:
        """Standard deviation of the reward under p, to first order, `(batch,)`."""
        total = torch.zeros_like(self.value)
        for rows in row_chunks(self.gradient.shape, self.gradient.device):
            gradient, centred = self.gradient[rows], self.gradient[rows] - self.mean[rows]
            centred[centred.abs() <= _ROUNDING * gradient.abs().amax(-1, keepdim=True)] = 0.0
            total.index_add_(
                0, self.sequence[rows], self.mass[rows] * (self.log_p[rows].exp() * centred.square_()).sum(-1)
            )
        return total.sqrt()


class Found(NamedTuple):
    """What `least_strengths` finds, `(batch,)` each.

    `reaches`: whether the target is expected to be reached at these strengths; `at_rest`: whether at p itself.
    """

    strengths: Tensor
    reaches: Tensor
    at_rest: Tensor


def dearest(slope: Slope, budget: Tensor) -> Tensor:
    """The largest s with `KL(q_s || p) <= budget`, `(batch,)`; nan where the reward does not vary under p.

    `budget` `(batch,)` is in nats, summed over the free tokens. Found by bisection of log s, from below.
    """
    return _highest(slope, lambda linear, divergence: divergence <= budget)


def least_strengths(
    slope: Slope,
    target: float | None,
    ceilings: Tensor,
    budget: Tensor | None = None,
    share: Tensor | float = 1.0,
) -> Found:
    """The least s >= 0 with `r(q) + <q_s - q, G> >= target`, or what ceiling and budget allow if that is less.

    The former is the Lagrange multiplier of the least `KL(q_s || p)` that brings the linearised reward to the target: 0
    where p does so by itself.

    Args:
        slope: the reward to first order; its gradient M may be of less weight than the reward's own, `M = share * G`,
            as an average is that begins at 0. The path is `q_s ~ p exp(s M)`.
        target: None: as much as ceiling and budget buy; nothing then counts as reached.
        ceilings: `(batch,)`; nan: 0, the reward does not vary.
        budget: `(batch,)`, the most that `KL(q_s || p)` may be, in nats summed over the free tokens; None: no limit.
        share: `(batch,)`, in (0, 1].
    """
    ceilings = ceilings.nan_to_num(nan=0.0)
    wanted = torch.full_like(ceilings, torch.inf)
    if target is not None:
        wanted = share * (target - slope.value) + slope.at_q()
    most = torch.full_like(ceilings, torch.inf) if budget is None else budget
    at_rest = slope.along(torch.zeros_like(wanted))[0] >= wanted

    def too_little(linear: Tensor, divergence: Tensor) -> Tensor:
        return (linear < wanted) & (divergence <= most)

    if bool((too_little(*slope.along(ceilings)) & ceilings.isfinite()).all()):  # out of reach of all: nothing to find
        return Found(ceilings, torch.zeros_like(at_rest), torch.zeros_like(at_rest))
    enough = _highest(slope, too_little)
    linear, divergence = slope.along(_A_LITTLE * enough)
    enough = enough.masked_fill(enough.isnan() | too_little(linear, divergence), torch.inf)  # the search has an end
    strengths = torch.minimum(enough, ceilings).masked_fill(at_rest, 0.0)
    return Found(strengths, at_rest | ((enough < ceilings) & (linear >= wanted)), at_rest)


def _highest(slope: Slope, holds: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The largest s at which something holds that holds for all smaller ones, `(batch,)`; nan without any slope.

    `holds` is told `<q_s, G>` and `KL(q_s || p)`.
    """
    unit = slope.deviation()
    flat = unit <= _FLAT
    unit = unit.clamp(min=_FLAT)
    low, high = torch.full_like(unit, _LOWEST).log(), torch.full_like(unit, _HIGHEST).log()
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        more = holds(*slope.along(middle.exp() / unit))
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    return (low.exp() / unit).masked_fill(flat, torch.nan)
