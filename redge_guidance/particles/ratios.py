"""By how much likelier what was drawn in a guided step was to the model than to guidance."""

from dataclasses import replace

import torch
from torch import Tensor

from redge_guidance.guidance import Guidance
from redge_guidance.prediction import HostLogits
from redge_guidance.step import DenoisingStep


def check_known(step: DenoisingStep, guidance: Guidance) -> None:
    """ValueErrors for guided steps of which it is not known how likely what they draw was."""
    if step.held is not None and bool((step.held & step.free).any()):
        raise ValueError(
            "`guidance` of steps that exchange tokens drawn before, as corrector sweeps and editing, has no known "
            "weights; switch these off in the sampler, or leave `guidance` out."
        )
    if not guidance.has_form:
        return
    if step.decisive or not (step.settles or step.independent):
        raise ValueError(
            "`guidance` that follows words, lengths, expressions or a constraint exactly has known weights where what "
            "was drawn can be settled, or positions do not depend on the logits, as in this library's pipelines of "
            "texts, and not on this sampler; leave these, or `guidance`, out."
        )
    if guidance.is_hard and step.redraws:
        raise ValueError(
            "`reward & constraint` has no known weights where tokens are drawn anew, as in uniform diffusion and "
            "remasking: the model may come to a text that is accepted by way of others, and guidance may not. Take a "
            "masked sampler that keeps its tokens, or hold the constraint with `guide` alone."
        )


def log_ratio(step: DenoisingStep, guided: Tensor, tokens: Tensor, positions: Tensor, guidance: Guidance) -> Tensor:
    """`log p(x_S) - log q(x_S)` of the tokens x_S that were drawn, at the positions S: `(batch,)` float64 on the CPU.

    p is what the host would have drawn from, each token by itself, q what it was given, both at its temperature, and
    both without the tokens that guidance forbids; where one of these was drawn, in a sequence that was left to the
    host, nothing is counted. Where guidance gave texts a form, q is that of a joint draw.

    Args:
        step: as the host had it, its own logits included.
        guided: `(free positions, vocabulary)`, what the host was given.
        tokens, positions: `(batch, length)` int64 and bool, what was drawn in the end, and where.
        guidance: by which `guided` was made.
    """
    drawn = positions & step.free
    chosen, sequence = tokens[drawn][:, None], drawn.nonzero()[:, 0].cpu()
    own = HostLogits(replace(step, free=drawn)).logits()
    dtype = torch.float64 if own.device.type == "cpu" else own.dtype  # not every accelerator has float64
    log_p = own.to(dtype).log_softmax(-1).gather(-1, chosen)[:, 0]
    joint = guidance.log_prob(tokens, drawn)
    total = torch.zeros(len(step.ids), dtype=torch.float64)
    if joint is not None:
        return total.index_add_(0, sequence, log_p.double().cpu()) - joint
    given = (guided[drawn[step.free]].float() / step.temperature).masked_fill(own == -torch.inf, -torch.inf)
    log_q = given.to(dtype).log_softmax(-1).gather(-1, chosen)[:, 0]
    return total.index_add_(0, sequence, (log_p - log_q).masked_fill(log_p == -torch.inf, 0.0).double().cpu())
