"""What one setting is."""

from dataclasses import dataclass
from typing import Literal

Group = Literal["model", "reward", "constraint", "guidance", "call", "run", "report"]
Kind = Literal[
    "text", "texts", "label", "integer", "number", "numbers", "integers", "flag", "rewards", "constraints", "value"
]


@dataclass(frozen=True)
class Option:
    """One setting.

    Attributes:
        name: in Python and in a file; on the command line `--the-name`.
        group: who takes it: the loading of the model, what makes the reward, what makes the constraint,
            `GuidanceConfig`, the call of the pipeline, the run over all prompts, or what is written and said about it.
        kind: what it holds. `label`: text or an integer; `numbers`, `integers`: one or a list; `value`: any plain data.
        help: for a reader.
        lowest: of an integer.
        choices: what a text may be.
        optional: whether it may be none, too.
        default: in words, for a reader.
        metavar: on the command line.
        short: other names on the command line.
        several: whether one option on the command line takes several texts.
    """

    name: str
    group: Group
    kind: Kind
    help: str
    lowest: int | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False
    default: str = ""
    metavar: str | None = None
    short: tuple[str, ...] = ()
    several: bool = False

    @property
    def flag(self) -> str:
        """As on the command line."""
        return "--" + self.name.replace("_", "-")
