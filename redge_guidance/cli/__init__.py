"""The `redge-guidance` command."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from redge_guidance.cli import images, texts
from redge_guidance.cli.texts import LENGTH, WORD
from redge_guidance.config import GuidanceConfig
from redge_guidance.version import __version__

_DEFAULT_MODEL = "builtin:tatoeba-masked"
_TEXT_ONLY = ("want", "ban", "min_words", "max_words", "tokenizer", "family", "mask_token_id")
_IMAGE_ONLY = ("out", "class_label")


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
        message = " ".join(str(error).split()).replace("`trust_remote_code=True`", "`--trust-remote-code`")
        print(f"{parser.prog}: error: {message}", file=sys.stderr)
        return 2
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="redge-guidance", description="Steer discrete diffusion models with a differentiable reward.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    generate = commands.add_parser(
        "generate",
        help="write texts, or draw images, under a reward",
        description="Write texts with a diffusion language model, steered toward a label of a text classifier, toward "
        "or away from words, toward a length, or several of these; or draw images with a masked image model, steered "
        "toward a class of an image classifier or, by a CLIP model, toward a text.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for add in (_add_models, _add_goals, _add_samples, _add_guidance, _add_outputs):
        add(generate)
    return parser


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=_DEFAULT_MODEL, help="embedded checkpoint, folder, or hub id")
    parser.add_argument("--tokenizer", metavar="NAME", help="folder or hub id, for a model that comes without one")
    parser.add_argument("--family", metavar="NAME", help="how the model is called, where its config does not say it")
    parser.add_argument(
        "--mask-token-id", type=int, metavar="N", help="the mask, where config and tokenizer do not say it"
    )
    parser.add_argument(
        "--reward", help="classifier of texts or images, or CLIP model, named like --model; not given: an embedded one"
    )
    parser.add_argument("--device", default="cpu", help="such as cpu or cuda:0")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of the models")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with a checkpoint")


def _add_goals(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--label", help="label of the classifier to steer toward, by name or index")
    parser.add_argument(
        "--reward-temperature",
        type=float,
        metavar="T",
        help="divides the classifier's logits: the larger, the less the reward cares how sure the classifier is; "
        f"not given: 1 for texts, {images.TEMPERATURE:g} for images",
    )
    parser.add_argument("--want", action="append", metavar="TEXT", help="word or phrase to use; may be repeated")
    parser.add_argument("--ban", action="append", metavar="TEXT", help="word or phrase to avoid; may be repeated")
    parser.add_argument("--min-words", type=_positive, metavar="N", help="write no less than N words")
    parser.add_argument("--max-words", type=_positive, metavar="N", help="write no more than N words")


def _add_samples(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompt",
        action="append",
        help="text to continue, or to fill in where it says [MASK], or what images are to show; may be repeated",
    )
    parser.add_argument("--class-label", type=int, metavar="N", help="class that a class-conditional model is given")
    parser.add_argument(
        "--samples-per-prompt", type=_positive, default=8, metavar="N", help="texts or images for every prompt"
    )
    parser.add_argument(
        "--num-inference-steps",
        type=_positive,
        metavar="N",
        help="denoising steps; not given: what the pipeline says",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampler and of guidance")


def _add_guidance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scale",
        type=float,
        help="strength of guidance in nats a unit of reward, 0 is off; a word wanted or banned is "
        f"{WORD:g} units, each word too few or too many {LENGTH:g}; not given: 2 for texts, "
        f"{images.CLASSIFIER_SCALE:g} for a classifier of images, {images.CLIP_SCALE:g} for CLIP",
    )
    parser.add_argument(
        "--estimator",
        help="straight_through, redge, redge_cov, reindge, reinmax, gumbel_softmax, entropy_mix, soft or reinforce_loo",
    )
    parser.add_argument("--update", help="natural or adam")


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="image file for a contact sheet, unguided above guided images; the trace of guidance goes to a file "
        "beside it (implies --baseline)",
    )
    parser.add_argument("--json", metavar="FILE", help="also write one JSON object a sample to FILE")
    parser.add_argument("--baseline", action="store_true", help="also run without guidance, and compare")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, got {value}")
    return value


def _generate(args: argparse.Namespace) -> None:
    for name in ("json", "out"):
        _check_target(name, getattr(args, name))
    if args.max_words is not None and (args.min_words or 0) > args.max_words:
        raise ValueError(f"`--min-words` must be <= `--max-words`, got {args.min_words} and {args.max_words}.")
    makes_images = images.makes_images(args.model)
    named = {name: getattr(args, name) for name in ("scale", "estimator", "update")}
    config = GuidanceConfig(**{name: value for name, value in named.items() if value is not None})
    for name in _TEXT_ONLY if makes_images else _IMAGE_ONLY:
        if getattr(args, name) is not None:
            found = "images" if makes_images else "texts"
            raise ValueError(f"`--{name.replace('_', '-')}` cannot be used with {args.model}, which makes {found}.")
    (images if makes_images else texts).generate(args, config)


def _check_target(option: str, name: str | None) -> None:
    if name is None:
        return
    target = Path(name)
    if not target.parent.is_dir():
        raise ValueError(f"`--{option}` must name a file in an existing folder, got {name}; create {target.parent}.")
    if target.is_dir():
        raise ValueError(f"`--{option}` must name a file, got the folder {name}.")
