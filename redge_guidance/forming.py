"""A denoising step whose texts are given their form: logits, and the figures of the trace."""

from dataclasses import replace

from torch import Tensor

from redge_guidance.constraints.arithmetic import Array
from redge_guidance.draws import Noise
from redge_guidance.formed import FormOfStep
from redge_guidance.step import DenoisingStep
from redge_guidance.trace import SequenceFigures, StepTrace


def formed_logits(
    step: DenoisingStep,
    form: FormOfStep,
    logits: Tensor,
    noise: Noise,
    scale: float | Array,
    budget: float | None,
) -> tuple[Tensor, StepTrace]:
    """Logits given the form, as the host takes them, from logits `(free positions, vocabulary)` of q; and figures.

    `logits` are overwritten.

    Args:
        scale: nats that a unit of the rewards that are automata is worth, also `(batch,)`, to each sequence.
        budget: nats per free token that these may cost; None: no limit.
    """
    guided, figures = form.condition(logits, noise, scale, budget)
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
