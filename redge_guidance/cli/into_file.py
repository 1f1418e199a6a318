"""`redge-guidance generate --output`: any number of samples into a file, and on with it where it was stopped."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redge_guidance.cli.common import BATCH, SAMPLES, running
from redge_guidance.cli.terminal import (
    PROGRAM,
    SOME_FAILED,
    ReaderGoneError,
    complain,
    forget_output,
    in_options,
    remark,
)
from redge_guidance.generation import Input, generate_to
from redge_guidance.setups.models import DEFAULT_MODEL
from redge_guidance.setups.options import Options
from redge_guidance.setups.setup import Setup

_OF_THE_RUN = ("input", "output", "overwrite", "limit", "prompt_field", "batch_size", "prompt", "class_labels")
_NOT_WITH = ("json", "out", "baseline")


def check(options: Options) -> None:
    """A ValueError for settings that do not go with an output, before anything is loaded."""
    for name in _NOT_WITH:
        if options.get(name):
            raise ValueError(f"{options.spell(name)} cannot be used with {options.spell('output')}; leave one out.")
    if "input" in options:
        for name in ("prompt", "class_labels"):
            if name in options:
                raise ValueError(f"{options.spell(name)} cannot be used with {options.spell('input')}; leave one out.")


def generate(setup: Setup, options: Options) -> int:
    """The exit code: 3 where some prompts failed, each of which is a line on standard error."""
    where = options.get("output")
    setup.pipe.set_progress_bar_config(disable=True)  # there is one for the whole run
    with running(setup), _read_by_somebody(where):
        done = generate_to(
            where,
            setup.pipe,
            _prompts(options),
            setup.reward,
            None if setup.reward is None else setup.config,
            samples_per_prompt=options.get("samples_per_prompt", 1 if "input" in options else SAMPLES),
            batch_size=options.get("batch_size", BATCH),
            seed=options.get("seed", 0),
            nats=bool(options.get("nats")),
            overwrite=bool(options.get("overwrite")),
            described=_described(setup),
            on_failure=lambda message: complain(PROGRAM, in_options(message)),
            **setup.settings,
        )
    if where != "-":
        before = f", {done.before} were there" if done.before else ""
        failed = f", {done.failed} failed" if done.failed else ""
        rejected = f", {done.rejected} not as the constraint wants them" if done.rejected else ""
        remark(PROGRAM, f"{done.made} samples in {where}{before}{failed}{rejected}")
    return SOME_FAILED if done.failed else 0


@contextmanager
def _read_by_somebody(where: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        forget_output()
        raise ReaderGoneError from error
    except OSError:
        if where == "-":
            forget_output()
        raise


def _prompts(options: Options) -> Any:
    if "input" in options:
        return Input(options.get("input"), options.get("prompt_field", "prompt"), options.get("limit"))
    if "class_labels" in options:
        return [options.get("class_labels")]
    return options.get("prompt", [""])


def _described(setup: Setup) -> dict[str, Any]:
    """The settings that samples depend on."""
    told = {name: value for name, value in setup.resolved.items() if name not in _OF_THE_RUN}
    return {"model": DEFAULT_MODEL} | told
