"""What both kinds of samples share on the command line: drawing, records, and what libraries may say."""

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from redge_guidance.config import GuidanceConfig
from redge_guidance.generation import Record, generate
from redge_guidance.generation.journal import line_of
from redge_guidance.setups.models import DEFAULT_MODEL
from redge_guidance.setups.options import Options
from redge_guidance.setups.setup import Setup

SAMPLES, BATCH = 8, 16  # of a prompt, and drawn together


def quiet() -> None:
    """No log lines and, unless on a terminal, no progress bars: what matters comes back as an exception."""
    import diffusers
    import huggingface_hub
    import transformers

    for library in (diffusers.utils.logging, transformers.utils.logging, huggingface_hub.utils.logging):
        library.set_verbosity(logging.CRITICAL)  # what they call an error comes back as an exception, too
    if not sys.stderr.isatty():
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()


def running(setup: Setup) -> AbstractContextManager[None]:
    """Around sampling: what the content of a checkpoint makes fail is bad input, unless the checkpoint is ours."""
    from redge_guidance.hub import builtin_names, using

    model = setup.resolved.get("model", DEFAULT_MODEL)
    rewards = [told.get("name") for entry in setup.resolved.get("reward", []) for told in entry.values()]
    names = [str(name) for name in (model, *rewards) if name is not None]
    if set(names) <= set(builtin_names()):
        return nullcontext()
    under = f" under `--reward` {', '.join(names[1:])}" if names[1:] else ""
    return using(f"`--model` {model}{under}", (RuntimeError,))


@dataclass(frozen=True)
class Run:
    """Samples, guided or not.

    Attributes:
        records: of all samples, in their order, without those that failed.
        failed: those.
    """

    records: list[Record] = field(default_factory=list)
    failed: list[Record] = field(default_factory=list)

    @property
    def is_rewarded(self) -> bool:
        """Whether there was a reward."""
        return any(record.rewards for record in self.records)

    @property
    def reward(self) -> float:
        """The mean."""
        values = [record.reward for record in self.records if record.reward is not None]
        return sum(values) / len(values) if values else float("nan")

    @property
    def hits(self) -> str:
        """The share that is as the rewards want it."""
        known = [record.reached for record in self.records if record.reached is not None]
        return f"{sum(known) / len(known):.0%}" if known else "-"

    @property
    def accepted(self) -> str:
        """The share that a constraint accepts."""
        known = [record.accepted for record in self.records if record.accepted is not None]
        return f"{sum(known) / len(known):.0%}" if known else "-"

    @property
    def rejected(self) -> int:
        """How many a constraint does not accept."""
        return sum(record.accepted is False for record in self.records)

    @property
    def seconds(self) -> float:
        return sum(record.seconds for record in self.records)


def draw(
    setup: Setup,
    prompts: Sequence[Any],
    options: Options,
    guided: bool = True,
    nats: bool = False,
    enforced: bool = True,
    make: Callable[..., Iterable[Record]] = generate,
) -> Run:
    """All samples, with or without guidance and the constraint; without a reward nothing is guided."""
    config: GuidanceConfig | None = None
    if setup.reward is not None:
        config = setup.config if guided else replace(setup.config, scale=0.0, target=None)
    records = make(
        setup.pipe,
        prompts,
        setup.reward,
        config,
        samples_per_prompt=options.get("samples_per_prompt", SAMPLES),
        batch_size=options.get("batch_size", BATCH),
        seed=options.get("seed", 0),
        nats=nats,
        **({} if enforced else {"enforced": False}),
        **setup.settings,
    )
    run = Run()
    for record in records:
        (run.records if record.error is None else run.failed).append(record)
    return run


def aim(setup: Setup) -> list[str]:
    """What guidance pursued, at what cost and why, as a line of a report; no line without a reward."""
    from redge_guidance.guidance import Guidance

    if setup.reward is None:
        return []
    return [f"aim: {Guidance(setup.reward, setup.config).trace.aim}"]


@dataclass(frozen=True)
class Made:
    """What a command made.

    Attributes:
        report: for standard output.
        files: content by `json`, `out`, `trace`.
        failed: samples that could not be drawn.
    """

    report: str
    files: dict[str, bytes]
    failed: list[Record]


def as_json(runs: Sequence[Run]) -> bytes:
    """One line of JSON a sample."""
    return b"".join(line_of(record.to_dict()) for run in runs for record in run.records)
