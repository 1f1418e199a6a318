"""Requests of lm-evaluation-harness: how a text is drawn, and which go together."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from redge_guidance.harness.options import SAMPLING, Options, plain_name, plain_value
from redge_guidance.positions import longest

_DEFAULT_LENGTH = 256  # the harness's own
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_OF_HARNESS = ("until", "do_sample", "temperature", "top_k", "top_p", *_LENGTHS)


@dataclass(frozen=True)
class Sampling:
    """How a text is drawn.

    Attributes:
        call: arguments of the pipeline, without prompts and generator; `gen_length` is always among them.
        until: strings that a text is cut at.
        ignored: names of what was asked for, and is none of the pipeline's settings.
    """

    call: dict[str, Any]
    until: tuple[str, ...]
    ignored: tuple[str, ...] = ()


def sampling_of(asked: Mapping[str, Any], options: Options, pipe: Any) -> Sampling:
    """From what a task, or `--gen_kwargs`, asks for, and the options of the model, which go before the task's.

    Under our own names, and LLaDA's (`steps`, `cfg_scale`), what is asked for goes before the options. Greedy unless
    `do_sample` or a temperature says otherwise, as for the harness's other models.
    """
    ours = {name: value for name, value in asked.items() if name not in _OF_HARNESS and value is not None}
    most = options.max_length or longest(pipe.model) or 2 * _DEFAULT_LENGTH
    limit = max(1, min(_DEFAULT_LENGTH, most // 2))
    theirs: Any = normalize_gen_kwargs({name: value for name, value in asked.items() if name not in ours}, limit)
    temperature = theirs.get("temperature", 1.0) if theirs["do_sample"] else 0.0
    call = {"gen_length": theirs["max_gen_toks"], "temperature": temperature}
    call |= {name: theirs[name] for name in ("top_k", "top_p") if temperature and theirs.get(name)}
    call |= options.given(SAMPLING)
    known = _settings(pipe)
    call |= {plain_name(name): plain_value(name, value) for name, value in ours.items() if plain_name(name) in known}
    ignored = tuple(name for name in ours if plain_name(name) not in known)
    until = () if options.escape_until else tuple(one for one in theirs["until"] if one)
    return Sampling(call, until, ignored)


def check_call(pipe: Any, call: Mapping[str, Any]) -> None:
    """A ValueError for a setting that a call of the pipeline does not have."""
    for name in call:
        if name not in _settings(pipe):
            raise ValueError(f"`{name}` is no setting of a call of {type(pipe).__name__}; leave it out.")


def _settings(pipe: Any) -> set[str]:
    return set(inspect.signature(type(pipe).__call__).parameters) - {"self", "prompt", "generator", "return_dict"}


def batches(
    kinds: Sequence[str], sizes: Sequence[int], batch_size: int, work: Callable[[Sequence[int]], None], shown: bool
) -> None:
    """Call `work` with the numbers of requests, of one kind and of like sizes, `batch_size` at a time.

    Where memory does not suffice the batch is halved, for all that follow, which is a warning.

    Raises:
        torch.OutOfMemoryError: for one request alone.
    """
    order = sorted(range(len(kinds)), key=lambda k: (kinds[k], -sizes[k], k))
    with tqdm(total=len(order), disable=not shown, desc="redge") as bar:
        first = 0
        while first < len(order):
            rows = [k for k in order[first : first + batch_size] if kinds[k] == kinds[order[first]]]
            try:
                work(rows)
            except torch.OutOfMemoryError:
                if len(rows) == 1:
                    raise
                batch_size = (len(rows) + 1) // 2
                warnings.warn(f"out of memory; the batch size is {batch_size} from now on.", stacklevel=2)
                continue
            first += len(rows)
            bar.update(len(rows))
