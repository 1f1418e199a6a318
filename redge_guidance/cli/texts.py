"""`redge-guidance generate` with a model of texts."""

import time
from typing import Any

from redge_guidance.cli.common import Made, records, running
from redge_guidance.setups.options import Options
from redge_guidance.setups.setup import Setup

_BATCH = 64


def generate(setup: Setup, options: Options) -> Made:
    """Texts, and a comparison where there is a baseline."""
    from redge_guidance.attach import guide

    pipe, reward, seed = setup.pipe, setup.reward, options.get("seed", 0)
    prompts = [text for text in options.get("prompt", [""]) for _ in range(options.get("samples_per_prompt", 8))]
    runs = []
    with running(setup):
        if options.get("baseline") or reward is None:
            runs.append(_run(setup, prompts, seed, scale=0.0))
        if reward is not None:
            with guide(pipe, reward, setup.config, seed=seed):
                runs.append(_run(setup, prompts, seed, scale=setup.config.scale))
    return Made(_report(runs), {} if "json" not in options else {"json": records(runs, setup, options)})


def _run(setup: Setup, prompts: list[str], seed: int, scale: float) -> dict[str, Any]:
    """Texts for all prompts, with their rewards and nats; the seconds are those of sampling alone."""
    import torch

    pipe, reward = setup.pipe, setup.reward
    generator = torch.Generator(pipe.device).manual_seed(seed)
    started, texts = time.perf_counter(), []
    for first in range(0, len(prompts), _BATCH):
        batch = prompts[first : first + _BATCH]
        texts += pipe(batch, **setup.settings, generator=generator).texts
    seconds = time.perf_counter() - started
    nlls = pipe.nll(texts).tolist()
    rewards = [0.0] * len(texts) if reward is None else reward.score(texts, prompts).tolist()
    reached = None if reward is None else reward.reached(texts, prompts)
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
