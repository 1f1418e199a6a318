"""`redge-guidance generate` with a model of images."""

import importlib.util
import io
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from redge_guidance.cli.common import Made, Run, aim, as_json, draw, running
from redge_guidance.config import GuidanceConfig
from redge_guidance.generation import Record
from redge_guidance.generation import generate as generate_records
from redge_guidance.generation.many import Run as GenerationRun
from redge_guidance.generation.requests import as_lines, requests_of
from redge_guidance.setups.options import Options
from redge_guidance.setups.setup import Setup
from redge_guidance.trace import StepTrace

_KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
_COLUMNS, _SMALLEST = 16, 56  # of a contact sheet: images in a row, pixels of an image


def check(options: Options) -> None:
    """A ValueError for what cannot be done with images, before the work."""
    if "out" not in options and "json" not in options:
        raise ValueError("`--out` must name an image file for images, got none; add `--out sheet.png`.")
    if "out" in options:
        _check_sheet(options.get("out"))


def generate(setup: Setup, options: Options) -> Made:
    """Images, their comparison with unguided ones, and the sheet that was asked for."""
    out, trace = options.get("out"), list[StepTrace]()
    if setup.reward is None:
        raise ValueError("`--scale` 0 of images needs something to compare: name a `--label` or a `--reward`.")
    told = _takes_text(setup.pipe)
    if "class_labels" in options and told:
        raise ValueError(
            f"{options.spell('class_labels')} is for a model with classes, and {options.get('model')} is given a text."
        )
    prompts = options.get("prompt", [""]) if told else [options.get("class_labels")]
    runs = []
    with running(setup):
        if options.get("baseline") or out is not None:
            runs.append(draw(setup, prompts, options, guided=False))
        make = partial(_traced, trace) if out is not None else generate_records
        runs.append(draw(setup, prompts, options, make=make))
    failed = [record for run in runs for record in run.failed]
    files = {"json": as_json(runs)} if "json" in options else {}
    report = [*aim(setup), *_report(runs)]
    if out is not None:
        kind, sheet = _KINDS[Path(out).suffix.lower()], io.BytesIO()
        _contact_sheet(runs).save(sheet, kind)
        files |= {"out": sheet.getvalue(), "trace": _plot(trace, kind)}
        report = [f"{out}: unguided above guided; {trace_file(out)}: what guidance did", *report]
    return Made("\n".join(report), files, failed)


def _traced(
    trace: list[StepTrace],
    pipe: Any,
    prompts: Sequence[Any],
    reward: Any,
    config: GuidanceConfig,
    *,
    samples_per_prompt: int,
    batch_size: int,
    seed: int,
    nats: bool,
    **settings: Any,
) -> Iterator[Record]:
    """As `redge_guidance.generate`, and what guidance noted on the way is added to `trace`."""
    run = GenerationRun(pipe, reward, config, batch_size=batch_size, seed=seed, nats=nats, settings=settings)
    with run.guiding():
        for window in run.planned(requests_of(as_lines(prompts), samples_per_prompt, seed)):
            for batch in window:
                yield from run.batch(batch)
                trace += run.trace


def _check_sheet(name: str) -> None:
    if Path(name).suffix.lower() not in _KINDS:
        raise ValueError(f"`--out` must be a .png, .jpg or .webp file, got {name}.")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("`--out` plots the trace and needs matplotlib: pip install 'redge-guidance[notebook]'.")


def trace_file(sheet: str) -> str:
    """Where the trace of guidance goes that belongs to a contact sheet."""
    path = Path(sheet)
    return str(path.with_name(f"{path.stem}-trace{path.suffix}")) if path.name else sheet


def _takes_text(pipe: Any) -> bool:
    return getattr(pipe, "tokenizer", None) is not None


def _report(runs: Sequence[Run]) -> list[str]:
    lines = [f"{'':10}{'reward':>9}{'on target':>12}{'seconds':>9}"]
    for run in runs:
        name = "guided" if run is runs[-1] else "unguided"
        lines.append(f"{name:10}{run.reward:9.2f}{run.hits:>12}{run.seconds:9.1f}")
    return lines


def _contact_sheet(runs: Sequence[Run]) -> Any:
    """Unguided images, and guided ones in the row below, as many in a row as fit."""
    from diffusers.utils import make_image_grid
    from PIL import Image

    rows: list[Any] = []
    by_run = [[record.image for record in run.records] for run in runs]
    columns = min(_COLUMNS, len(by_run[0]))
    size = max(_SMALLEST, by_run[0][0].width)
    for first in range(0, len(by_run[0]), columns):
        for images in by_run:
            row = images[first : first + columns]
            rows += row + [Image.new("RGB", row[0].size, "white")] * (columns - len(row))
    return make_image_grid(rows, len(rows) // columns, columns, resize=size)


def _plot(trace: list[StepTrace], kind: str) -> bytes:
    """An image file: reward, and KL in nats a free token, over the share of denoising steps done."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    progress = [step.progress for step in trace]
    axis.plot(progress, [step.reward for step in trace], ".", color="C0")
    axis.set(xlabel="share of denoising steps done", ylabel="mean reward of the relaxed samples")
    axis.yaxis.label.set_color("C0")
    right = axis.twinx()
    right.plot(progress, [step.kl for step in trace], ".", color="C1")
    right.set_ylabel("KL(q || p), nats a free token", color="C1")
    file = io.BytesIO()
    figure.savefig(file, dpi=150, format=kind)
    pyplot.close(figure)
    return file.getvalue()
