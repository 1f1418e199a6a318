"""The bound on a text's probability: what its estimates share, and those of masked diffusion."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redge_guidance.pipelines.sampling import Source

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Scoring:
    """How texts of one length, behind prompts of one length, are scored.

    Attributes:
        front: how many ids, at the beginning, stand before the prompt.
        start: how many are given: those, and the prompt.
        batch_size: sequences in one call of the model.
        source: of the corruptions.
        guidance_scale: of classifier-free guidance by the prompt; 1 is none.
    """

    front: int
    start: int
    batch_size: int
    source: Source
    guidance_scale: float = 1.0

    def without_prompt(self, ids: Tensor, mask_id: int) -> Tensor | None:
        """`ids` `(batch, length)` with the prompt hidden; None where guidance has no use for them."""
        if self.guidance_scale == 1 or self.front >= self.start:
            return None
        place = torch.arange(ids.shape[1], device=ids.device)
        return ids.masked_fill((place >= self.front) & (place < self.start), mask_id)


def masked_losses(
    ids: Tensor, levels: Tensor, stretches: Sequence[tuple[int, int]], how: Scoring, predict: Predict, device: object
) -> Tensor:
    """One estimate a row of `sum over stretches of E[(C / k) sum over hidden i of -log p(x_i | visible)]`, nats.

    In a stretch of C positions k of them are hidden, `k = 1 + floor(level * C)`, whatever stands behind it is not seen.

    Args:
        ids: `(rows, length)` int64, the texts.
        levels: `(rows,)` in [0, 1).
        stretches: beginnings and ends.
        how: batches and randomness.
        predict: from ids `(n, length)`, what is hidden `(n, length)` bool, and the share `(n,)` that is visible, to
            logits `(hidden positions, vocabulary)`.
        device: of the model.

    Returns:
        `(rows,)` float32 on the CPU.
    """
    losses = torch.zeros(len(ids))
    for first, end in stretches:
        size = end - first
        k = (levels * size).long().clamp(max=size - 1) + 1
        chosen = how.source.uniform(size).argsort(-1).argsort(-1) < k[:, None]
        hidden = torch.nn.functional.pad(chosen, (first, ids.shape[1] - end))
        for part in torch.arange(len(ids)).split(how.batch_size):
            x_0, masked = ids[part].to(device), hidden[part].to(device)  # type: ignore[call-overload]
            rows = predict(x_0, masked, 1 - k[part].to(x_0.device) / size)
            loss = torch.zeros(x_0.shape, device=rows.device)
            loss[masked] = torch.nn.functional.cross_entropy(rows, x_0[masked], reduction="none")
            losses[part] += (loss.sum(-1).cpu() * size) / k[part]
    return losses
