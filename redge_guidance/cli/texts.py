"""`redge-guidance generate` with a model of texts."""

import argparse
import sys
import time
from typing import Any

from redge_guidance.cli.common import Made, device_of, naming, quiet, records, running
from redge_guidance.config import GuidanceConfig

WORD, LENGTH = 15.0, 8.0  # units of reward, beside the classifier's nats
_DEFAULT_REWARD = "builtin:sentiment"
_BATCH = 64


def generate(args: argparse.Namespace, config: GuidanceConfig) -> Made:
    """Texts, and a comparison where there is a baseline."""
    from redge_guidance.attach import guide

    quiet()
    pipe, goals = _load(args)
    reward = sum(weight * goal for weight, goal in goals)
    prompts = [text for text in args.prompt or [""] for _ in range(args.samples_per_prompt)]
    runs = []
    with running(args, _DEFAULT_REWARD if args.reward is None else args.reward):
        if args.baseline:
            runs.append(_run(pipe, reward, prompts, args, scale=0.0))
        with guide(pipe, reward, config, seed=args.seed):
            runs.append(_run(pipe, reward, prompts, args, scale=config.scale))
    return Made(_report(runs), {} if args.json is None else {"json": records(runs, args, config)})


def _load(args: argparse.Namespace) -> tuple[Any, list[tuple[float, Any]]]:
    """The pipeline, and the rewards with their weights."""
    import torch

    from redge_guidance.pipelines import TextPipeline
    from redge_guidance.rewards import LengthReward, LexicalReward, TextClassifierReward

    device = device_of(args.device)
    dtype = getattr(torch, args.dtype)
    trust: dict[str, Any] = {"trust_remote_code": True} if args.trust_remote_code else {}
    goals: list[tuple[float, Any]] = []
    if args.want or args.ban:
        goals.append((WORD, LexicalReward(args.want or (), args.ban or ())))
    if args.min_words or args.max_words:
        goals.append((LENGTH, LengthReward(args.min_words or 0, args.max_words)))
    asked = any(value is not None for value in (args.label, args.reward, args.reward_temperature))
    if args.label is None and args.reward is None and (asked or not goals):
        goal = (
            "`--reward-temperature` needs `--label`, got none"
            if asked
            else (
                "`--label`, `--want`, `--ban`, `--min-words` or `--max-words` must say what to steer toward, got none"
            )
        )
        raise ValueError(f"{goal}; the labels of {_DEFAULT_REWARD} are positive, negative and neutral.")
    if asked or not goals:
        temperature = 1.0 if args.reward_temperature is None else args.reward_temperature
        with naming("--reward"):
            classifier = TextClassifierReward.from_pretrained(
                _DEFAULT_REWARD if args.reward is None else args.reward,
                label=args.label,
                temperature=temperature,
                device=device,
                dtype=dtype,
                **trust,
            )
        goals.append((1.0, classifier))
    options = ("tokenizer", "family", "mask_token_id")
    named = {name: getattr(args, name) for name in options if getattr(args, name) is not None}
    with naming("--model"):
        pipe = TextPipeline.from_pretrained(args.model, dtype=dtype, **named, **trust).to(device)
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False)
    return pipe, goals


def _run(
    pipe: Any,
    reward: Any,
    prompts: list[str],
    args: argparse.Namespace,
    scale: float,
) -> dict[str, Any]:
    """Texts for all prompts, with their rewards and nats; the seconds are those of sampling alone."""
    import torch

    generator = torch.Generator(args.device).manual_seed(args.seed)
    started, texts = time.perf_counter(), []
    for first in range(0, len(prompts), _BATCH):
        batch = prompts[first : first + _BATCH]
        texts += pipe(batch, num_inference_steps=args.num_inference_steps, generator=generator).texts
    seconds = time.perf_counter() - started
    rewards, nlls = reward.score(texts, prompts).tolist(), pipe.nll(texts).tolist()
    reached = reward.reached(texts, prompts)
    records = [
        {"prompt": prompt, "text": text, "reward": r, "nll": nll}
        for prompt, text, r, nll in zip(prompts, texts, rewards, nlls, strict=True)
    ]
    tokens = sum(len(ids) + 1 for ids in pipe.tokenizer(texts, add_special_tokens=False).input_ids)  # with the end
    return {
        "scale": scale,
        "records": records,
        "reward": sum(rewards) / len(rewards),
        "hits": "-" if reached is None else f"{sum(reached) / len(texts):.0%}",
        "nll": sum(nlls) / tokens,
        "distinct": len(set(texts)) / len(texts),
        "seconds": seconds,
    }


def _report(runs: list[dict[str, Any]]) -> str:
    lines = []
    for run in runs:
        if len(runs) > 1:
            lines.append("guided:" if run is runs[-1] else "unguided:")
        lines += [("  " if len(runs) > 1 else "") + record["text"] for record in run["records"]]
        if len(runs) > 1:
            lines.append("")
    if len(runs) > 1:
        lines.append(f"{'':10}{'reward':>9}{'on target':>12}{'nats/token':>12}{'distinct':>10}{'seconds':>9}")
        for run in runs:
            name = "guided" if run is runs[-1] else "unguided"
            lines.append(
                f"{name:10}{run['reward']:9.2f}{run['hits']:>12}{run['nll']:12.2f}"
                f"{run['distinct']:>10.0%}{run['seconds']:9.1f}"
            )
    return "\n".join(lines)
