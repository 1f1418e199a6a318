"""Prompts in, for each the best of several samples out: by particles, or by best-of-N."""

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from redge_guidance.accepting import as_reward, as_strings
from redge_guidance.checks import as_real, whole_number
from redge_guidance.config import GuidanceConfig
from redge_guidance.constraints.constraint import Constrained, parted
from redge_guidance.evaluation import WrongKind
from redge_guidance.generation.many import Run
from redge_guidance.generation.record import Record
from redge_guidance.generation.requests import Prompt, Request, as_lines, requests_of
from redge_guidance.generation.sampler import Drawn, Sampler
from redge_guidance.goals import exchanged
from redge_guidance.particles.attached import particles
from redge_guidance.particles.settings import ParticleConfig
from redge_guidance.randomness import check_seed
from redge_guidance.reward import Reward, Term, Wanted
from redge_guidance.strength import least_of
from redge_guidance.terms import check_target, terms_of


@dataclass(frozen=True)
class Found:
    """The samples of one prompt.

    Attributes:
        index: place of the prompt among all, from 0.
        prompt: a text, a list of messages, or the class of an image.
        samples: texts, or images as pixels `(3, height, width)` in [0, 1].
        rewards: of each.
        log_weights: of each, normalised, in nats; None of best-of-N, where all count alike.
        log_z: the estimate of `log sum_x p(x) exp(reward(x) / temperature)`; None of best-of-N.
    """

    index: int
    prompt: Prompt
    samples: Sequence[Any]
    rewards: Sequence[float]
    log_weights: Sequence[float] | None = None
    log_z: float | None = None

    @property
    def reward(self) -> float:
        """The highest, of those that are finite."""
        return max((reward for reward in self.rewards if math.isfinite(reward)), default=math.nan)

    @property
    def best(self) -> Any:
        """The sample of the highest reward, the first of several."""
        return self.samples[self.rewards.index(self.reward) if math.isfinite(self.reward) else 0]


def search(
    pipe: Any,
    prompts: Any,
    reward: Wanted,
    config: ParticleConfig | None = None,
    guidance: GuidanceConfig | None = None,
    *,
    batch_size: int = 16,
    seed: int = 0,
    **settings: Any,
) -> Iterator[Found]:
    """Let particles compete for every prompt, see `particles`, and give what each has found as it is ready.

    Args:
        pipe: a pipeline that `guide` takes, whose call takes a list of generators.
        prompts: as for `generate`.
        reward, config, guidance: as for `particles`.
        batch_size: sequences that are drawn together: as many groups of n as fit it, one at least.
        seed: of the run. The same seed and prompt give the same sequences before they are resampled.
        **settings: for the call of the pipeline.

    Raises:
        ValueError: as for `particles`; a pipeline whose call takes no list of generators, which is to be called under
            `particles` instead; a prompt that cannot be drawn.

    Example:
        >>> from redge_guidance.pipelines import MaskedTextPipeline
        >>> from redge_guidance.rewards import TextClassifierReward
        >>> pipe = MaskedTextPipeline.from_pretrained("builtin:tatoeba-masked")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> reward = TextClassifierReward.from_pretrained("builtin:sentiment", label="negative")
        >>> (found,) = search(pipe, "Tom", reward, ParticleConfig(num_particles=4), num_inference_steps=8)
        >>> found.best[:3], len(found.samples)
        ('Tom', 4)
    """
    config = ParticleConfig() if config is None else config
    sampler, batch_size = Sampler(pipe, settings), whole_number("batch_size", batch_size, 1)
    particles(pipe, reward, config, guidance, seed=seed).remove()  # what it has to say of the arguments it says now
    if not sampler.together:
        raise ValueError(
            f"`pipe` must take a list of generators, which {type(pipe).__name__} does not; call it under `particles`."
        )
    requests = requests_of(as_lines(prompts), config.num_particles, check_seed(seed))
    return _searched(
        pipe, reward, config, guidance, sampler, requests, max(1, batch_size // config.num_particles), seed
    )


def _searched(
    pipe: Any,
    reward: Wanted,
    config: ParticleConfig,
    guidance: GuidanceConfig | None,
    sampler: Sampler,
    requests: Iterable[Request],
    groups: int,
    seed: int,
) -> Iterator[Found]:
    size = config.num_particles
    of_prompts = (list(some) for _, some in itertools.groupby(requests, key=lambda request: request.line.number))
    for _, alike in itertools.groupby(of_prompts, key=lambda some: sampler.kind(_good(some[0]).line)):
        while batch := list(itertools.islice(alike, groups)):
            with particles(pipe, reward, config, guidance, seed=seed) as handle:
                drawn = sampler.draw([request for some in batch for request in some])
            outcome = handle.outcome
            for group, some in enumerate(batch):
                yield Found(
                    some[0].line.number,
                    some[0].line.prompt,
                    [_sample(one) for one in drawn[group * size : (group + 1) * size]],
                    outcome.rewards[group].tolist(),
                    outcome.log_weights[group].tolist(),
                    float(outcome.log_z[group]),
                )


def best_of_n(
    pipe: Any,
    prompts: Any,
    reward: Wanted,
    n: int = 8,
    guidance: GuidanceConfig | None = None,
    *,
    target: float | None = None,
    batch_size: int = 16,
    seed: int = 0,
    **settings: Any,
) -> Iterator[Found]:
    """Draw n samples of every prompt, and give them with their rewards as they are ready.

    Args:
        pipe, prompts, reward: as for `generate`; a function that may be one of strings is tried on two, once. A sample
            whose reward is -inf or NaN is never the best, which is said once.
        n: samples of a prompt.
        guidance: how the reward also guides; None: it does not.
        target: a reward with which a sample is good enough: of its prompt no more are drawn after the batch that has
            it. None: all n are.
        batch_size: samples that are drawn together, of one prompt or several; of few prompts take it smaller than n for
            `target` to save anything.
        seed, **settings: as for `generate`.

    Raises:
        ValueError: an argument out of range; a reward that judges no finished texts; a prompt none of whose samples has
            a finite reward; what `generate` raises; a prompt that cannot be drawn.
    """
    if guidance is not None and not isinstance(guidance, GuidanceConfig):
        raise ValueError(f"`guidance` must be a GuidanceConfig or None, got {type(guidance).__name__}.")
    n, enough = whole_number("n", n, 1), None if target is None else as_real(target)
    if target is not None and (enough is None or enough != enough):
        raise ValueError(f"`target` must be a number, in units of the reward, or None, got {target!r}.")
    config = GuidanceConfig(scale=0.0) if guidance is None else guidance
    wanted, constraint = parted(reward)
    asked = None if wanted is None else _judging(pipe, as_reward(wanted))
    check_judges(pipe, asked)
    if enough is not None and asked is not None:
        check_target(enough, asked)
    steered = asked if constraint is None else constraint if asked is None else Constrained(asked, constraint)
    how: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "nats": False, "settings": settings}
    run = Run(pipe, steered, config, competing=True, **how)
    return _best(run, requests_of(as_lines(prompts), n, run.seed), enough)


