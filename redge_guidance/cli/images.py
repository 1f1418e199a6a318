"""`redge-guidance generate` with a model of images."""

import argparse
import importlib.util
import io
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from redge_guidance.cli.common import Made, device_of, naming, quiet, records, running
from redge_guidance.config import GuidanceConfig
from redge_guidance.trace import StepTrace

_KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
_PIPELINES = ("MaskedImagePipeline", "AmusedPipeline")
_DEFAULT_REWARD = "builtin:mnist-classifier"
TEMPERATURE = 8.0  # of a classifier: the reward goes on where the classifier is sure
CLASSIFIER_SCALE = 500.0  # at that temperature; many pixels have to change for a nat
CLIP_SCALE = 100.0  # a cosine hardly changes by more than 0.1
_BATCH = 64
_COLUMNS, _SMALLEST = 16, 56  # of a contact sheet: images in a row, pixels of an image


def makes_images(name: str) -> bool:
    """Whether the model of that name is a pipeline of images."""
    return _pipeline_class(name) in _PIPELINES


def generate(args: argparse.Namespace, config: GuidanceConfig) -> Made:
    """Images, their comparison with unguided ones, and the sheet that was asked for."""
    from redge_guidance.attach import guide

    if args.out is None and args.json is None:
        raise ValueError("`--out` must name an image file for images, got none; add `--out sheet.png`.")
    if args.out is not None:
        _check_sheet(args.out)
    quiet()
    pipe, reward, scale = _load(args)
    if args.scale is None:
        config = replace(config, scale=scale)
    runs = []
    with running(args, _DEFAULT_REWARD if args.reward is None else args.reward):
        if args.baseline or args.out is not None:
            runs.append(_run(pipe, reward, args, scale=0.0))
        with guide(pipe, reward, config, seed=args.seed) as handle:
            runs.append(_run(pipe, reward, args, scale=config.scale))
    files = {} if args.json is None else {"json": records(runs, args, config)}
    report = _report(runs)
    if args.out is not None:
        kind, sheet = _KINDS[Path(args.out).suffix.lower()], io.BytesIO()
        _contact_sheet(runs).save(sheet, kind)
        files |= {"out": sheet.getvalue(), "trace": _plot(handle.trace, kind)}
        report = [f"{args.out}: unguided above guided; {trace_file(args.out)}: what guidance did", *report]
    return Made("\n".join(report), files)


def _pipeline_class(name: str) -> str | None:
    from redge_guidance.hub import loading, resolve
    from redge_guidance.remote import read_index

    path = resolve(name)
    index = Path(path) / "model_index.json"
    if not Path(path).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            index = Path(hf_hub_download(path, "model_index.json"))
        except (EntryNotFoundError, OSError):  # no pipeline: whoever loads it says what is wrong
            return None
    if not index.is_file():
        return None
    with loading(name):
        kind: str = read_index(index)["_class_name"]
    return kind


def _check_sheet(name: str) -> None:
    if Path(name).suffix.lower() not in _KINDS:
        raise ValueError(f"`--out` must be a .png, .jpg or .webp file, got {name}.")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("`--out` plots the trace and needs matplotlib: pip install 'redge-guidance[notebook]'.")


def trace_file(sheet: str) -> str:
    """Where the trace of guidance goes that belongs to a contact sheet."""
    path = Path(sheet)
    return str(path.with_name(f"{path.stem}-trace{path.suffix}")) if path.name else sheet


def _load(args: argparse.Namespace) -> tuple[Any, Any, float]:
    """The pipeline and the reward."""
    import torch
    from diffusers import AmusedPipeline
    from transformers import AutoConfig

    from redge_guidance.hub import loading, resolve
    from redge_guidance.pipelines import MaskedImagePipeline
    from redge_guidance.remote import load_pipeline
    from redge_guidance.rewards import CLIPReward, ImageClassifierReward

    device, dtype = device_of(args.device), getattr(torch, args.dtype)
    trust = args.trust_remote_code
    if _pipeline_class(args.model) == "MaskedImagePipeline":
        pipe: Any = MaskedImagePipeline.from_pretrained(args.model, dtype=dtype, trust_remote_code=trust)
    else:
        with loading(args.model):
            pipe = load_pipeline(AmusedPipeline, resolve(args.model), dtype, trust)
    name = _DEFAULT_REWARD if args.reward is None else args.reward
    settings: dict[str, Any] = {"device": device, "dtype": dtype, "trust_remote_code": trust}
    with naming("--reward"), loading(name):
        config = AutoConfig.from_pretrained(resolve(name), trust_remote_code=trust)
    kinds = getattr(config, "architectures", None) or []
    if any(kind.endswith("ForImageClassification") for kind in kinds):
        if args.prompt and not _takes_text(pipe):
            raise ValueError(f"`--prompt` has no use: {args.model} is given no text, and {name} is a classifier.")
        temperature = TEMPERATURE if args.reward_temperature is None else args.reward_temperature
        reward: Any = ImageClassifierReward.from_pretrained(name, args.label, temperature=temperature, **settings)
        scale = CLASSIFIER_SCALE
    elif hasattr(config, "vision_config"):
        for option, value in (("--label", args.label), ("--reward-temperature", args.reward_temperature)):
            if value is not None:
                raise ValueError(f"`{option}` is for a classifier, and {name} is {config.model_type}; use `--prompt`.")
        if not args.prompt:
            raise ValueError(f"`--prompt` must say what images are to show, for {name}, got none.")
        if len(args.prompt) > 1 and not _takes_text(pipe):
            raise ValueError(
                f"`--prompt` must be one text for {args.model}, which is not told it, got {len(args.prompt)}."
            )
        reward = CLIPReward.from_pretrained(name, None if _takes_text(pipe) else args.prompt[0], **settings)
        scale = CLIP_SCALE
    else:
        raise ValueError(f"`--reward` must be an image classifier or a CLIP model, got {name}, {config.model_type}.")
    pipe = pipe.to(device)
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False)
    return pipe, reward, scale


def _takes_text(pipe: Any) -> bool:
    return getattr(pipe, "tokenizer", None) is not None


def _run(pipe: Any, reward: Any, args: argparse.Namespace, scale: float) -> dict[str, Any]:
    """Images for all prompts, with their rewards; the seconds are those of sampling alone."""
    import torch

    from redge_guidance.rewards import ImageClassifierReward

    generator = torch.Generator(args.device).manual_seed(args.seed)
    if args.class_label is not None and _takes_text(pipe):
        raise ValueError(f"`--class-label` is for a model with classes, and {args.model} is given a text.")
    prompts = [text for text in args.prompt or [""] for _ in range(args.samples_per_prompt)]
    settings: dict[str, Any] = {"generator": generator, "output_type": "pt"}
    if args.num_inference_steps is not None:
        settings["num_inference_steps"] = args.num_inference_steps
    tokens: list[Any] = []
    parts, started = [], time.perf_counter()
    for first in range(0, len(prompts), _BATCH):
        batch = prompts[first : first + _BATCH]
        if _takes_text(pipe):
            output = pipe(prompt=batch, **settings)
        else:
            output = pipe(args.class_label, num_images_per_prompt=len(batch), **settings)
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
