"""Relaxed samples of one denoising step: noise, estimator, and what the reward is shown."""

from collections.abc import Callable

import torch
from torch import Tensor

from redge_guidance.estimators import Estimator, Pathwise, ScoreFunction
from redge_guidance.estimators.inputs import RowGenerators
from redge_guidance.sample import Sample
from redge_guidance.samples.images import RelaxedImages
from redge_guidance.samples.tokens import RelaxedTokens
from redge_guidance.step import DenoisingStep
from redge_guidance.text import text_mask

_BY_ROWS = (Pathwise.__call__, ScoreFunction.__call__)  # which take a generator for every group of rows
Noise = torch.Generator | list[torch.Generator]


class Draws:
    """Draws the free positions of a step, and puts what was drawn among its fixed tokens.

    Args:
        step: what is fixed, and what a finished sample is.
        support: `(rows, S)` int64, token ids of the columns; None: column = id.
        noise: one generator, or one for every sequence, whose samples then do not depend on the batch.
    """

    def __init__(self, step: DenoisingStep, support: Tensor | None, noise: Noise):
        self._step, self._support, self._noise = step, support, noise
        self.sequence = step.free.nonzero()[:, 0]  # (rows,), the sequence of a row
        self._counts = step.free.sum(-1).tolist()

    def draw(self, estimator: Callable[..., Tensor], logits: Tensor, count: int) -> Tensor:
        """`count` samples `(count, rows, S)` of logits `(rows, S)`, or of logits for each of them.

        With a generator for every sequence neither the other sequences nor the number of samples that are held at once
        matter to a sample: estimators of this library draw the noise of each by itself, others the whole sample.
        """
        each = logits if logits.ndim == 3 else logits.expand(count, *logits.shape)
        if isinstance(self._noise, torch.Generator):
            return estimator(each, generator=self._noise)
        noise = [g for g, rows in zip(self._noise, self._counts, strict=True) if rows]
        counts = [rows for rows in self._counts if rows]
        ours = isinstance(estimator, Estimator) and type(estimator).__call__ in _BY_ROWS
        if ours:
            return torch.stack([estimator(one, generator=RowGenerators(noise, counts)) for one in each])
        return torch.stack(
            [
                torch.cat([estimator(rows, generator=g) for rows, g in zip(one.split(counts), noise, strict=True)])
                for one in each
            ]
        )

    def sample(self, drawn: Tensor, one_hot: bool, log_probs: Tensor | None = None) -> Sample:
        """The batch once for every draw, draw by draw, with `drawn` `(draws, rows, S)` at the free positions.

        `log_probs` `(rows, S)` is what they were drawn from.
        """
        draws, step = len(drawn), self._step
        free = step.free.repeat(draws, 1)
        support = None if self._support is None else self._support.repeat(draws, 1)
        weights = drawn.flatten(0, 1)
        index = weights.detach().argmax(-1, keepdim=True)
        tokens = index if support is None else support.gather(-1, index)
        ids = step.ids.repeat(draws, 1).masked_scatter(free, tokens)
        given = None if step.given is None else step.given.repeat(draws, 1)
        lead = None if step.lead is None else step.lead.repeat(draws, 1)
        relaxed = RelaxedTokens(
            ids=ids,
            free=free,
            weights=weights,
            support=support,
            hard=one_hot,
            attention_mask=text_mask(ids, step.tokenizer, step.attention_mask.repeat(draws, 1), given, step.ends),
            tokenizer=step.tokenizer,
            given=given,
            ends=step.ends,
            draws=draws,
            prompts=None if step.prompts is None else list(step.prompts) * draws,
            log_probs=log_probs,
            lead=lead,
            chat=step.chat,
        )
        return relaxed if step.images is None else RelaxedImages(relaxed, step.images)
