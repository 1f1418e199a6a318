"""What changes from step to step: how many tokens are visible, classifier-free guidance, and its and other ramps."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Share of visible tokens by progress r = 1 - t, from 0 at the start to 1 at the end.
_SHARES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda r: r,
    "cosine": lambda r: 1 - (r * (math.pi / 2)).cos(),
    "root": lambda r: r**0.5,
    "square": lambda r: r**2,
    "arccos": lambda r: 1 - r.arccos() / (math.pi / 2),
}
SCHEDULES = tuple(_SHARES)
COUNTINGS = ("share", "share_down", "floor", "floor_from_zero")


def visible_share(schedule: str, progress: Tensor) -> Tensor:
    """Share of the tokens that are visible at `progress` = 1 - t in [0, 1]; increasing, 0 at 0 and 1 at 1.

    >>> visible_share("arccos", torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.0000, 0.3333, 1.0000])
    """
    return _SHARES[schedule](progress.clamp(0, 1))


def visible_tokens(counting: str, schedule: str, step: int, num_steps: int, total: Tensor) -> Tensor:
    r"""How many of `total` tokens are visible after step `step` = 0, 1, ... of `num_steps`.

    `max(step + 1, floor(share(r) total))`, with r = (step + 1) / num_steps for `"floor"` and, for
    `"floor_from_zero"`, r = step / (num_steps - 1), so that the first step reveals one token. In float32, as
    Halton-MaskGIT counts: where share times total is a whole number, rounding decides.

    >>> [visible_tokens("floor", "arccos", i, 4, torch.tensor(16)).item() for i in range(4)]
    [2, 5, 8, 16]
    >>> [visible_tokens("floor_from_zero", "square", i, 4, torch.tensor(16)).item() for i in range(4)]
    [1, 2, 7, 16]
    """
    if counting == "floor":
        share = visible_share(schedule, torch.tensor((step + 1) / num_steps))
    else:
        share = visible_share(schedule, torch.linspace(0, 1, num_steps))[step]
    return (share.to(total.device) * total).long().clamp(min=step + 1).minimum(total)


def for_each_step(name: str, value: float | Sequence[float], num_steps: int) -> list[float]:
    """`value` for each of `num_steps` steps, or its values, as many; a ValueError, with `name`, if they are not."""
    if isinstance(value, float | int):
        return [value] * num_steps
    if len(value) != num_steps:
        raise ValueError(
            f"`{name}` must be one number, or one for each of {num_steps} steps, got {len(value)}; make it for the "
            "`num_inference_steps` of the call."
        )
    return list(value)


def classifier_free(conditional: Tensor, unconditional: Tensor, guidance_scale: float) -> Tensor:
    """Logits of classifier-free guidance, `u + guidance_scale * (c - u)`; all of one shape.

    A token that either side forbids (-inf) is forbidden, whatever the scale.

    >>> never = -torch.inf
    >>> classifier_free(torch.tensor([2.0, never, 0.0]), torch.tensor([1.0, 0.0, never]), 3.0)
    tensor([4., -inf, -inf])
    """
    forbidden = conditional.isneginf() | unconditional.isneginf()
    return (unconditional + guidance_scale * (conditional - unconditional)).masked_fill_(forbidden, -torch.inf)


def guidance_ramp(guidance_scale: float, num_steps: int) -> list[float]:
    """Scales of classifier-free guidance from 1, which is none, to `guidance_scale` in equal steps.

    Of Halton-MaskGIT's `ConfidenceSampler`, whose `w` is `guidance_scale - 1`.

    >>> guidance_ramp(4.0, 4)
    [1.0, 2.0, 3.0, 4.0]
    """
    last = num_steps - 1
    return [1 + (guidance_scale - 1) * step / last for step in range(last)] + [guidance_scale]


def temperature_ramp(first: float, last: float, num_steps: int, *, power: float = 1.0, warmup: int = 0) -> list[float]:
    """Temperatures T with 1 / T going from `1 / first` to `1 / last` in equal steps, to the power of `power`.

    In the first `warmup` steps 1 / T is halved. Of Halton-MaskGIT's `HaltonSampler`, which multiplies the logits:
    `sm_temp_min` = 1 / first, `sm_temp_max` = 1 / last, `temp_pow` = power, `temp_warmup` = warmup.

    >>> temperature_ramp(1.0, 0.5, 3, warmup=1)
    [2.0, 0.6666666666666666, 0.5]

    Raises:
        ValueError: a temperature that is not above 0.
    """
    for name, value in (("first", first), ("last", last)):
        if not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be > 0, got {value}; a ramp has no greedy end.")
    span = max(num_steps - 1, 1)
    colder = [1 / first + (1 / last - 1 / first) * step / span for step in range(num_steps)]
    return [(2 if step < warmup else 1) / value**power for step, value in enumerate(colder)]
