"""The `redge-guidance` command."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from redge_guidance.cli import images, texts
from redge_guidance.cli.common import naming
from redge_guidance.cli.files import Target, check_targets, write_all
from redge_guidance.cli.terminal import (
    BAD_INPUT,
    FAULT,
    INTERRUPTED,
    READER_GONE,
    TERMINATED,
    ReaderGoneError,
    Terminated,
    complain,
    flush_output,
    say,
    terminable,
)
from redge_guidance.cli.texts import LENGTH, WORD
from redge_guidance.config import GuidanceConfig
from redge_guidance.randomness import check_seed
from redge_guidance.version import __version__

_DEFAULT_MODEL = "builtin:tatoeba-masked"
_TEXT_ONLY = ("want", "ban", "min_words", "max_words", "tokenizer", "family", "mask_token_id")
_IMAGE_ONLY = ("out", "class_label")
_TEXTS = ("prompt", "want", "ban", "label")
_MOST = 10**6  # of anything that is counted: more would fill the memory before it was refused


class _Parser(argparse.ArgumentParser):
    def print_help(self, file: Any = None) -> None:
        if file is None:
            say(self.format_help().rstrip("\n"))  # argparse itself passes over what cannot be written
        else:
            super().print_help(file)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code, and says on one line of standard error why it is not 0.

    2: bad input, or something that cannot be read or written. 130, 143: Ctrl-C and SIGTERM, as shells count them, and
    141, without a word: nobody reads standard output any more. 1: a fault of the command, see `python -X dev`.
    """
    parser = _build_parser()
    written: list[str] = []
    try:
        with terminable():
            try:
                args = parser.parse_args(argv)
            finally:
                flush_output()
            _generate(args, written)
        return 0
    except ReaderGoneError:
        return READER_GONE
    except (KeyboardInterrupt, Terminated) as stop:
        by_key = isinstance(stop, KeyboardInterrupt)
        done = f"after {' and '.join(written)} had been written" if written else "nothing was written"
        complain(parser.prog, f"{'interrupted' if by_key else 'terminated'}, {done}")
        return INTERRUPTED if by_key else TERMINATED
    except MemoryError as error:
        complain(parser.prog, f"error: out of memory; ask for fewer `--samples-per-prompt`, or shorter texts. {error}")
    except (ValueError, OSError, RuntimeError) as error:
        complain(parser.prog, f"error: {error}".replace("`trust_remote_code=True`", "`--trust-remote-code`"))
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        told = f"{type(error).__name__}: {error}"
        complain(parser.prog, f"fault: {told}; `python -X dev -m redge_guidance.cli` shows where, please report it")
        return FAULT
    return BAD_INPUT


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
        "--mask-token-id", type=_integer, metavar="N", help="the mask, where config and tokenizer do not say it"
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
    parser.add_argument(
        "--class-label", type=_integer, metavar="N", help="class that a class-conditional model is given"
    )
    parser.add_argument(
        "--samples-per-prompt", type=_positive, default=8, metavar="N", help="texts or images for every prompt"
    )
    parser.add_argument(
        "--num-inference-steps",
        type=_positive,
        metavar="N",
        help="denoising steps; not given: what the pipeline says",
    )
    parser.add_argument("--seed", type=_seed, default=0, help="of the sampler and of guidance")


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
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="also write one JSON object a sample to FILE, or, for -, to "
        "standard output, and the report to standard error",
    )
    parser.add_argument("--baseline", action="store_true", help="also run without guidance, and compare")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be an integer, got {text[:40]!r}") from error


def _integer(text: str) -> int:
    value = _whole(text)
    if not -(2**63) <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must be an integer of 64 bits, got {text[:40]}")
    return value


def _positive(text: str) -> int:
    value = _whole(text)
    if not 1 <= value <= _MOST:
        raise argparse.ArgumentTypeError(f"must be {'>= 1' if value < 1 else f'<= {_MOST}'}, got {text[:40]}")
    return value


def _seed(text: str) -> int:
    value = _whole(text)
    try:
        return check_seed(value, "--seed")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _generate(args: argparse.Namespace, written: list[str]) -> None:
    """Check what is asked for, make it, write it, say it; names of files that were written are added to `written`."""
    targets = _targets(args)
    _check_texts(args)
    if args.max_words is not None and (args.min_words or 0) > args.max_words:
        raise ValueError(f"`--min-words` must be <= `--max-words`, got {args.min_words} and {args.max_words}.")
    if args.reward_temperature is not None and not 0 < args.reward_temperature < float("inf"):
        raise ValueError(f"`--reward-temperature` must be a finite number > 0, got {args.reward_temperature}.")
    with naming("--model"):
        makes_images = images.makes_images(args.model)
    named = {name: getattr(args, name) for name in ("scale", "estimator", "update")}
    config = GuidanceConfig(**{name: value for name, value in named.items() if value is not None})
    for name in _TEXT_ONLY if makes_images else _IMAGE_ONLY:
        if getattr(args, name) is not None:
            found = "images" if makes_images else "texts"
            raise ValueError(f"`--{name.replace('_', '-')}` cannot be used with {args.model}, which makes {found}.")
    made = (images if makes_images else texts).generate(args, config)
    write_all([(targets[name], content) for name, content in made.files.items()])
    written += [targets[name].name for name in made.files]
    if args.json == "-":  # where records go, nothing else does
        print(made.report, file=sys.stderr)
    else:
        say(made.report)


def _targets(args: argparse.Namespace) -> dict[str, Target]:
    """What is to be written, by the name of its content."""
    names = {"json": ("--json", "/dev/stdout" if args.json == "-" else args.json), "out": ("--out", args.out)}
    if args.out is not None:
        names["trace"] = ("--out", images.trace_file(args.out))
    targets = {key: Target(option, name) for key, (option, name) in names.items() if name is not None}
    check_targets(list(targets.values()))
    return targets


def _check_texts(args: argparse.Namespace) -> None:
    """A ValueError for an option that is no text; UTF-8 is read as such where the locale says ASCII."""
    for option in (*_TEXTS, "reward", "model", "tokenizer"):
        value = getattr(args, option)
        if "\0" in ("".join(value) if isinstance(value, list) else value or ""):
            raise ValueError(f"`--{option}` must be text without NUL, got {value!r}.")
    for option in _TEXTS:
        value = getattr(args, option)
        if value is not None:
            told = [_as_text(option, text) for text in (value if isinstance(value, list) else [value])]
            setattr(args, option, told if isinstance(value, list) else told[0])


def _as_text(option: str, text: str) -> str:
    """Bytes of the command line that its encoding lacks arrive as lone surrogates."""
    if not any("\ud800" <= sign <= "\udfff" for sign in text):
        return text
    try:
        given: str | bytes = text.encode("utf-8", "surrogateescape")
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeEncodeError:
        given = ascii(text)  # not by way of the command line
    except UnicodeDecodeError:
        pass
    raise ValueError(f"`--{option}` must be text in UTF-8, got {given!r}.")
