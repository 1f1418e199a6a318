"""What an estimator draws from: logits, and generators."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowGenerators:
    """A generator for each of several groups of rows, `counts` of them one after the other, on one device.

    What is drawn of a group is what its generator alone would have drawn of its rows.
    """

    generators: Sequence[torch.Generator]
    counts: Sequence[int]

    @property
    def device(self) -> torch.device:
        return self.generators[0].device


Generators = torch.Generator | RowGenerators


def check_logits(logits: Tensor, generator: Generators | None) -> None:
    if not isinstance(logits, Tensor) or not torch.is_floating_point(logits):
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"`logits` must be a floating point tensor, got {kind}; convert it with `.float()`.")
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"`logits` must be (..., K) with K >= 1 categories, got shape {tuple(logits.shape)}.")
    if generator is not None and generator.device.type not in (logits.device.type, "cpu"):
        raise ValueError(
            f"`generator` must be on the device of the logits, {logits.device}, got {generator.device}; make it with "
            f"`torch.Generator({logits.device.type!r})`, or on the CPU with `torch.Generator()`."
        )


def check_finite(highest: Tensor) -> None:
    """`highest`: the largest logit of every row. NaN spreads to it. A compiled graph cannot raise, and goes on."""
    if torch.compiler.is_compiling() or highest.isfinite().all():
        return
    for found, remedy in (("nan", "look for a division by 0 upstream"), ("inf", "keep logits below the dtype's range")):
        if (highest.isnan() if found == "nan" else highest == torch.inf).any():
            raise ValueError(f"`logits` contain {found}; {remedy}.")
    raise ValueError("`logits` have a row that is -inf everywhere; leave every row at least one category.")
