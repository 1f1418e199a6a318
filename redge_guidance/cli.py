"""The `redge-guidance` command."""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

from redge_guidance.version import __version__

_DEFAULT_MODEL, _DEFAULT_REWARD = "builtin:tatoeba-masked", "builtin:sentiment"
_BATCH = 64
_WORD, _LENGTH = 15.0, 8.0  # units of reward, beside the classifier's nats


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code. Bad input is one line on stderr and code 2, Ctrl-C is code 130."""
    parser = _build_parser()
    args = parser.parse_args(argv)
    try:
        _generate(args)
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted, nothing was written", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        message = " ".join(str(error).split())
        print(f"{parser.prog}: error: {message}", file=sys.stderr)
        return 2
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="redge-guidance", description="Steer discrete diffusion models with a differentiable reward.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    generate = commands.add_parser(
        "generate",
        help="write texts under a reward",
        description="Write texts with a diffusion language model, steered toward a label of a text classifier, toward "
        "or away from words, toward a length, or several of these.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    generate.add_argument("--model", default=_DEFAULT_MODEL, help="embedded checkpoint, folder, or hub id")
    generate.add_argument("--reward", default=_DEFAULT_REWARD, help="text classifier, named like --model")
    generate.add_argument("--label", help="label of the classifier to steer toward, by name or index")
    generate.add_argument("--want", action="append", metavar="TEXT", help="word or phrase to use; may be repeated")
    generate.add_argument("--ban", action="append", metavar="TEXT", help="word or phrase to avoid; may be repeated")
    generate.add_argument("--min-words", type=_positive, metavar="N", help="write no less than N words")
    generate.add_argument("--max-words", type=_positive, metavar="N", help="write no more than N words")
    generate.add_argument(
        "--prompt", action="append", help="text to continue, or to fill in where it says [MASK]; may be repeated"
    )
    generate.add_argument("--num-samples", type=_positive, default=8, metavar="N", help="texts for every prompt")
    generate.add_argument(
        "--num-inference-steps",
        type=_positive,
        metavar="N",
        help="denoising steps; not given: what the pipeline says",
    )
    generate.add_argument(
        "--scale",
        type=float,
        help="strength of guidance in nats a unit of reward, 0 is off; a word wanted or banned is "
        f"{_WORD:g} units, each word too few or too many {_LENGTH:g}",
    )
    generate.add_argument(
        "--estimator",
        help="straight_through, redge, redge_cov, reindge, reinmax, gumbel_softmax, entropy_mix, soft or reinforce_loo",
    )
    generate.add_argument("--update", help="natural or adam")
    generate.add_argument("--seed", type=int, default=0, help="of the sampler and of guidance")
    generate.add_argument("--device", default="cpu", help="such as cpu or cuda:0")
    generate.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of the models"
    )
    generate.add_argument("--json", metavar="FILE", help="also write one JSON object a text to FILE")
    generate.add_argument("--baseline", action="store_true", help="also run without guidance, and compare")
    generate.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that comes with a checkpoint"
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, got {value}")
    return value


def _generate(args: argparse.Namespace) -> None:
    target = None if args.json is None else Path(args.json)
    if target is not None and not target.parent.is_dir():
        raise ValueError(f"`--json` must name a file in an existing folder, got {args.json}; create {target.parent}.")
    if target is not None and target.is_dir():
        raise ValueError(f"`--json` must name a file, got the folder {args.json}.")
    if args.max_words is not None and (args.min_words or 0) > args.max_words:
        raise ValueError(f"`--min-words` must be <= `--max-words`, got {args.min_words} and {args.max_words}.")

    from redge_guidance.config import GuidanceConfig
    from redge_guidance.handle import guide

    named = {name: getattr(args, name) for name in ("scale", "estimator", "update")}
    config = GuidanceConfig(**{name: value for name, value in named.items() if value is not None})
    pipe, goals = _load(args)
    reward = sum(weight * goal for weight, goal in goals)
    prompts = [text for text in args.prompt or [""] for _ in range(args.num_samples)]
    runs = []
    if args.baseline:
        runs.append(_run(pipe, reward, goals, prompts, args, scale=0.0))
    with guide(pipe, reward, config, seed=args.seed):
        runs.append(_run(pipe, reward, goals, prompts, args, scale=config.scale))
    if target is not None:
        settings = vars(args) | {"config": json.loads(config.to_json()), "version": __version__}
        for key in ("json", "prompt", "command"):
            settings.pop(key)
        with _replacing(target) as file:
            for run in runs:
                for record in run["records"]:
                    line = record | {"settings": settings | {"guided": run["scale"] > 0, "scale": run["scale"]}}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    _report(runs)


def _load(args: argparse.Namespace) -> tuple[Any, list[tuple[float, Any]]]:
    """The pipeline, and the rewards with their weights."""
    import diffusers
    import huggingface_hub
    import torch
    import transformers

    for library in (diffusers.utils.logging, transformers.utils.logging, huggingface_hub.utils.logging):
        library.set_verbosity_error()  # what matters comes back as an exception
    if not sys.stderr.isatty():
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
    from redge_guidance.pipelines import TextPipeline
    from redge_guidance.rewards import LengthReward, LexicalReward, SequenceClassifierReward

    try:
        device = torch.device(args.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`--device` must be a device of this machine, got {args.device!r}: {error}") from error
    dtype = getattr(torch, args.dtype)
    trust: dict[str, Any] = {"trust_remote_code": True} if args.trust_remote_code else {}
    goals: list[tuple[float, Any]] = []
    if args.want or args.ban:
        goals.append((_WORD, LexicalReward(args.want or (), args.ban or ())))
    if args.min_words or args.max_words:
        goals.append((_LENGTH, LengthReward(args.min_words or 0, args.max_words)))
    if args.label is not None or not goals:
        classifier = SequenceClassifierReward.from_pretrained(
            args.reward, label=args.label, device=device, dtype=dtype, **trust
        )
        goals.append((1.0, classifier))
    pipe = TextPipeline.from_pretrained(args.model, dtype=dtype, **trust).to(device)
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False)
    return pipe, goals


def _run(
    pipe: Any,
    reward: Any,
    goals: list[tuple[float, Any]],
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
    rewards, nlls = reward.score(texts).tolist(), pipe.nll(texts).tolist()
    records = [
        {"prompt": prompt, "text": text, "reward": r, "nll": nll}
        for prompt, text, r, nll in zip(prompts, texts, rewards, nlls, strict=True)
    ]
    tokens = sum(len(ids) + 1 for ids in pipe.tokenizer(texts, add_special_tokens=False).input_ids)  # with the end
    return {
        "scale": scale,
        "records": records,
        "reward": sum(rewards) / len(rewards),
        "hits": _hits([goal for _, goal in goals], texts),
        "nll": sum(nlls) / tokens,
        "distinct": len(set(texts)) / len(texts),
        "seconds": seconds,
    }


def _hits(goals: list[Any], texts: list[str]) -> str:
    """Share of texts that reach every goal there is a yes or no to."""
    reached = [_reached(goal, texts) for goal in goals]
    known = [found for found in reached if found is not None]
    if not known:
        return "-"
    return f"{sum(all(found) for found in zip(*known, strict=True)) / len(texts):.0%}"


def _reached(goal: Any, texts: list[str]) -> list[bool] | None:
    if hasattr(goal, "report"):
        return [not missed for missed in goal.report(texts).violations]
    if hasattr(goal, "lengths"):
        return [value == 0 for value in goal.score(texts).tolist()]
    if goal.model.config.num_labels == 1:
        return None
    return [found == goal.label_name for found in goal.predict(texts)]


def _report(runs: list[dict[str, Any]]) -> None:
    for run in runs:
        if len(runs) > 1:
            print("guided:" if run is runs[-1] else "unguided:")
        for record in run["records"]:
            print(("  " if len(runs) > 1 else "") + record["text"])
        if len(runs) > 1:
            print()
    if len(runs) == 1:
        return
    print(f"{'':10}{'reward':>9}{'on target':>12}{'nats/token':>12}{'distinct':>10}{'seconds':>9}")
    for run in runs:
        name = "guided" if run is runs[-1] else "unguided"
        print(
            f"{name:10}{run['reward']:9.2f}{run['hits']:>12}{run['nll']:12.2f}"
            f"{run['distinct']:>10.0%}{run['seconds']:9.1f}"
        )


@contextmanager
def _replacing(target: Path) -> Iterator[IO[str]]:
    """A text file that takes the place of `target` when the block ends, and leaves nothing behind if it fails."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            yield file
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


if __name__ == "__main__":
    sys.exit(main())
