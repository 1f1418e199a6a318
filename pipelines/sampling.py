"""What the loops of all pipelines share: checks of the settings, randomness by row, the callback after a step."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TopKLogitsWarper, TopPLogitsWarper

from redge_guidance.checks import as_real, as_whole, is_sequence, real_number

Callback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any] | None]
Generators = torch.Generator | Sequence[torch.Generator] | None


def plain_settings(temperature: Any, top_p: Any, counts: dict[str, Any], guidance_scale: Any = 1.0) -> tuple[Any, ...]:
    """`(temperature, top_p, guidance_scale, *counts.values())` as plain numbers, None where it is.

    Temperature and scale may be one number or one for each step, then lists.

    Raises:
        ValueError: one of these, `counts` by name, is out of range.
    """
    nucleus = as_real(top_p)
    if top_p is not None and (nucleus is None or not 0 < nucleus <= 1):
        raise ValueError(f"`top_p` must lie in (0, 1], got {top_p!r}.")
    temperature = _of_every_step(
        "temperature", temperature, lambda one: 0 <= one < math.inf, "must be >= 0", "; 0 is greedy"
    )
    guidance_scale = _of_every_step("guidance_scale", guidance_scale, math.isfinite, "must be finite")
    plain = (None if value is None else plain_count(name, value) for name, value in counts.items())
    return temperature, nucleus, guidance_scale, *plain


def plain_count(name: str, value: Any, lowest: int = 1) -> int:
    """`value` as a plain integer; a ValueError, with `name`, if it is none, or below `lowest`."""
    found = as_whole(value)
    if found is None:
        raise ValueError(f"`{name}` must be a whole number, got {value!r}.")
    if found < lowest:
        raise ValueError(f"`{name}` must be >= {lowest}, got {value!r}.")
    return found


def _of_every_step(name: str, value: Any, fits: Callable[[float], bool], wanted: str, hint: str = "") -> Any:
    """One number that `fits`, or a list of them; a ValueError, with `name`, if one does not."""
    numbers = []
    for one in value if is_sequence(value) else [value]:
        number = as_real(one)
        if number is None or not fits(number):
            raise ValueError(f"`{name}` {wanted}, got {one!r}{hint}.")
        numbers.append(number)
    return numbers if is_sequence(value) else numbers[0]


def plain_token_ids(name: str, ids: Any, vocabulary: int) -> list[int]:
    """`ids`, one or several, as plain integers; a ValueError, with `name`, if one is no id below `vocabulary`."""
    return plain_ids(name, ids, vocabulary, f"be token ids below {vocabulary}")


def plain_ids(name: str, ids: Any, end: int, wanted: str) -> list[int]:
    """`ids`, one or several, as plain integers; a ValueError, "`name` must `wanted`", if one is not in [0, end)."""
    found = []
    for one in ids if is_sequence(ids) else [ids]:
        number = as_whole(one)
        if number is None or not 0 <= number < end:
            raise ValueError(f"`{name}` must {wanted}, got {one!r}.")
        found.append(number)
    return found


def forbid(logits: Tensor, suppress_tokens: Sequence[int], reserved: Sequence[int]) -> Tensor:
    """Logits `(..., vocabulary)`, -inf at these ids; a ValueError if there are no such ids, or none is left."""
    vocabulary = logits.shape[-1]
    suppressed = sorted({*plain_token_ids("suppress_tokens", suppress_tokens, vocabulary), *reserved})
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


class Source:
    """Random numbers for `copies` copies of each of some texts, one copy after the other.

    Args:
        generator: one for all, or a list of one a text, whose numbers then depend on that text alone.
        copies: of every text.
        count: of the texts; None: as many as there are generators.
    """

    def __init__(self, generator: torch.Generator | Sequence[torch.Generator], copies: int, count: int | None = None):
        self._generator, self._copies, self._count = generator, copies, count

    def of(self, members: Sequence[int]) -> "Source":
        """The same for some of the texts, by their numbers."""
        one = isinstance(self._generator, torch.Generator)
        own: Any = self._generator if one else [self._generator[k] for k in members]  # type: ignore[index]
        return Source(own, self._copies, len(members))

    def uniform(self, *shape: int) -> Tensor:
        """In [0, 1), `(texts * copies, *shape)` float32, on the CPU."""
        return self._drawn(lambda n, g: torch.rand(n, *shape, generator=g, device=g.device))

    def integers(self, below: int, *shape: int) -> Tensor:
        """In [0, below), `(texts * copies, *shape)` int64, on the CPU."""
        return self._drawn(lambda n, g: torch.randint(below, (n, *shape), generator=g, device=g.device))

    def _drawn(self, draw: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        if isinstance(self._generator, torch.Generator):
            return draw((self._count or 1) * self._copies, self._generator).cpu()
        return torch.cat([draw(self._copies, one).cpu() for one in self._generator])


def _placed(rows: list[Tensor], free: Tensor) -> Tensor:
    """What was drawn for each row, at its free positions."""
    numbers = torch.cat([row.to(free.device) for row in rows])
    return torch.zeros(free.shape, dtype=numbers.dtype, device=free.device).masked_scatter(free, numbers)


def logit_warpers(top_k: int | None, top_p: float | None) -> list[Any]:
    """What leaves only the k likeliest tokens, and the likeliest of total probability p, in logits."""
    warpers: list[Any] = []
    if top_k is not None:
        warpers.append(TopKLogitsWarper(plain_count("top_k", top_k)))
    if top_p is not None and top_p < 1:
        warpers.append(TopPLogitsWarper(real_number("top_p", top_p)))
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

    @property
    def reads_logits(self) -> bool:
        return self._callback is not None and "logits" in self._names

    def __call__(self, step: int, timestep: Any, sample: Tensor, logits: Tensor) -> Tensor:
        if self._callback is None:
            return sample
        tensors = {"sample": sample, "logits": logits}
        result = self._callback(self._pipe, step, timestep, {name: tensors[name] for name in self._names}) or {}
        after: Tensor = result.get("sample", sample)
        return after
