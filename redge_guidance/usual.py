"""What the terms of a sum say is enough, and what it may cost."""

from collections.abc import Sequence
from typing import Any

from redge_guidance.checks import as_real


def target_of(terms: Sequence[Any]) -> float | None:
    """`sum_k weight_k target_k` of `Term`s; None where one names none, or is to be low."""
    wanted = [term for term in terms if term.weight != 0]
    targets: list[Any] = [getattr(term.reward, "usual_target", None) for term in wanted]
    if None in targets or any(term.weight < 0 for term in wanted):
        return None
    return float(sum(term.weight * target for term, target in zip(wanted, targets, strict=True)))


def highest_of(terms: Sequence[Any]) -> float | None:
    """`sum_k weight_k highest_k` of `Term`s; None where one is not known, or is to be low."""
    wanted = [term for term in terms if term.weight != 0]
    highest: list[Any] = [as_real(getattr(term.reward, "highest", None)) for term in wanted]
    if (
        not wanted
        or None in highest
        or any(most != most for most in highest)
        or any(term.weight < 0 for term in wanted)
    ):
        return None
    return float(sum(term.weight * most for term, most in zip(wanted, highest, strict=True)))


def scale_of(terms: Sequence[Any]) -> float | None:
    """The least of `scale_k / |weight_k|` of `Term`s; None where one names none."""
    wanted = [term for term in terms if term.weight != 0]
    scales: list[Any] = [getattr(term.reward, "usual_scale", None) for term in wanted]
    if None in scales:
        return None
    return min((float(scale) / abs(term.weight) for term, scale in zip(wanted, scales, strict=True)), default=None)
