"""The particles of one call of a sampler: what is told at the seam, and who goes on."""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redge_guidance.guidance import Guidance
from redge_guidance.particles.completions import Completions
from redge_guidance.particles.potentials import Potential
from redge_guidance.particles.ratios import check_known, log_ratio
from redge_guidance.particles.settings import ParticleConfig
from redge_guidance.particles.weights import Weights
from redge_guidance.randomness import noise_of
from redge_guidance.step import DenoisingStep
from redge_guidance.strength import least_of


@dataclass(frozen=True, eq=False)
class ParticleStep:
    """Figures of one step of the sampler.

    Attributes:
        progress: share of the steps done before it.
        rewards: `(groups, n)` float64, of what each particle may become, or, by guidance, of what it might have before
            the step; None where the reward was not asked.
        effective: `(groups,)`, effective numbers of particles before any were resampled.
        resampled: `(groups,)` bool.
        reached: `(groups,)` bool, groups that have their target and are left alone from now on. Their rewards are those
            of the step in which they reached it.
    """

    progress: float
    rewards: Tensor | None
    effective: Tensor
    resampled: Tensor
    reached: Tensor


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the particles of one call have come to, groups in the order of the batch.

    Attributes:
        log_weights: `(groups, n)` float64, normalised in every group, nats.
        log_z: `(groups,)` float64, the estimate of `log sum_x p(x) exp(reward(x) / temperature)`.
        rewards: `(groups, n)` float64, of the finished sequences.
    """

    log_weights: Tensor
    log_z: Tensor
    rewards: Tensor

    @property
    def best(self) -> Tensor:
        """`(groups,)` int64, the place in its group of the particle with the highest reward."""
        return self.rewards.nan_to_num(nan=-torch.inf).argmax(-1)


class Population:
    """Weights, and resampling, of the rows of a batch in groups of n.

    Args:
        reward: as for `guide`; None: a constraint alone counts.
        config: of the particles.
        guidance: moves the logits; None: the model's own are drawn from.
        seed: of completions and resampling.

    Attributes:
        trace: of the last call.
        outcome: of the last call; None where it did not come to its end.
    """

    def __init__(self, reward: Any, config: ParticleConfig, guidance: Guidance | None, seed: int):
        self.config, self._guidance, self._seed = config, guidance, seed
        self._completions = Completions(reward, config.num_completions, config.hard)
        self.begin()

    def begin(self) -> None:
        """A call of the sampler begins."""
        if self._guidance is not None:
            self._guidance.begin()
        self.trace: list[ParticleStep] = []
        self.outcome: Outcome | None = None
        self._index = 0
        self._weights: Weights | None = None
        self._potential: Potential | None = None
        self._guided: Tensor | None = None  # logits of the step that the host is taking
        self._last: tuple[DenoisingStep, Tensor, Tensor] | None = None  # its ids and what remained, after it
        none = torch.zeros(0, dtype=torch.bool)
        self._going = none  # by group, whether it is without its target
        self._rewards, self._known = torch.zeros(0), none  # the last that were asked, and whether they are of `_last`

    def move(self, step: DenoisingStep) -> Tensor | None:
        """Guided logits `(free positions, vocabulary)`; None: the host's own."""
        self._check(step)
        if self._guidance is None:
            return None
        check_known(step, self._guidance)
        if not bool(self._going.all()):
            self._guidance.stop(~self._going.repeat_interleave(self.config.num_particles))
        self._guided = self._guidance(step)
        return self._guided

    def settle(self, step: DenoisingStep, tokens: Tensor, positions: Tensor) -> Tensor | None:
        """Told what the host has drawn, what it is to have drawn instead: as `Guidance.settle`."""
        return None if self._guidance is None else self._guidance.settle(step, tokens, positions)

    def follow(self, step: DenoisingStep, tokens: Tensor, positions: Tensor) -> Tensor | None:
        """Told what the host has drawn, `(batch, length)` both; the rows to go on with, `(batch,)`, None: all."""
        weights, potential = self._weights, self._potential
        assert weights is not None
        assert potential is not None
        index, config = self._index, self.config
        self._index += 1
        remaining = step.free & ~positions
        if step.held is not None:  # what was not exchanged stays
            remaining &= ~step.held
        increments = torch.zeros(len(step.ids), dtype=torch.float64)
        if self._guidance is not None and self._guided is not None and not step.greedy:
            increments += log_ratio(step, self._guided, tokens, positions, self._guidance)
        self._guided, going = None, self._going.repeat_interleave(config.num_particles)
        seen = self._intermediate(step, tokens, remaining, index, going)
        self._known = torch.zeros_like(going)
        if seen is not None:
            increments += potential.grow(seen, going)
            self._rewards = seen.where(going, self._rewards)
            self._known = going & (config.intermediate == "completions")
        weights.add(increments.view_as(weights.log))
        nothing = step.logits.new_empty(len(tokens), 0, step.logits.shape[-1])  # whose memory the next ones may have
        self._last = (replace(step, logits=nothing), tokens, remaining)
        self._check_alive(weights)
        effective = weights.effective()
        shown = None if seen is None else self._rewards.view_as(weights.log).clone()
        if shown is not None and config.target is not None:
            self._going &= ~(shown >= least_of(config.target)).any(-1)
        # the small allowance is for rounding: of equal weights the effective number is n
        which = (effective < config.resample_below * config.num_particles - 1e-9) & self._going
        which &= self._goes_on(step, remaining)
        self.trace.append(ParticleStep(step.progress, shown, effective, which, ~self._going))
        return self._resampled(step, index, which) if bool(which.any()) else None

    def end(self) -> None:
        """The call has come to its end: the weights become those of the finished sequences."""
        if self._guidance is not None:
            self._guidance.end()
        if self._last is None or self._weights is None or self._potential is None:
            return
        step, ids, remaining = self._last
        self._last = None
        if bool(remaining.any()):
            warnings.warn(
                "the last step of the sampler has left positions open, so that it is not known what it returns, and "
                "particles have no outcome; let it run to its end, with a scheduler that keeps all that it draws.",
                stacklevel=2,
            )
            return
        if not bool(self._known.all()):
            noise = noise_of(step, self._seed, self._index, "completions")
            asked = self._completions.some(step, ids, remaining, noise, ~self._known)
            self._rewards = self._rewards.where(self._known, asked)
        weights = self._weights
        weights.add(self._potential.finish(self._rewards).view_as(weights.log))
        self._check_alive(weights)
        rewards = self._rewards.view_as(weights.log)
        self.outcome = Outcome(weights.log.log_softmax(-1), weights.log_normaliser(), rewards)

    def _intermediate(
        self, step: DenoisingStep, ids: Tensor, remaining: Tensor, index: int, going: Tensor
    ) -> Tensor | None:
        """Rewards of sequences that are not finished, `(batch,)`, those of `going` `(batch,)` bool; None: not asked."""
        config = self.config
        if index % config.every or step.progress < config.start or not bool(going.any()):
            return None
        if config.intermediate == "completions":
            noise = noise_of(step, self._seed, index, "completions")
            return self._completions.some(step, ids, remaining, noise, going)
        # what guidance has seen in this step, of a sequence that it left alone what it saw last
        figures = None if self._guidance is None else self._guidance.figures
        if figures is None or not any(one.asked for one in figures.sequences):
            return None
        return torch.tensor([one.reward for one in figures.sequences], dtype=torch.float64)

    def _goes_on(self, step: DenoisingStep, remaining: Tensor) -> bool:
        """Whether another step will draw: something is open, or is drawn anew, as in uniform diffusion."""
        later = step.later is not None and bool(step.later.any())
        return bool(remaining.any()) or later or step.coming > 0 or step.redraws > 0

    def _resampled(self, step: DenoisingStep, index: int, which: Tensor) -> Tensor:
        weights, potential, size = self._weights, self._potential, self.config.num_particles
        assert weights is not None
        assert potential is not None
        assert self._last is not None
        noise = noise_of(step, self._seed, index, "resampling")
        sources = [noise] * len(which) if isinstance(noise, torch.Generator) else noise[::size]
        uniforms = torch.stack([torch.rand((), generator=source, device=source.device).cpu() for source in sources])
        rows = weights.resample(which, uniforms)
        potential.reorder(rows)
        on_device = rows.to(step.ids.device)
        taken, ids, remaining = self._last
        text = taken.attention_mask[on_device]
        self._last = (replace(taken, attention_mask=text), ids[on_device], remaining[on_device])
        self._rewards, self._known = self._rewards[rows], self._known[rows]
        if self._guidance is not None:
            self._guidance.reorder(on_device)
        return on_device

    def _check(self, step: DenoisingStep) -> None:
        """Groups as the settings have them, in the first step of a call; ValueErrors as `particles` says."""
        size, batch = self.config.num_particles, len(step.ids)
        if step.greedy and size > 1:
            raise ValueError(
                "`temperature` 0 draws the likeliest token everywhere: particles of a prompt hardly differ, and copies "
                "go on alike; raise it, such as to 1, or draw one."
            )
        if self._weights is not None and self._weights.log.numel() == batch:
            return
        if batch % size:
            raise ValueError(
                f"`num_particles` must divide the batch, got {size} for {batch} sequences; ask the pipeline for "
                f"{size} of every prompt, one after the other."
            )
        first = torch.arange(batch, device=step.ids.device) // size * size
        prompts = step.prompts
        alike = prompts is None or all(prompts[k] == prompts[k // size * size] for k in range(batch))
        if step.classes is not None:
            alike &= torch.equal(step.classes[first.to(step.classes.device)], step.classes)
        fixed = step.ids.where(~step.free, 0)
        if not (alike and torch.equal(fixed[first], fixed) and torch.equal(step.free[first], step.free)):
            raise ValueError(
                f"the {size} particles of a group must be of one prompt, or class, one after the other; repeat each "
                f"{size} times."
            )
        self._weights = Weights(batch // size, size)
        self._going = torch.ones(batch // size, dtype=torch.bool)
        self._rewards, self._known = torch.zeros(batch, dtype=torch.float64), torch.zeros(batch, dtype=torch.bool)
        self._potential = Potential(self.config.potential, self.config.temperature, batch)

    def _check_alive(self, weights: Weights) -> None:
        if bool(weights.dead.any()):
            group = int(weights.dead.nonzero()[0])
            raise ValueError(
                f"all {self.config.num_particles} particles of prompt {group} have weight 0: the reward of each is NaN "
                "or -inf; make it finite, or take more particles."
            )
