"""What a run gives back for every sample."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from redge_guidance.generation.requests import Prompt, Request

Key = tuple[int, int]  # place of an entry in the input, number of the sample

_DIGITS = 5  # of figures in files: what the last bits of a sum depend on, the batch, is left out
_OWN = ("index", "sample", "prompt", "text", "answer", "file_name", "reward", "rewards", "reached", "nats")
OWN_FIELDS = frozenset((*_OWN, "accepted", "kl", "strength", "target_reached", "seed", "error", "image"))


@dataclass(frozen=True)
class Record:
    """One finished sample.

    Attributes:
        index: place of its entry in the input, from 0.
        sample: number among the samples of its entry, from 0.
        prompt: as in the input: a text, a list of messages, or the class of an image.
        fields: what else the entry had.
        text: the whole text; None for images and where something failed.
        answer: the text without its prompt; None for images.
        image: a PIL image; None for texts.
        reward: what guidance was to raise, of the finished sample: the weighted sum of `rewards`; None without one.
        rewards: the terms by name, without their weights; a term that cannot judge finished samples is None.
        reached: whether the sample is as the rewards want it; None where there is no yes or no to it.
        accepted: whether the sample is as a constraint wants it, judged by its text alone; None without a constraint,
            and where the text does not tell: of lengths in tokens, and of a whole text whose prompt the pipeline
            leaves out.
        nats: the model's own upper bound on `-log p(text)` of the whole text, in a chat on `-log p(answer | prompt)`;
            None where it has none.
        strength: nats a unit of reward was worth, mean over the steps in which it was asked; 0: none was followed by
            its gradient.
        target_reached: whether the finished sample reaches the target, by the terms that have one: all but those that
            are automata; None without a target.
        kl: KL(q || p), nats per free token, mean over the guided steps; None where no step was guided.
        seed: of the generator that drew it.
        seconds: its share of the time that its batch took.
        error: why there is no sample; None: there is one.
        place: what people call its entry, such as `"line 3"` of a file.
    """

    index: int
    sample: int
    prompt: Prompt
    fields: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None
    answer: str | None = None
    image: Any = None
    reward: float | None = None
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    reached: bool | None = None
    accepted: bool | None = None
    nats: float | None = None
    strength: float = 0.0
    target_reached: bool | None = None
    kl: float | None = None
    seed: int = 0
    seconds: float = 0.0
    error: str | None = None
    place: str = ""

    @classmethod
    def failed(cls, request: Request, error: str) -> "Record":
        line = request.line
        return cls(
            line.number, request.sample, line.prompt, line.fields, seed=request.seed, error=error, place=line.place
        )

    @property
    def key(self) -> Key:
        return self.index, self.sample

    def to_dict(self) -> dict[str, Any]:
        """What a line of a file holds: plain values, the input's own fields first, figures of five digits, no times.

        A field of the input that is called as one of these, or `image`, is written with `input_` in front, and
        `file_name` in its name, by which `datasets` would look for a file, as `filename`.
        """
        given = {_renamed(name, self.fields): value for name, value in self.fields.items()}
        found = {"index": self.index, "sample": self.sample, **given, "prompt": self.prompt}
        if self.text is not None:
            found |= {"text": self.text, "answer": self.answer}
        if self.rewards:
            found |= {"reward": _short(self.reward), "rewards": {k: _short(v) for k, v in self.rewards.items()}}
        optional = {
            "reached": self.reached,
            "accepted": self.accepted,
            "nats": _short(self.nats),
            "kl": _short(self.kl),
            "target_reached": self.target_reached,
        }
        found |= {name: value for name, value in optional.items() if value is not None}
        return found | {"strength": _short(self.strength), "seed": self.seed}


def _renamed(name: str, fields: Mapping[str, Any]) -> str:
    found = str(name)
    if found in OWN_FIELDS or found.endswith(("file_name", "file_names")):
        found = f"input_{found.replace('file_name', 'filename')}"
        while found in fields:
            found = f"input_{found}"
    return found


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")
