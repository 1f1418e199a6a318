"""A denoising step whose texts are given their form: logits, and the figures of the trace."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from redge_guidance.config import GuidanceConfig
from redge_guidance.draws import Noise
from redge_guidance.form import Form
from redge_guidance.formed import FormOfStep
from redge_guidance.prediction import HostLogits
from redge_guidance.step import DenoisingStep
from redge_guidance.stopping import rows_of
from redge_guidance.trace import SequenceFigures, StepTrace


def formed_logits(
    step: DenoisingStep,
    form: FormOfStep,
    logits: Tensor,
    noise: Noise,
    config: GuidanceConfig,
    scale: float | None = None,
) -> tuple[Tensor, StepTrace]:
    """Logits given the form, as the host takes them, from logits `(free positions, vocabulary)` of q; and figures.

    `logits` are overwritten.

    Args:
        scale: of the rewards that are automata; None: that of the config.
    """
    scale = config.scale if scale is None else scale
    guided, figures = form.condition(logits, noise, scale, config.kl_budget)
    free = step.free.sum(-1).tolist()
    rows = zip(figures.reward.tolist(), figures.kl.tolist(), figures.entropy.tolist(), free, strict=True)
    sequences = tuple(SequenceFigures(r, kl / max(n, 1), 0.0, h / max(n, 1), n) for r, kl, h, n in rows)
    trace = StepTrace(
        progress=step.progress,
        reward=float(figures.reward.mean()),
        kl=float(figures.kl.sum()) / max(sum(free), 1),
        grad_norm=0.0,
        entropy=float(figures.entropy.sum()) / max(sum(free), 1),
        seconds=0.0,
        notes=figures.notes | ({"log_accept": float(figures.log_accept.mean())} if form.is_hard else {}),
        sequences=sequences,
    )
    return guided if step.temperature == 1 else guided.mul_(step.temperature), trace


def constrained_logits(
    step: DenoisingStep, form: Form, noise: Noise, guided: Tensor, logits: Tensor | None, config: GuidanceConfig
) -> tuple[Tensor, StepTrace, FormOfStep]:
    """Logits of a step in which the sequences that are not `guided` `(batch,)` by a reward keep to the constraint.

    `logits` are those of the guided ones among all, None where there are none.
    """
    alone = (~guided).nonzero()[:, 0]
    with torch.no_grad():
        part = step if len(alone) == len(guided) else rows_of(step, alone)
        mine = [noise[k] for k in alone.tolist()] if isinstance(noise, Sequence) else noise
        formed = FormOfStep(form, part)
        found, trace = formed_logits(part, formed, HostLogits(part).logits(), mine, config, scale=0.0)
    if logits is None:
        return found, trace, formed
    block = step.free[:, -step.logits.shape[1] :]
    logits[torch.isin(block.nonzero()[:, 0], alone)] = found.to(logits.dtype)
    return logits, trace, formed


def together(tilted: StepTrace, formed: StepTrace) -> StepTrace:
    """The figures of a step that a reward tilts, before it is given its form."""
    both = zip(tilted.sequences, formed.sequences, strict=True)
    return replace(
        tilted,
        reward=tilted.reward + formed.reward,
        kl=tilted.kl + formed.kl,
        entropy=formed.entropy,
        notes=tilted.notes | formed.notes,
        sequences=tuple(
            replace(one, reward=one.reward + other.reward, kl=one.kl + other.kl, entropy=other.entropy)
            for one, other in both
        ),
    )