def check_judges(pipe: Any, reward: Any) -> None:
    """A ValueError for a reward that judges no finished samples; of texts, for pixels are what functions are shown."""
    if reward is None:
        raise ValueError("`reward` must judge samples, got a constraint alone; pass `reward & constraint`.")
    for term in _judging_nothing(pipe, reward):
        raise ValueError(
            f"`reward` {term.name} judges no finished texts, of which the best is wanted; name the parameter of a "
            "function of strings `text`, or make it a `BlackBoxReward`, or write `score` in a class derived from "
            "`Reward`."
        )


def _judging_nothing(pipe: Any, reward: Any) -> list[Term]:
    """The terms that judge no finished samples."""
    if getattr(pipe, "tokenizer", None) is None or getattr(pipe, "vqvae", None) is not None:
        return []
    scores = (
        (term, getattr(type(term.reward), "score", None) or getattr(term.reward, "score", None))
        for term in terms_of(reward)
    )
    return [term for term, score in scores if score is None or score is Reward.score]


def _judging(pipe: Any, reward: Any) -> Any:
    """The same reward, with functions that may be of strings taken for that where they take two of them."""
    for term in _judging_nothing(pipe, reward):
        if not isinstance(term.reward, Reward):
            with contextlib.suppress(WrongKind):
                strings = as_strings(WrongKind(f"`reward` {term.name} takes no strings", term.reward))
                reward = exchanged(reward, term.reward, strings)
    return reward


def _best(run: Run, requests: Iterable[Request], target: float | None) -> Iterator[Found]:
    of_prompts = (list(some) for _, some in itertools.groupby(requests, key=lambda request: request.line.number))
    told = False
    with run.guiding():
        while window := list(itertools.islice(of_prompts, run.batch_size)):
            waiting = {some[0].line.number: some for some in window}
            records: dict[int, list[Record]] = {number: [] for number in waiting}
            while waiting:
                turns = itertools.chain.from_iterable(itertools.zip_longest(*waiting.values()))
                batch = [request for request in turns if request is not None][: run.batch_size]
                for record in run.batch(batch):
                    if record.error is not None or record.reward is None:
                        raise ValueError(f"prompt {record.index}: {record.error or 'the reward judges no samples'}")
                    records[record.index].append(record)
                taken = {request.key for request in batch}
                waiting = {
                    number: left
                    for number, some in waiting.items()
                    if (left := [request for request in some if request.key not in taken])
                    and not _has(records[number], target)
                }
            for number, found in records.items():
                found.sort(key=lambda record: record.sample)
                rewards = [_worth(record) for record in found]
                told = _check_finite(rewards, number, told)
                samples = [record.image if record.text is None else record.text for record in found]
                yield Found(number, found[0].prompt, samples, rewards)


def _worth(record: Record) -> float:
    """The reward; NaN, which is below nothing and above nothing, of a sample that is out."""
    return math.nan if record.reward is None or not math.isfinite(record.reward) else record.reward


def _check_finite(rewards: Sequence[float], prompt: int, told: bool) -> bool:
    """Whether it was said, once, that some samples are worth nothing; a ValueError where all of a prompt are."""
    out = sum(not math.isfinite(reward) for reward in rewards)
    if out == len(rewards):
        raise ValueError(
            f"all {out} samples of prompt {prompt} have a reward that is NaN or infinite, so that none is the best; "
            "make it finite, or draw more."
        )
    if out and not told:
        warnings.warn(
            f"`reward` is not finite for {out} of {len(rewards)} samples of prompt {prompt}, which are never the best; "
            "make it finite for every sample, or be sure that this is meant.",
            stacklevel=2,
        )
    return told or out > 0


def _has(records: Sequence[Record], target: float | None) -> bool:
    return target is not None and any(_worth(record) >= least_of(target) for record in records)


def _good(request: Request) -> Request:
    if request.line.error is not None:
        raise ValueError(f"{request.line.place}: {request.line.error}")
    return request


def _sample(drawn: Drawn) -> Any:
    return drawn.pixels if drawn.text is None else drawn.text
