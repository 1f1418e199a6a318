"""The options of the command, made from the table of settings; nothing heavy is imported to answer `--help`."""

import argparse
import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, NoReturn

from redge_guidance.cli.terminal import rank, say
from redge_guidance.setups.documents import read_value
from redge_guidance.setups.option import Group, Option
from redge_guidance.setups.schema import MOST, OPTIONS
from redge_guidance.version import __version__

_TITLES: dict[Group, str] = {
    "model": "model",
    "reward": "what to steer toward",
    "constraint": "what form texts have, always (unless --soft); all that is asked for together",
    "guidance": "guidance (the fields of GuidanceConfig)",
    "call": "sampler (the arguments of the pipeline's call)",
    "run": "run",
    "report": "report",
}
_METAVARS = {"text": "NAME", "label": "LABEL", "integer": "N", "number": "X", "numbers": "X", "texts": "TEXT"}
_METAVARS |= {"rewards": "REWARD", "constraints": "CONSTRAINT"}


class Parser(argparse.ArgumentParser):
    """Whose errors are one line, and whose help arrives or is an error."""

    def print_help(self, file: Any = None) -> None:
        if file is None:
            say(self.format_help().rstrip("\n"))  # argparse itself passes over what cannot be written
        else:
            super().print_help(file)

    def error(self, message: str) -> NoReturn:
        unknown = re.fullmatch(r"unrecognized arguments: (--[\w-]+).*", message, re.DOTALL)
        near = get_close_matches(unknown[1], list(self._option_string_actions), 1) if unknown else []
        message += f"; did you mean {near[0]}?" if near else ""
        self.exit(2, None if rank() else f"{self.prog}: error: {' '.join(message.split())}\n")


def build_parser() -> Parser:
    """The parser; what was not given is not in its namespace."""
    parser = Parser(prog="redge-guidance", description="Steer discrete diffusion models with a differentiable reward.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    generate = commands.add_parser(
        "generate",
        help="write texts, or draw images, under a reward",
        description="Write texts with a diffusion language model, or draw images with a masked image model, steered "
        "toward a label of a classifier or any ready-made reward, and texts of a form: a regular expression, a JSON "
        "Schema, words, a length. Without options: texts of the embedded model, toward a positive sentiment.",
        epilog="A value with a name and settings is YAML: --estimator 'redge: {num_steps: 8}'. All options but "
        "--config and --save-config are settings of a file for --config, by the same names with _ for -. Exit codes: "
        "0; 2 bad input, or a file that cannot be read or written; 3 some prompts failed, the "
        "rest is done; 1 a fault of the program; 130 Ctrl-C; 143 SIGTERM; "
        "141 nobody reads standard output.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    files = generate.add_argument_group("settings in a file")
    files.add_argument("--config", metavar="FILE", help="YAML with settings; options given beside it win")
    files.add_argument("--save-config", metavar="FILE", help="write the settings of this run as such a file")
    for group, title in _TITLES.items():
        section = generate.add_argument_group(title)
        for option in OPTIONS.values():
            if option.group == group:
                _add(section, option)
    _add_evaluate(commands)
    return parser


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="compare ways to draw under a reward: by a judge, likelihood, time and memory",
        description="Draw samples of tasks by several methods, at several seeds, judge them by what nothing optimised, "
        "and print a table. What is measured goes into the file of --output as it comes; the same command goes on "
        "where it was stopped.",
        epilog="A task is an embedded one, or a file in YAML: the settings of `generate --config` and, as `gold`, the "
        "rewards that judge. A method has its settings in brackets, in YAML: 'guided[scale: 2, estimator: redge]', "
        "'fk-8[temperature: 0.5]'. Groups of methods: main, estimators, strengths. Exit codes as of `generate`.",
        allow_abbrev=False,
    )
    evaluate.add_argument("task", nargs="*", metavar="TASK", help="tasks, `all` for the embedded ones")
    evaluate.add_argument("--list", action="store_true", help="say which tasks and methods there are, and end")
    evaluate.add_argument("--methods", nargs="+", default=["main"], metavar="METHOD", help="(default: main)")
    evaluate.add_argument("--samples", type=_whole, default=32, metavar="N", help="of a method and seed (default: 32)")
    evaluate.add_argument("--seeds", type=_whole, nargs="+", default=[0], metavar="N", help="(default: 0)")
    evaluate.add_argument("--batch-size", type=_whole, default=64, metavar="N", help="(default: 64)")
    evaluate.add_argument(
        "--num-inference-steps", type=_whole, metavar="N", help="of the sampler (default: as the task has it)"
    )
    evaluate.add_argument("--threads", type=_whole, metavar="N", help="processors in use (default: as torch has it)")
    evaluate.add_argument("--output", metavar="FILE", help="JSON lines, to go on with")
    evaluate.add_argument("--table", metavar="FILE", help="the table, in Markdown")
    evaluate.add_argument("--plot", metavar="FILE", help="a picture: the judge against time, and against likelihood")


def _add(section: Any, option: Option) -> None:
    told = option.help.replace("%", "%%") + (f" (default: {option.default})" if option.default else "")
    names = (option.flag, *option.short)
    if option.kind == "flag":
        section.add_argument(*names, action=argparse.BooleanOptionalAction, help=told)
        return
    more: dict[str, Any] = {"help": told, "dest": option.name}
    if option.choices:
        more["choices"] = option.choices
    if option.metavar is not None or not option.choices:
        more["metavar"] = option.metavar or _METAVARS.get(option.kind, "VALUE")
    if option.several:
        more |= {"action": "extend", "nargs": "+"}
    elif option.kind in ("texts", "rewards", "constraints"):
        more["action"] = "append"
    read = _reader(option)
    if read is not None:
        more["type"] = read
    section.add_argument(*names, **more)


def _reader(option: Option) -> Callable[[str], Any] | None:
    """What makes a value of the text of an option; None: it is the text."""
    readers: dict[str, Callable[[str], Any]] = {"number": _number, "numbers": _numbers, "integers": _integers}
    readers |= {"value": _value(option), "integer": _counted(option)}
    read = readers.get(option.kind)
    if read is None or not option.optional:
        return read
    known: Callable[[str], Any] = read
    return lambda text: None if text.lower() in ("none", "null") else known(text)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be an integer, got {text[:40]!r}") from error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number, got {text[:40]!r}") from error


def _counted(option: Option) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = _whole(text)
        if option.name == "seed":
            if not -(2**63) <= value < 2**64:
                raise argparse.ArgumentTypeError(
                    f"must be an integer from -2**63 to 2**64 - 1, as torch.Generator.manual_seed takes it, got "
                    f"{text[:40]}"
                )
        elif option.lowest is not None and not option.lowest <= value <= MOST:
            limit = f">= {option.lowest}" if value < option.lowest else f"<= {MOST}"
            raise argparse.ArgumentTypeError(f"must be {limit}, got {text[:40]}")
        elif not -(2**63) <= value < 2**63:
            raise argparse.ArgumentTypeError(f"must be an integer of 64 bits, got {text[:40]}")
        return value

    return read


def _list(text: str, one: Callable[[str], Any]) -> list[Any]:
    return [one(part.strip()) for part in text.strip().removeprefix("[").removesuffix("]").split(",") if part.strip()]


def _numbers(text: str) -> float | list[float]:
    return _list(text, _number) if "," in text or "[" in text else _number(text)


def _integers(text: str) -> list[int]:
    return _list(text, _whole)


def _value(option: Option) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return read_value(text, option.flag)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}") from error

    return read
