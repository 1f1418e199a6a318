"""`particles`: sequences of one prompt that compete, at the same seam as guidance."""

from typing import Any

from torch import Tensor

from redge_guidance.accepting import as_reward
from redge_guidance.config import GuidanceConfig
from redge_guidance.constraints.constraint import Constrained, Constraint, parted
from redge_guidance.guidance import Guidance
from redge_guidance.handle import Handle
from redge_guidance.hosts.attachment import Attachment
from redge_guidance.hosts.base import Drawn
from redge_guidance.hosts.registry import makes_images
from redge_guidance.particles.population import Outcome, ParticleStep, Population
from redge_guidance.particles.settings import ParticleConfig
from redge_guidance.randomness import check_seed
from redge_guidance.reward import Wanted
from redge_guidance.step import DenoisingStep
from redge_guidance.terms import check_target
from redge_guidance.trace import Trace


class ParticleHandle(Handle):
    """Particles on a pipeline, as `particles` returns them. A context manager that removes itself on exit.

    Attributes:
        config: the settings in force.
    """

    def __init__(self, pipe: Any, population: Population, guidance: Guidance | None, attachment: Attachment):
        super().__init__(pipe, attachment)
        self._population, self._guidance, self._in_call = population, guidance, lambda: attachment.in_call

    @property
    def config(self) -> ParticleConfig:
        return self._population.config

    @property
    def outcome(self) -> Outcome:
        """Of the last call of the pipeline.

        Raises:
            RuntimeError: there was none, or it did not come to its end.
        """
        if self._population.outcome is None:
            raise RuntimeError("the pipeline was not called, or its last call did not come to its end; call it first.")
        return self._population.outcome

    @property
    def steps(self) -> list[ParticleStep]:
        """Figures of the steps of the last call."""
        return self._population.trace

    @property
    def trace(self) -> Trace | None:
        """What guidance noted; None without guidance."""
        return None if self._guidance is None else self._guidance.trace

    def remove(self) -> None:
        """Give the pipeline back as it was. A call in progress goes on without particles, and has no outcome."""
        if self._in_call():
            self._population.begin()
        super().remove()


def particles(
    pipe: Any,
    reward: Wanted,
    config: ParticleConfig | None = None,
    guidance: GuidanceConfig | None = None,
    *,
    seed: int = 0,
) -> ParticleHandle:
    """Let the sequences of one prompt compete, in every call of `pipe` until the handle is removed.

    Each n consecutive rows of a batch are the particles of one prompt. After every step of the scheduler the weight of
    a particle grows by what its reward, that of what it may become, says of it (`ParticleConfig`), and where it is
    guided by `p(x_S) / q(x_S)` of the tokens x_S that were drawn in the step, p the model's own prediction and q the
    guided one: products over the tokens, but for q where guidance gives texts a form. Where the weights of a prompt
    have become too unequal its particles are resampled: light ones go on as copies of heavy ones, with all that the
    sampler keeps of them. In the end the weighted particles stand for

        p(x) exp(reward(x) / temperature) / Z,

    p the law of the bare sampler: the mean of f, so weighted, goes to E[f] as n grows, and `exp(log_z)` has the mean Z
    for every n. Without guidance that is so on every sampler. With guidance it is where tokens alone depend on the
    logits, as in ancestral sampling. Samplers by confidence also choose their positions by them, and those with `top_k`
    or `top_p` what may be drawn at all, which the weights leave out: there they are an approximation.

    Args:
        pipe: a pipeline that `guide` takes, which has a scheduler.
        reward: as for `guide`; it need not have a gradient unless it is to guide. With `reward & constraint` the target
            is `p(x) [x accepted] exp(reward(x) / temperature) / Z`, with a constraint alone `p(x) [x accepted] / Z`;
            the constraint holds with and without `guidance`.
        config: `ParticleConfig()` when None.
        guidance: how the reward also guides; None: it does not, which is FK steering.
        seed: of completions and resampling, and of guidance's noise.

    Raises:
        ValueError: a reward, config or seed that is none. While sampling: a constraint, or guidance by a reward that
            is an automaton, on a sampler where the weights of that are not known (docs/particles.md); a batch that is
            no multiple of n, or whose groups have several prompts; greedy sampling; guided steps that exchange tokens
            drawn before, as corrector sweeps and editing; a group all of whose particles have weight 0; what the reward
            raises.
        RuntimeError: while sampling, a pipeline that keeps something of a sequence where it cannot be exchanged.

    Example:
        >>> from redge_guidance.pipelines import MaskedTextPipeline
        >>> from redge_guidance.rewards import TextClassifierReward
        >>> pipe = MaskedTextPipeline.from_pretrained("builtin:tatoeba-masked")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> reward = TextClassifierReward.from_pretrained("builtin:sentiment", label="negative")
        >>> with particles(pipe, reward, ParticleConfig(num_particles=4)) as handle:
        ...     texts = pipe([""] * 4 + ["Tom"] * 4, num_inference_steps=8).texts
        >>> handle.outcome.log_weights.shape, handle.outcome.log_z.shape
        (torch.Size([2, 4]), torch.Size([2]))
    """
    config = ParticleConfig() if config is None else config
    if not isinstance(config, ParticleConfig):
        raise ValueError(f"`config` must be a ParticleConfig, got {type(config).__name__}.")
    if guidance is not None and not isinstance(guidance, GuidanceConfig):
        raise ValueError(f"`guidance` must be a GuidanceConfig or None, got {type(guidance).__name__}.")
    wanted, constraint = parted(reward)
    asked = None if wanted is None else as_reward(wanted)
    if config.target is not None and asked is not None:
        check_target(config.target, asked)
    guiding = _guiding(asked, constraint, guidance, seed, makes_images(pipe))
    if config.intermediate == "guidance" and (guidance is None or asked is None or guidance.scale == 0):
        raise ValueError(
            '`intermediate` "guidance" takes the rewards that guidance asks for, and no reward guides here; pass '
            '`guidance`, or take "completions".'
        )
    population = Population(asked, config, guiding, check_seed(seed))

    def follow(step: DenoisingStep, drawn: Drawn) -> Tensor | None:
        return population.follow(step, drawn.tokens, drawn.positions)

    def settle(step: DenoisingStep, drawn: Drawn) -> Tensor | None:
        return population.settle(step, drawn.tokens, drawn.positions)

    attachment = Attachment(
        pipe,
        begin=population.begin,
        move=population.move,
        follow=follow,
        end=population.end,
        foresee=None if guiding is None else guiding.foresee,
        settle=settle,
    )
    return ParticleHandle(pipe, population, guiding, attachment)


def _guiding(
    asked: Any, constraint: Constraint | None, config: GuidanceConfig | None, seed: int, images: bool
) -> Guidance | None:
    """What moves the logits: a constraint always does, a reward where there is a config; None: nothing."""
    if config is None:
        return None if constraint is None else Guidance(constraint, None, seed, weighed=True)
    if constraint is None:
        return Guidance(asked, config, seed, weighed=True, images=images)
    return Guidance(constraint if asked is None else Constrained(asked, constraint), config, seed, weighed=True)
