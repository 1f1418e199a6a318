"""What the loops of all pipelines share: checks of the settings, randomness by row, the callback after a step."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TopKLogitsWarper, TopPLogitsWarper

Callback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any] | None]
Generators = torch.Generator | Sequence[torch.Generator] | None


def check_settings(
    temperature: float | Sequence[float],
    top_p: float | None,
    counts: dict[str, int | None],
    guidance_scale: float = 1.0,
) -> None:
    """A ValueError if one of these, `counts` by name, is out of range; None is in range."""
    if not math.isfinite(guidance_scale):
        raise ValueError(f"`guidance_scale` must be finite, got {guidance_scale}.")
    for one in temperature if isinstance(temperature, Sequence) else [temperature]:
        if not 0 <= one < float("inf"):
            raise ValueError(f"`temperature` must be >= 0, got {one}; 0 is greedy.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"`top_p` must lie in (0, 1], got {top_p}.")
    for name, value in counts.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"`{name}` must be {'>= 1' if isinstance(value, int) else 'a whole number'}, got {value}.")


def check_token_ids(name: str, ids: Sequence[int], vocabulary: int) -> None:
    """A ValueError if one of `ids` is no id below `vocabulary`."""
    wrong = [i for i in ids if not isinstance(i, int) or not 0 <= i < vocabulary]
    if wrong:
        raise ValueError(f"`{name}` must be token ids below {vocabulary}, got {wrong[0]!r}.")


def forbid(logits: Tensor, suppress_tokens: Sequence[int], reserved: Sequence[int]) -> Tensor:
    """Logits `(..., vocabulary)`, -inf at these ids; a ValueError if there are no such ids, or none is left."""
    vocabulary = logits.shape[-1]
    check_token_ids("suppress_tokens", suppress_tokens, vocabulary)
    suppressed = sorted({*suppress_tokens, *reserved})
    if len(suppressed) >= vocabulary:
        raise ValueError(f"`suppress_tokens` must leave a token, got all {vocabulary}.")
    return logits.index_fill(-1, torch.tensor(suppressed, dtype=torch.long, device=logits.device), -torch.inf)


def check_generators(generator: Generators, batch: int) -> None:
    """A ValueError if `generator` is a list, and not one of a different torch.Generator for each of `batch` samples."""
    if generator is None or isinstance(generator, torch.Generator):
        return
    if not isinstance(generator, list | tuple):
        raise ValueError(f"`generator` must be a torch.Generator or a list of them, got {type(generator).__name__}.")
    wrong = [type(one).__name__ for one in generator if not isinstance(one, torch.Generator)]
    if wrong:
        raise ValueError(f"`generator` must be a list of torch.Generator objects, got one {wrong[0]}.")
    if len(generator) != batch:
        raise ValueError(f"`generator` must be one, or one for each of {batch} samples, got {len(generator)}.")
    if len({id(one) for one in generator}) < batch:
        raise ValueError("`generator` must be different generators, got one of them twice; make one for each sample.")


def uniform(free: Tensor, generator: Generators) -> Tensor:
    """Numbers in [0, 1) at every position, `(batch, length)` float32.

    With a generator for every row they are drawn where the row is `free` alone, 0 elsewhere: what a row draws then
    depends neither on its padding nor on the other rows.
    """
    if generator is None or isinstance(generator, torch.Generator):
        device = free.device if generator is None else generator.device
        return torch.rand(free.shape, generator=generator, device=device).to(free.device)
    counts = free.sum(-1).tolist()
    drawn = [torch.rand(n, generator=g, device=g.device) for n, g in zip(counts, generator, strict=True)]
    return _placed(drawn, free)


def random_tokens(free: Tensor, vocabulary: int, generator: Generators) -> Tensor:
    """Tokens drawn uniformly below `vocabulary`, `(batch, length)` int64; by row as in `uniform`."""
    if generator is None or isinstance(generator, torch.Generator):
        device = free.device if generator is None else generator.device
        return torch.randint(vocabulary, free.shape, generator=generator, device=device).to(free.device)
    counts = free.sum(-1).tolist()
    drawn = [
        torch.randint(vocabulary, (n,), generator=g, device=g.device) for n, g in zip(counts, generator, strict=True)
    ]
    return _placed(drawn, free)


def multinomial(probs: Tensor, row: Tensor, generator: Generators) -> Tensor:
    """`(n,)` int64, a category drawn from each of `probs` `(n, K)`; `row` `(n,)`, ascending, says whose draw it is."""
    if len(probs) == 0:
        return torch.empty(0, dtype=torch.long, device=probs.device)
    if generator is None or isinstance(generator, torch.Generator):
        source = probs if generator is None else probs.to(generator.device)
        return torch.multinomial(source, 1, generator=generator).to(probs.device)[:, 0]
    counts = torch.bincount(row, minlength=len(generator)).tolist()
    parts = [
        torch.multinomial(part.to(g.device), 1, generator=g).to(probs.device)[:, 0]
        for part, g in zip(probs.split(counts), generator, strict=True)
        if len(part)
    ]
    return torch.cat(parts)


def _placed(rows: list[Tensor], free: Tensor) -> Tensor:
    """What was drawn for each row, at its free positions."""
    numbers = torch.cat([row.to(free.device) for row in rows])
    return torch.zeros(free.shape, dtype=numbers.dtype, device=free.device).masked_scatter(free, numbers)


def logit_warpers(top_k: int | None, top_p: float | None) -> list[Any]:
    """What leaves only the k likeliest tokens, and the likeliest of total probability p, in logits."""
    warpers: list[Any] = []
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers


def kept_logits(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Logits `(n, vocabulary)` of the distribution that is drawn from, tempered and cut; of 0, only cut."""
    if temperature > 0:
        logits = logits / temperature
    for warper in logit_warpers(top_k, top_p) if len(logits) else ():
        logits = warper(None, logits)
    return logits


class AfterStep:
    """Calls a user's `callback_on_step_end`, if there is one, and gives back the sample to go on with.

    Args:
        pipe: handed to the callback; its `_callback_tensor_inputs` are the tensors that there are.
        callback: called as `callback(pipe, step, timestep, {name: tensor})`; may return a dict with a new `sample`.
        names: tensors that it is given; None: `["sample"]`.

    Raises:
        ValueError: a name of no tensor.
    """

    def __init__(self, pipe: Any, callback: Callback | None, names: Sequence[str] | None):
        self._pipe, self._callback, self._names = pipe, callback, list(names or ["sample"])
        unknown = set(self._names) - set(pipe._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be of {pipe._callback_tensor_inputs}, "
                f"got {sorted(unknown)}."
            )

    def __call__(self, step: int, timestep: Any, sample: Tensor, logits: Tensor) -> Tensor:
        if self._callback is None:
            return sample
        tensors = {"sample": sample, "logits": logits}
        result = self._callback(self._pipe, step, timestep, {name: tensors[name] for name in self._names}) or {}
        after: Tensor = result.get("sample", sample)
        return after
