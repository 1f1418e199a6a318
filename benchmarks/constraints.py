"""What texts of a form are worth to the model: constrained, rejected until they fit, and masked from left to right.

The embedded masked model, unconditional, for patterns that it meets often enough by itself to wait for such texts. In
each order, with one and with four tokens a step:

- *rejection*: texts of the same sampler, unguided, of which those that match are kept, in the order of drawing;
- *constrained*: as many texts under `guide(pipe, RegexConstraint(pattern))`.

*Masking* is what engines do to autoregressive models: from left to right, one token a step, the model's own
probabilities of the tokens after which the pattern can still be met within the canvas, and no others. Beside it stands
`guide` in that order. All texts are judged by `re.fullmatch`, and by nats per token of the model's own bound (the end
of the text counts as a token), with 95 % intervals from a bootstrap over texts.

    OMP_NUM_THREADS=1 python benchmarks/constraints.py
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import environment, save
from torch import Tensor

from redge_guidance import guide
from redge_guidance.constraints import RegexConstraint
from redge_guidance.pipelines import MaskedTextPipeline
from redge_guidance.pipelines.scheduler import MaskedDiffusionScheduler

PATTERNS = {
    "a question": r".*\?",
    "Tom first": r"Tom .*",
    "5 or 6 words": r"(\S+ ){4,5}\S+",
    "something is or was": r"[A-Z][a-z']+ (is|was) .*\.",
    "in, at or on": r"[A-Z].* (in|at|on) .*\.",
}
SETTINGS = [("left_to_right", 1), ("random", 1), ("random", 4), ("confidence", 1), ("confidence", 4)]
BATCH, LEAST = 64, 8  # texts of a call of the pipeline; texts below which there is no interval


def pipeline(order: str) -> MaskedTextPipeline:
    pipe = MaskedTextPipeline.from_pretrained("builtin:tatoeba-masked")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = MaskedDiffusionScheduler(unmasking_order=order)
    return pipe


def draw(pipe: MaskedTextPipeline, per_step: int, count: int, seed: int) -> list[str]:
    steps = None if per_step == 1 else -(-int(pipe.config.length) // per_step)
    return pipe([""] * count, num_inference_steps=steps, generator=torch.Generator().manual_seed(seed)).texts


def rejected(pipe: MaskedTextPipeline, per_step: int, count: int, most: int, seed: int) -> tuple[dict[str, Any], int]:
    """Texts by pattern, at most `count` each, from at most `most` draws; and how many were drawn."""
    drawn: list[str] = []
    found: dict[str, list[str]] = {name: [] for name in PATTERNS}
    while len(drawn) < most and min(map(len, found.values())) < count:
        drawn += draw(pipe, per_step, BATCH, seed + len(drawn))
        found = {name: [t for t in drawn if re.fullmatch(PATTERNS[name], t)] for name in PATTERNS}
    return {name: (texts[:count], len(texts) / len(drawn)) for name, texts in found.items()}, len(drawn)


@contextmanager
def masked_from_left(pipe: MaskedTextPipeline, pattern: str) -> Iterator[None]:
    """The pipeline's next token of each text is one after which the pattern can still be met, while this lasts."""
    automaton = RegexConstraint(pattern).compiled(pipe.tokenizer, len(pipe.tokenizer), pipe.ends)
    table = np.vstack([automaton.table, np.full((1, automaton.table.shape[1]), -1, dtype=np.int32)])
    table = np.hstack([table, np.full((len(table), 1), -1, dtype=np.int32)])  # class -1: tokens that lead nowhere
    class_of = torch.from_numpy(automaton.class_of).long()
    possible = [np.append(automaton.accepting, False)]  # by the number of tokens that are still to come
    for _ in range(int(pipe.config.length)):
        possible.append((possible[-1][table] & (table >= 0)).any(1))
    step = pipe.scheduler.step

    def stepped(logits: Tensor, t: Any, sample: Tensor, *, free: Tensor, mask_token_id: int, **more: Any) -> Any:
        logits = logits.clone()
        for row, (ids, drawable) in enumerate(zip(sample, free, strict=True)):
            places = drawable.nonzero()[:, 0].tolist()
            state, done = 0, 0
            while done < len(places) and ids[places[done]] != mask_token_id:
                state, done = table[state, automaton.class_of[int(ids[places[done]])]], done + 1
            if done < len(places):
                after = table[state]
                allowed = torch.from_numpy((after >= 0) & possible[len(places) - done - 1][after])
                own = logits[row, places[done]]
                own[: len(class_of)].masked_fill_(~allowed[class_of], -torch.inf)
        return step(logits, t, sample, free=free, mask_token_id=mask_token_id, **more)

    pipe.scheduler.step = stepped
    try:
        yield
    finally:
        del pipe.scheduler.step


