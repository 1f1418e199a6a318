"""The terms of a reward, and what each says of itself."""

from redge_guidance.evaluation import name_of
from redge_guidance.reward import AnyReward, RewardSum, Term
from redge_guidance.usual import highest_of

_ROUNDING = 1e-5  # units of reward


def terms_of(reward: AnyReward) -> list[Term]:
    """Those of a sum, or the reward itself."""
    return reward.terms if isinstance(reward, RewardSum) else [Term(1.0, reward, name_of(reward))]


def split(reward: AnyReward) -> tuple[AnyReward | None, AnyReward | None]:
    """What has a gradient and what has none: `reward = differentiable + black box`, None where there is no such part.

    >>> split(abs) == (abs, None)
    True
    """
    if not isinstance(reward, RewardSum):
        return (reward, None) if getattr(reward, "differentiable", True) else (None, reward)
    kinds: tuple[list[Term], list[Term]] = ([], [])
    for term in reward.terms:
        kinds[not getattr(term.reward, "differentiable", True)].append(term)
    smooth, black_box = (RewardSum(terms) if terms else None for terms in kinds)
    return smooth, black_box


def asks_for_whole_batch(reward: AnyReward) -> bool:
    """Whether a reward, or a term of a sum, says that it knows sequences by their place in the batch."""
    return any(getattr(term.reward, "whole_batch", False) for term in terms_of(reward))


def usual_target(reward: AnyReward) -> tuple[float | None, str]:
    """`reward.usual_target`, and where it comes from, or which term of a sum names none."""
    target = getattr(reward, "usual_target", None)
    terms = [term for term in terms_of(reward) if term.weight != 0]
    if target is not None:
        return float(target), f"the usual target of {' + '.join(term.name for term in terms)}"
    for term in terms:
        if term.weight < 0:
            return None, f"{term.name} is to be low, for which it names no usual target"
        if getattr(term.reward, "usual_target", None) is None:
            return None, f"{term.name} names no usual target"
    return None, "nothing is wanted"


def check_target(target: float, reward: AnyReward) -> None:
    """A ValueError for a target above all that a reward can be, as far as it says what that is."""
    highest = highest_of(terms_of(reward))
    if highest is not None and target > highest + _ROUNDING:
        names = " + ".join(term.name for term in terms_of(reward))
        raise ValueError(
            f"`target` must be at most {highest:g}, the most that {names} can be, got {target:g}; it is in units of "
            "the reward, of a label its log-probability."
        )
