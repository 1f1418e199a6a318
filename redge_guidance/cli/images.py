"""`redge-guidance generate` with a model of images."""

import importlib.util
import io
import time
from pathlib import Path
from typing import Any

from redge_guidance.cli.common import Made, records, running
from redge_guidance.setups.options import Options
from redge_guidance.setups.setup import Setup
from redge_guidance.trace import StepTrace

_KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
_BATCH = 64
_COLUMNS, _SMALLEST = 16, 56  # of a contact sheet: images in a row, pixels of an image


def check(options: Options) -> None:
    """A ValueError for what cannot be done with images, before the work."""
    if "out" not in options and "json" not in options:
        raise ValueError("`--out` must name an image file for images, got none; add `--out sheet.png`.")
    if "out" in options:
        _check_sheet(options.get("out"))


def generate(setup: Setup, options: Options) -> Made:
    """Images, their comparison with unguided ones, and the sheet that was asked for."""
    from redge_guidance.attach import guide

    out, pipe, reward, runs = options.get("out"), setup.pipe, setup.reward, []
    with running(setup):
        if options.get("baseline") or out is not None or reward is None:
            runs.append(_run(setup, options, scale=0.0))
        with guide(pipe, reward, setup.config, seed=options.get("seed", 0)) as handle:
            runs.append(_run(setup, options, scale=setup.config.scale))
    files = {} if "json" not in options else {"json": records(runs, setup, options)}
    report = _report(runs)
    if out is not None:
        kind, sheet = _KINDS[Path(out).suffix.lower()], io.BytesIO()
        _contact_sheet(runs).save(sheet, kind)
        files |= {"out": sheet.getvalue(), "trace": _plot(handle.trace, kind)}
        report = [f"{out}: unguided above guided; {trace_file(out)}: what guidance did", *report]
    return Made("\n".join(report), files)


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


def _run(setup: Setup, options: Options, scale: float) -> dict[str, Any]:
    """Images for all prompts, with their rewards; the seconds are those of sampling alone."""
    import torch

    from redge_guidance.rewards import ImageClassifierReward

    pipe, reward = setup.pipe, setup.reward
    generator = torch.Generator(pipe.device).manual_seed(options.get("seed", 0))
    if "class_labels" in options and _takes_text(pipe):
        raise ValueError(f"`--class-labels` is for a model with classes, and {options.get('model')} is given a text.")
    prompts = [text for text in options.get("prompt", [""]) for _ in range(options.get("samples_per_prompt", 8))]
    settings: dict[str, Any] = {**setup.settings, "generator": generator, "output_type": "pt"}
    tokens: list[Any] = []
    parts, started = [], time.perf_counter()
    for first in range(0, len(prompts), _BATCH):
        batch = prompts[first : first + _BATCH]
        if _takes_text(pipe):
            output = pipe(prompt=batch, **settings)
        else:
            output = pipe(num_images_per_prompt=len(batch), **settings)
        parts.append(output.images.float())
        tokens += output.tokens.tolist() if hasattr(output, "tokens") else [None] * len(batch)
    seconds, pixels = time.perf_counter() - started, torch.cat(parts)
    with torch.no_grad():
        scored = [reward.score(part, prompts[i * _BATCH :][: len(part)]) for i, part in enumerate(parts)]
        rewards = torch.cat(scored)
    is_classifier = isinstance(reward, ImageClassifierReward)
    predicted: list[str | None] = reward.predict(pixels) if is_classifier else [None] * len(prompts)
    reached = reward.reached(pixels, prompts)
    records = [
        {"prompt": prompt, "reward": r, "predicted": label, "tokens": ids}
        for prompt, r, label, ids in zip(prompts, rewards.tolist(), predicted, tokens, strict=True)
    ]
    return {
        "scale": scale,
        "records": records,
        "pixels": pixels.cpu(),
        "reward": rewards.mean().item(),
        "hits": "-" if reached is None else f"{sum(reached) / len(reached):.0%}",
        "seconds": seconds,
    }


def _report(runs: list[dict[str, Any]]) -> list[str]:
    lines = [f"{'':10}{'reward':>9}{'on target':>12}{'seconds':>9}"]
    for run in runs:
        name = "guided" if run is runs[-1] else "unguided"
        lines.append(f"{name:10}{run['reward']:9.2f}{run['hits']:>12}{run['seconds']:9.1f}")
    return lines


def _contact_sheet(runs: list[dict[str, Any]]) -> Any:
    """Unguided images, and guided ones in the row below, as many in a row as fit."""
    from diffusers.image_processor import VaeImageProcessor
    from diffusers.utils import make_image_grid
    from PIL import Image

    processor, rows = VaeImageProcessor(do_normalize=False), []
    by_run = [processor.postprocess(run["pixels"], "pil", [False] * len(run["pixels"])) for run in runs]
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
