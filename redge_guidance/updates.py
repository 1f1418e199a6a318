"""Update rules: how the factorised distribution q of the free positions climbs the guidance objective.

All rules maximise, for every sequence, `s * E_q[r] - KL(q || p)`, s its strength. They see the free positions of the
whole batch as rows: `log_p` and `log_q` are `(rows, S)`, normalised log-probabilities in nats. `log_q` is a tensor,
`log_p` may be computed anew for every slice of rows that is asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from redge_guidance.checks import real_number, whole_number
from redge_guidance.divergence import kl, kl_gradient, log_ratio, path

# Numbers that are worked on at once where something is done row by row: on a CPU they stay in the cache, on an
# accelerator they are enough to keep it busy.
_CHUNK_ELEMENTS, _CHUNK_ELEMENTS_ACCELERATOR = 2**18, 2**24
_DAMPING = 1e-3  # probability


class LogProbs(Protocol):
    """A tensor `(rows, S)`, or what gives the rows of one: `log_p[first:last]` is a tensor of those rows."""

    @property
    def shape(self) -> Any: ...

    def __getitem__(self, rows: slice) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Gradient:
    """An estimate of the gradient of E_q[r], in the coordinates in which its estimator has it.

    With G the gradient with respect to the one-hot sample, that with respect to the logits is `q * (G - <q, G>)`.

    Attributes:
        value: `(rows, S)`, averaged over the draws, never scaled.
        at: `"sample"` for G, `"logits"` for the other.
        resolution: probability below which so few draws say nothing of a token, >= 0.
    """

    value: Tensor
    at: Literal["sample", "logits"]
    resolution: float = 0.0

    def at_sample(self, log_q: Tensor, damping: float) -> Tensor:
        """G up to a constant a row: the gradient by the logits divided by `q + max(damping, resolution)`."""
        if self.at == "sample":
            return self.value
        probs = log_q.exp()
        return self.value / (probs + max(damping, self.resolution)).clamp(min=torch.finfo(probs.dtype).tiny)

    def at_logits(self, log_q: Tensor) -> Tensor:
        if self.at == "logits":
            return self.value
        probs = log_q.exp()
        return probs * (self.value - (probs * self.value).sum(-1, keepdim=True))


@dataclass(frozen=True, eq=False)
class Start:
    """Where q starts: `log_q` `(rows, S)`, normalised, in nats, which is `p exp(strengths * mean)`, of some mean.

    `strengths` is `(rows, 1)`; where it is 0 q starts at p. `shares` `(rows, 1)` are the weights of all gradients in
    that mean, in [0, 1]; the rest is that of 0.
    """

    log_q: Tensor
    strengths: Tensor
    shares: Tensor


class Ascent(Protocol):
    """Where an update rule gets reward gradients from, and how hard it is to climb them.

    Attributes:
        start: where q starts; None: at p.
        limit: the most that the tilt of a token may be above the mean, see `path`; None: anything.
    """

    start: "Start | None"
    limit: float | None

    def gradients(self, log_q: Tensor) -> Sequence[Gradient]:
        """Parts of the gradient of E_q[r], drawn anew at `log_q` `(rows, S)`."""

    def strengths(self, log_q: Tensor, grad: Tensor, mean: Tensor, shares: Tensor) -> Tensor:
        """Nats s that one unit of reward is worth at every row, `(rows, 1)`, a new tensor.

        `grad` `(rows, S)` is the last gradient that was drawn, at `log_q`, with respect to the one-hot sample; q goes
        to where `path` leads at s, `mean` `(rows, S)` being gradients of weights that sum to `shares` `(rows, 1)`.
        """

    def used(self, grad: Tensor) -> None:
        """Told once an update which gradient, `(rows, S)`, the rule climbs, for the figures of the trace."""


class Update(Protocol):
    """Anything that turns `log_p` into an improved `log_q`."""

    def __call__(self, log_p: LogProbs, ascent: Ascent, project: Callable[[Tensor], Tensor]) -> Tensor: ...


@dataclass(frozen=True)
class Natural:
    """Natural-gradient ascent: `log q <- log p + s * M + const` with `M <- (1 - eta) M + eta G`, M = 0 at first.

    G is the gradient of the reward with respect to the one-hot sample. For a constant s that is
    `log q <- (1 - eta) log q + eta (log p + s * G) + const`. The fixed point `q = p exp(s * G) / Z` is the exact
    maximiser for a reward that is linear in each token; with `eta = 1` one update reaches it. Several smaller updates
    follow a reward that is not linear, each with fresh samples of the q so far; from p they go
    `1 - (1 - eta)^num_updates` of the way, 75 % at the defaults. With `GuidanceConfig.warm_start` they go on where the
    step before ended.

    For straight-through G is the reward's own gradient at the drawn tokens. Other estimators are carried to the same
    coordinates, `G = g / (q + damping)` with g their gradient with respect to the logits: for straight-through and
    damping 0 the two agree up to a constant, and the damping holds back tokens that q hardly ever draws. For the score
    function it is 1 / num_draws at least: `g / q` is the mean advantage of the draws that have a token, which is shrunk
    as if one more draw had it, of no advantage.

    Attributes:
        num_updates: updates at every denoising step, each with fresh samples.
        step_size: eta, in (0, 1].
        damping: probability, >= 0; not used by straight-through.
    """

    num_updates: int = 2
    step_size: float = 1 / 2
    damping: float = _DAMPING

    def __post_init__(self) -> None:
        _make_plain(self, "step_size", "damping")
        if not 0 < self.step_size <= 1:
            raise ValueError(f"`step_size` must lie in (0, 1], got {self.step_size!r}; 1 jumps to the tilted p.")
        if not 0 <= self.damping < float("inf"):
            raise ValueError(f"`damping` must be >= 0, got {self.damping!r}.")

    def __call__(self, log_p: LogProbs, ascent: Ascent, project: Callable[[Tensor], Tensor]) -> Tensor:
        log_q, mean = log_p[:].clone(), None
        shares = torch.zeros_like(log_q[:, :1])
        if ascent.start is not None:
            log_q, mean = ascent.start.log_q.clone(), _mean(ascent.start.log_q, log_p, ascent.start.strengths)
            shares = ascent.start.shares.masked_fill(ascent.start.strengths == 0, 0.0)
        for _ in range(self.num_updates):
            grad = _sum([part.at_sample(log_q, self.damping) for part in ascent.gradients(log_q)])
            ascent.used(grad)
            mean = (
                grad * self.step_size
                if mean is None
                else mean.mul_(1 - self.step_size).add_(grad, alpha=self.step_size)
            )
            shares = (1 - self.step_size) * shares + self.step_size
            strengths = ascent.strengths(log_q, grad, mean, shares)
            del grad
            for rows in row_chunks(log_q.shape, log_q.device):
                p = log_p[rows]
                tilted = path(p, mean[rows], strengths[rows], ascent.limit)
                log_q[rows] = tilted.masked_fill_(p == -torch.inf, -torch.inf).log_softmax(-1)
            projected = project(log_q)
            if projected is not log_q:
                log_q, mean = projected, _mean(projected, log_p, strengths)
        return log_q


@dataclass(frozen=True)
class Adam:
    """Adam on the logits of q, the rule of the ReDGE paper (arXiv 2601.00781, section 5).

    Adam makes steps of one size of slopes of every size, also of rounding errors, which differ from batch to batch. A
    slope of the objective by a logit of at most `1e-4 p + 1e-7`, where less than 1e-4 nats are to be gained, therefore
    counts as 0, and a larger one as so much less: where the reward has no gradient q stays p.

    Attributes:
        num_updates: updates at every denoising step, each with fresh samples.
        learning_rate: nats that a logit moves in one update, about.
    """

    num_updates: int = 10
    learning_rate: float = 0.5

    def __post_init__(self) -> None:
        _make_plain(self, "learning_rate")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"`learning_rate` must be > 0, got {self.learning_rate!r}.")

    def __call__(self, log_p: LogProbs, ascent: Ascent, project: Callable[[Tensor], Tensor]) -> Tensor:
        log_p = log_p[:]
        logits = log_p.clone() if ascent.start is None else ascent.start.log_q.clone()
        unit = log_p.exp().mul_(1e-4).add_(1e-7)  # constant, so that Adam does not notice it
        adam = torch.optim.Adam([logits], lr=self.learning_rate, eps=1.0)  # eps of a unit: steps begin at 0
        for _ in range(self.num_updates):
            log_q = logits.log_softmax(-1)
            parts = ascent.gradients(log_q)
            grad = _sum([part.at_logits(log_q) for part in parts])
            ascent.used(grad)
            at_sample = _sum([part.at_sample(log_q, _DAMPING) for part in parts])
            strengths = ascent.strengths(log_q, at_sample, at_sample, torch.ones_like(at_sample[:, :1]))
            slope = kl_gradient(log_q, log_p) - strengths * grad
            logits.grad = torch.nn.functional.softshrink(slope / unit, 1.0)
            adam.step()
            log_q = logits.log_softmax(-1)
            if ascent.limit is not None:
                tilts = log_ratio(log_q, log_p)
                log_q = path(log_p, tilts, torch.ones_like(tilts[:, :1]), ascent.limit).log_softmax(-1)
            logits.copy_(project(log_q))
        return logits


def row_chunks(shape: Sequence[int], device: torch.device | None = None) -> Iterator[slice]:
    """Slices of the rows of `(rows, columns)`, in order; on a CPU (None) of about `2**18` numbers each.

    >>> list(row_chunks((3, 2**17)))
    [slice(0, 2, None), slice(2, 4, None)]
    """
    rows, columns = shape
    on_cpu = device is None or device.type == "cpu"
    size = max(1, (_CHUNK_ELEMENTS if on_cpu else _CHUNK_ELEMENTS_ACCELERATOR) // max(columns, 1))
    return (slice(first, first + size) for first in range(0, rows, size))


UPDATES: dict[str, Any] = {"adam": Adam, "natural": Natural}


def project_to_budget(log_q: Tensor, log_p: LogProbs, budget: Tensor, groups: Tensor, weights: Tensor) -> Tensor:
    """Move q back along `log q_s = (1 - s) log p + s log q + const` until every group's KL(q_s || p) is within budget.

    The KL grows with s, so s is found by bisection, from below: the result never exceeds the budget.

    Args:
        log_q, log_p: `(rows, S)` normalised log-probabilities in nats.
        budget: `(groups,)`, the most that `sum_rows weight * KL` may be in a group, in nats.
        groups: `(rows,)` int64, the group (sequence) of a row.
        weights: `(rows,)`, what a row's KL counts.

    Returns:
        `(rows, S)`; groups within their budget come back as they were, log_q itself where all are.
    """

    def path(s: Tensor, rows: slice, p: Tensor) -> Tensor:
        return (p + s[groups[rows], None] * log_ratio(log_q[rows], p)).log_softmax(-1)

    def fits(s: Tensor | None) -> Tensor:
        """Whether q_s is within the budget, q itself for None."""
        total = torch.zeros_like(budget)
        for rows in row_chunks(log_q.shape, log_q.device):
            p = log_p[rows]
            candidate = log_q[rows] if s is None else path(s, rows, p)
            total.index_add_(0, groups[rows], weights[rows] * kl(candidate, p))
        return total <= budget

    inside = fits(None)
    if bool(inside.all()):
        return log_q
    low, high = inside.to(log_q.dtype), torch.ones_like(budget, dtype=log_q.dtype)
    for _ in range(20):
        middle = (low + high) / 2
        found = fits(middle)
        low, high = torch.where(found, middle, low), torch.where(found, high, middle)
    result = torch.empty_like(log_q)
    for rows in row_chunks(log_q.shape, log_q.device):
        result[rows] = torch.where(inside[groups[rows], None], log_q[rows], path(low, rows, log_p[rows]))
    return result


def _mean(log_q: Tensor, log_p: LogProbs, strengths: Tensor) -> Tensor:
    """M of `log q = log p + strengths * M + const`, 0 where a strength is 0."""
    mean = torch.empty_like(log_q)
    for rows in row_chunks(log_q.shape, log_q.device):
        s = strengths[rows]
        mean[rows] = log_ratio(log_q[rows], log_p[rows]).div_(s.clamp(min=1e-30)).masked_fill_(s == 0, 0.0)
    return mean


def _make_plain(update: Any, *names: str) -> None:
    """Keep the number of updates and settings of these names as plain numbers; a ValueError where they are none."""
    object.__setattr__(update, "num_updates", whole_number("num_updates", update.num_updates, 1))
    for name in names:
        object.__setattr__(update, name, real_number(name, getattr(update, name)))


def _sum(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum(0)
