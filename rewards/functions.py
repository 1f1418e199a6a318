"""Rewards made of functions of strings, in the ways in which people have them."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from redge_guidance.chats import Prompt, as_messages, key_of
from redge_guidance.finished import to_judge
from redge_guidance.records import columns_of
from redge_guidance.reward import Reward
from redge_guidance.rewards.black_box import BlackBoxReward, numbers_of
from redge_guidance.sample import Sample
from redge_guidance.signatures import Arranged, parameters_of

_TOLD = ("prompts", "completions", "completion_ids")
_LOGS = ("log_extra", "log_metric")


def of_strings(
    function: Arranged, batched: bool, takes_prompt: bool, answer_only: bool | None, name: str
) -> BlackBoxReward:
    """The reward of a function of strings; its settings are those of `BlackBoxReward`."""
    reward = BlackBoxReward(function, batched=batched, takes_prompt=takes_prompt, answer_only=answer_only, name=name)
    reward.modality = "text"
    return reward


class CompletionsReward(Reward):
    """`r(x) = f(prompts=[...], completions=[...], **columns)[x]`: a reward function as TRL's trainers take them.

    It is called by keywords, with a batch: the completions are the answers without the prompt, strings, or, where the
    prompt is a conversation, lists with the assistant's message, `[{"role": "assistant", "content": ...}]`. Further
    parameters are the fields of the records, as a block of `redge_guidance.records.columns` says them; a function that
    takes any keyword is told all of them. What a trainer alone has is a stand-in where a function cannot do without:
    `trainer_state` is that before the first step, `log_extra` and `log_metric` do nothing. None in what it returns, for
    what the function is not about, is worth 0. There is no gradient, as in `BlackBoxReward`; samples that are equal in
    all of this are judged once.

    Args:
        function: returns a number, or None, for each completion: a list, an array or a tensor.
        tokenizer: for a function of `completion_ids`, the answers' tokens without special ones; None: that of the
            generator, once it was guided.
        name: in the trace of a sum; None: the function's.

    Raises:
        ValueError: a function that is not callable, or has no parameter for completions. When called: fields that are
            not known, no prompts for a function that takes them, what is no finite number, or not as many.
        RuntimeError: when called, with what it was told, where the function raises.

    >>> def short(completions, **kwargs): return [-len(text) for text in completions]
    >>> CompletionsReward(short).score(["a", "abc"], ["", ""])
    tensor([-1., -3.])
    """

    differentiable = False
    modality = "text"
    answer_only = True

    def __init__(self, function: Callable[..., Any], *, tokenizer: Any = None, name: str | None = None):
        if not callable(function):
            raise ValueError(f"`function` must be callable, got {type(function).__name__}.")
        self.function, self._tokenizer, self._said = function, tokenizer, tokenizer is not None
        self._name = str(name or getattr(function, "__name__", type(function).__name__))
        parameters, self._takes_all = parameters_of(function)
        self._takes = {one.name for one in parameters}
        self._required = [one.name for one in parameters if one.default is one.empty]
        if not self._takes & {"completions", "completion_ids"} and not self._takes_all:
            raise ValueError(f"`function` {self._name} must have a parameter `completions`, got {sorted(self._takes)}.")

    @property
    def name(self) -> str:
        return self._name

    def __call__(self, sample: Sample) -> Tensor:
        if not self._said:
            self._tokenizer = getattr(sample, "tokenizer", self._tokenizer)
        answers = sample.finished(self.answer_only)
        return self.score(answers, sample.prompts, max(len(answers), 1)).to(sample.weights)

    def score(self, samples: Any, prompts: Sequence[Prompt] | None = None, batch_size: int = 32) -> Tensor:
        samples, prompts, batch_size = to_judge(samples, prompts, batch_size)
        if prompts is None and "prompts" in self._required:
            raise ValueError(
                f"`{self.name}` takes prompts, and there are none; let `score` or the pipeline know the `prompts`."
            )
        fields = columns_of(len(samples))
        if "completion_ids" in self._required and self._tokenizer is None and "completion_ids" not in fields:
            raise ValueError(
                f"`{self.name}` takes `completion_ids`, and no tokenizer is known before it has guided one; pass "
                "`CompletionsReward(function, tokenizer=...)`."
            )
        known = {*fields, *_TOLD, *_LOGS, "trainer_state"}
        unknown = [name for name in self._required if name not in known]
        if unknown:
            raise ValueError(
                f"`{self.name}` takes `{unknown[0]}`, which is not known of the prompts; call the pipeline and `score` "
                f"in a block of `redge_guidance.records.columns({unknown[0]}=[...])`, or give it a default."
            )
        fields = {name: values for name, values in fields.items() if self._takes_all or name in self._takes}
        keys: list[Hashable] = []
        for k, sample in enumerate(samples):
            prompt = None if prompts is None else key_of(prompts[k])
            keys.append((sample, prompt, *(repr(values[k]) for values in fields.values())))
        first = {key: k for k, key in reversed(list(enumerate(keys)))}
        rows = sorted(first.values())
        values: dict[Hashable, float] = {}
        for begin in range(0, len(rows), batch_size):
            part = rows[begin : begin + batch_size]
            few = {name: [column[k] for k in part] for name, column in fields.items()}
            few_prompts = None if prompts is None else [prompts[k] for k in part]
            found = self._ask([samples[k] for k in part], few_prompts, few)
            values |= zip((keys[k] for k in part), found, strict=True)
        return torch.tensor([values[key] for key in keys])

    def _ask(self, answers: list[str], prompts: list[Prompt] | None, fields: Mapping[str, list[Any]]) -> list[float]:
        chat = prompts is not None and not all(isinstance(prompt, str) for prompt in prompts)
        told: dict[str, Any] = self._of_a_trainer(answers) | dict(fields)
        if self._takes_all or "completions" in self._takes:
            told["completions"] = (
                [[{"role": "assistant", "content": answer}] for answer in answers] if chat else list(answers)
            )
        if prompts is not None and (self._takes_all or "prompts" in self._takes):
            told["prompts"] = [as_messages(prompt) for prompt in prompts] if chat else list(prompts)
        shown = f"{len(answers)} completions, the first {answers[0]!r}"
        try:
            result = self.function(**told)
        except Exception as error:
            raise RuntimeError(f"`{self.name}` raised {type(error).__name__}: {error}; on {shown}.") from error
        return numbers_of(result, answers, self.name, missing=0.0)

    def _of_a_trainer(self, answers: list[str]) -> dict[str, Any]:
        """What TRL's trainers pass beside the records, as far as the function asks for it."""
        told: dict[str, Any] = {name: _nothing for name in _LOGS if name in self._required}
        if "trainer_state" in self._required:
            from transformers import TrainerState  # which imports much

            told["trainer_state"] = TrainerState()
        if "completion_ids" in self._takes and self._tokenizer is not None:
            told["completion_ids"] = [self._tokenizer(one, add_special_tokens=False).input_ids for one in answers]
        return told


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Where nobody logs."""