def task(arguments: tuple[str, int, dict[str, int]]) -> dict[str, Any]:
    """Texts of one setting, by pattern and method, each with its nats and tokens."""
    torch.set_num_threads(1)
    order, per_step, how = arguments
    pipe, count = pipeline(order), how["num_texts"]
    known: dict[str, tuple[float, int]] = {}

    def scored(texts: list[str]) -> dict[str, Any]:
        new = sorted(set(texts) - known.keys())
        nats = pipe.nll(new, num_corruptions=how["num_corruptions"], batch_size=128).tolist() if new else []
        ids = pipe.tokenizer(new, add_special_tokens=False).input_ids if new else []
        known.update({t: (n, len(i) + 1) for t, n, i in zip(new, nats, ids, strict=True)})
        return {"texts": texts, "nats": [known[t][0] for t in texts], "tokens": [known[t][1] for t in texts]}

    def all_texts(wrapped: Callable[[str], Any]) -> dict[str, dict[str, Any]]:
        found = {}
        for name, pattern in PATTERNS.items():
            with wrapped(pattern):
                texts = [t for k in range(0, count, BATCH) for t in draw(pipe, per_step, min(BATCH, count - k), k)]
            found[name] = scored(texts)
        return found

    result: dict[str, Any] = {"order": order, "per_step": per_step}
    result["constrained"] = all_texts(lambda pattern: guide(pipe, RegexConstraint(pattern)))
    if order == "left_to_right":
        result["masking"] = all_texts(lambda pattern: masked_from_left(pipe, pattern))
    else:
        kept, result["drawn"] = rejected(pipe, per_step, count, how["most_draws"], 1_000_000)
        result["rejection"] = {name: {"share": share} | scored(texts) for name, (texts, share) in kept.items()}
    print(order, per_step, "done", flush=True)
    return result


def resampled(part: dict[str, Any], seed: int) -> np.ndarray:
    """`(1,000,)`, nats per token of texts drawn again from these, with replacement."""
    chosen = np.random.default_rng(seed).integers(len(part["nats"]), size=(1000, len(part["nats"])))
    return np.array(part["nats"])[chosen].sum(1) / np.array(part["tokens"])[chosen].sum(1)


def figures(name: str, part: dict[str, Any]) -> dict[str, Any]:
    texts = part["texts"]
    row: dict[str, Any] = {"texts": len(texts)}
    if texts:
        row["accepted"] = sum(re.fullmatch(PATTERNS[name], t) is not None for t in texts) / len(texts)
        row["distinct"] = len(set(texts)) / len(texts)
        row["nats_per_token"] = sum(part["nats"]) / sum(part["tokens"])
        row["tokens"] = sum(part["tokens"]) / len(texts)
    if len(texts) >= LEAST:
        row["interval"] = np.percentile(resampled(part, 0), [2.5, 97.5]).tolist()
    return row | {key: part[key] for key in ("share",) if key in part}


def beside(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """How far above the nats per token of `other` those of `one` are, by pattern and as their mean."""
    names = [name for name in PATTERNS if len(other[name]["texts"]) >= LEAST]
    ratio = {
        name: sum(one[name]["nats"]) / sum(one[name]["tokens"]) * sum(other[name]["tokens"]) / sum(other[name]["nats"])
        for name in names
    }
    again = {name: resampled(one[name], 1) / resampled(other[name], 2) for name in names}
    rows = {name: {"above": ratio[name] - 1, "interval": _range(again[name] - 1)} for name in names}
    mean = float(np.mean(list(ratio.values()))) - 1
    together = np.mean([again[name] for name in names], axis=0) - 1
    return rows | {"mean": {"above": mean, "interval": _range(together)}}


def row_of(one: dict[str, Any], masking: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {key: one[key] for key in ("order", "per_step", "drawn") if key in one}
    for method in ("constrained", "rejection", "masking"):
        if method in one:
            row[method] = {name: figures(name, one[method][name]) for name in PATTERNS}
            row[f"{method}, examples"] = {name: one[method][name]["texts"][:4] for name in PATTERNS}
    if "rejection" in one:
        row["constrained beside rejection"] = beside(one["constrained"], one["rejection"])
    return row | {"constrained beside masking": beside(one["constrained"], masking)}


def _range(values: np.ndarray) -> list[float]:
    return [float(value) for value in np.percentile(values, [2.5, 97.5])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--num-texts", type=int, default=64)
    parser.add_argument("--most-draws", type=int, default=512)
    parser.add_argument("--num-corruptions", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--orders", nargs="+", help="these alone, left_to_right among them; other rows stay")
    parser.add_argument("--output", default="benchmarks/results/constraints.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    how = {"num_texts": args.num_texts, "most_draws": args.most_draws, "num_corruptions": args.num_corruptions}
    seeds = {"constrained, masking": "number of the text, by batches", "rejection": "1000000 + number of the text"}
    settings = how | {"model": "builtin:tatoeba-masked", "patterns": PATTERNS, "jobs": args.jobs, "batch": BATCH}
    about, rows = environment("transformers") | {"settings": settings | {"seeds": seeds}}, []
    chosen = [setting for setting in SETTINGS if args.orders is None or setting[0] in args.orders]
    if args.orders is not None:
        before = json.loads(Path(args.output).read_text())
        rows = [row for row in before["rows"] if row["order"] not in args.orders]
        about["earlier rows"] = before["commit"]
    with get_context("spawn").Pool(args.jobs) as pool:
        masking: dict[str, Any] = {}
        for one in pool.imap(task, [(*setting, how) for setting in chosen]):
            masking = one.get("masking", masking)
            rows.append(row_of(one, masking))
            save(args.output, about | {"rows": rows})


if __name__ == "__main__":
    main()
