"""Settings of particles."""

from dataclasses import dataclass
from typing import Any

from redge_guidance.checks import as_real, whole_number

POTENTIALS = ("difference", "max", "sum")
INTERMEDIATE = ("completions", "guidance")


@dataclass(frozen=True)
class ParticleConfig:
    """How many sequences of one prompt compete, when, and by what.

    With r_1, ..., r_m the rewards of a sequence so far, the m-th being that of what it may become, and T the
    temperature, a potential says how much heavier it grows by the m-th:

        difference: exp((r_m - r_{m-1}) / T)      max: exp(max(r_1, ..., r_m) / T)      sum: exp((r_1 + ... + r_m) / T)

    (FK steering, arXiv 2501.06848). In the end the weight is made that of the finished sequence, `exp(r / T)`,
    whatever the potential.

    Attributes:
        num_particles: n; 1 is no competition.
        temperature: units of reward in a nat, > 0: the target is `p(x) exp(reward / temperature) / Z`.
        potential: `"difference"`, `"max"` or `"sum"`.
        resample_below: a prompt's particles are resampled where their effective number falls below this share of n; 0:
            never, which is best-of-n; 1: whenever their weights differ.
        every: the reward is asked at every so many steps of the sampler.
        start: the share of the steps after which it is asked, in [0, 1): what little there is of a text in the
            beginning says little.
        num_completions: how many completions of a sequence that is not finished its reward is the mean of.
        hard: whether these are drawn from the model's prediction, each position by itself; False: its mean stands in
            for them, one completion and no draw. None: False, but for rewards that have no gradient.
        target: a reward with which a particle is good enough. A group one of whose particles may become one with it, as
            far as the rewards of this step say, is left alone from then on: its reward is not asked before the end, it
            is not guided, but for a constraint, and not resampled. None: all groups go on.
        intermediate: where rewards of sequences that are not finished come from: `"completions"`, of these, once a
            step; `"guidance"`, of the samples that guidance has drawn in the step, before the host drew, where it has
            asked: no call of the reward but guidance's own and one at the end.

    Raises:
        ValueError: a value out of range.
    """

    num_particles: int = 8
    temperature: float = 1.0
    potential: str = "difference"
    resample_below: float = 0.5
    every: int = 1
    start: float = 0.0
    num_completions: int = 1
    hard: bool | None = None
    target: float | None = None
    intermediate: str = "completions"

    def __post_init__(self) -> None:
        plain: dict[str, Any] = {
            name: whole_number(name, getattr(self, name), 1) for name in ("num_particles", "every", "num_completions")
        }
        for name, fits, wanted in (
            ("temperature", lambda x: 0 < x < float("inf"), "a finite number > 0, in units of reward a nat"),
            ("resample_below", lambda x: 0 <= x <= 1, "a share of the particles, in [0, 1]"),
            ("start", lambda x: 0 <= x < 1, "a share of the steps, in [0, 1)"),
        ):
            value = getattr(self, name)
            plain[name] = as_real(value)
            if plain[name] is None or not fits(plain[name]):
                raise ValueError(f"`{name}` must be {wanted}, got {value!r}.")
        if self.target is not None:
            plain["target"] = as_real(self.target)
            if plain["target"] is None or plain["target"] != plain["target"]:
                raise ValueError(f"`target` must be a number, in units of the reward, or None, got {self.target!r}.")
        for name, among in (("potential", POTENTIALS), ("intermediate", INTERMEDIATE)):
            if getattr(self, name) not in among:
                raise ValueError(f"`{name}` must be one of {', '.join(among)}, got {getattr(self, name)!r}.")
        if not (self.hard is None or isinstance(self.hard, bool)):
            raise ValueError(f"`hard` must be True, False or None, got {self.hard!r}.")
        for name, number in plain.items():
            object.__setattr__(self, name, number)
