"""The reward of a sequence that is not finished: that of what it may become."""

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from redge_guidance.accepting import as_reward, as_strings
from redge_guidance.draws import Draws, Noise
from redge_guidance.estimators import Pathwise, Soft
from redge_guidance.evaluation import WrongKind, infinite_allowed
from redge_guidance.goals import exchanged
from redge_guidance.inference import gradients_allowed, outside_inference_mode
from redge_guidance.precision import Autocast
from redge_guidance.prediction import Prediction
from redge_guidance.reward import named_tokens
from redge_guidance.step import DenoisingStep, rows_of
from redge_guidance.terms import asks_for_whole_batch, split, terms_of

# Likeliest tokens of a position that completions are made of: means, and draws. The search takes nearly all the time
# that particles take beside the reward. Means of 16 say as much of the finished text as those of 128 or 2,000 do.
_MEANS, _DRAWS = 16, 128


class Completions:
    """Asks a reward about sequences some of whose positions are open.

    An open position is filled from the model's prediction of the step, restricted to its likeliest tokens and what the
    reward names: by the mean of 16, or by draws from 128. A finished sequence has one completion, itself.

    Args:
        reward: as for `guide`; None: nothing is worth anything.
        count: of the completions whose mean reward is taken.
        hard: whether they are drawn; None: where the reward has no gradient, for it is shown no means.
    """

    def __init__(self, reward: Any, count: int, hard: bool | None):
        self._reward: Any = None if reward is None else as_reward(reward)
        self._hard = (self._reward is not None and split(self._reward)[1] is not None) if hard is None else hard
        self._count = count if self._hard else 1
        self._told = False

    def some(self, step: DenoisingStep, ids: Tensor, remaining: Tensor, noise: Noise, asked: Tensor) -> Tensor:
        """As `rewards`, of the sequences `asked`, `(batch,)` bool; the others are shown to rewards that want all."""
        if bool(asked.all()) or self._reward is None or asks_for_whole_batch(self._reward):
            return self.rewards(step, ids, remaining, noise)
        found = torch.zeros(len(ids), dtype=torch.float64)
        here = asked.to(ids.device)
        if not isinstance(noise, torch.Generator):
            noise = [one for one, yes in zip(noise, asked.tolist(), strict=True) if yes]
        if bool(asked.any()):
            found[asked] = self.rewards(rows_of(step, here), ids[here], remaining[here], noise)
        return found

    def rewards(self, step: DenoisingStep, ids: Tensor, remaining: Tensor, noise: Noise) -> Tensor:
        """`(batch,)` float64 on the CPU; NaN where the reward is not finite, which is said once.

        Args:
            step: whose logits say what may become of the positions that remain.
            ids: `(batch, length)` int64, the sequences now.
            remaining: `(batch, length)` bool, positions that are still to be drawn.
            noise: one generator, or one a sequence.
        """
        if self._reward is None:
            return torch.zeros(len(ids), dtype=torch.float64)
        open_step = replace(step, ids=ids, free=remaining, attention_mask=step.attention_mask | remaining)
        with gradients_allowed(), torch.no_grad(), infinite_allowed():
            here = outside_inference_mode(open_step)
            while True:
                try:
                    found = self._ask(here, noise, bool(remaining.any()))
                    break
                except WrongKind as error:
                    self._reward = exchanged(self._reward, error.reward, as_strings(error))
        if not self._told and not bool(found.isfinite().all()):
            self._told = True
            warnings.warn(
                f"`reward` is not finite for {int((~found.isfinite()).sum())} of {len(found)} sequences, which are "
                "given weight 0; make it finite for every sequence, or be sure that this is meant.",
                stacklevel=2,
            )
        return found.where(found.isfinite(), torch.nan)

    def _ask(self, step: DenoisingStep, noise: Noise, some_open: bool) -> Tensor:
        with Autocast.off(step.logits.device):
            named = [name for term in terms_of(self._reward) for name in named_tokens(term.reward, step.tokenizer)]
            support = _DRAWS if self._hard else _MEANS
            model = Prediction(step, support, named, normalised=step.logits.shape[-1] <= support)
            log_p = model[:] if model.kept is None else model.kept - model.kept.logsumexp(-1, keepdim=True)
            draws = Draws(step, model.support, noise)
            estimator = Pathwise() if self._hard or not some_open else Soft()
            count = self._count if some_open else 1
            drawn = draws.draw(estimator, log_p, count) if some_open else log_p.new_zeros(1, *log_p.shape)
            sample = draws.sample(drawn, estimator.one_hot, log_p)
        total = torch.zeros(len(sample), dtype=torch.float64)
        for term in terms_of(self._reward):
            value = sample.evaluate(term.reward)
            if not isinstance(value, Tensor) or value.shape != (len(sample),):
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"`reward` must return shape ({len(sample)},), got {shape}; one number a sequence.")
            if term.weight != 0:  # else one that rules a sample out would
                total += term.weight * value.detach().cpu().double()
        return total.view(count, -1).mean(0)
