"""Rewards that an automaton knows exactly."""

from dataclasses import dataclass

from redge_guidance.constraints.machine import Machine, TooManyStatesError


@dataclass(frozen=True, eq=False)
class Valued:
    """A reward of finished texts, `r(x) = sum_k weights[k] * values[state of x, k]`, every text being accepted.

    Guidance pursues a column as `log P_q(the text has its best value)`, whose slope never vanishes: in the one step of
    size 1 that is taken from p, a text that has it becomes `exp(3 * scale * weight / P_p)` times as likely, which is
    nearly all of q however rare it is. The best value is the highest that the canvas can still have, where the weight
    is negative the lowest.

    Attributes:
        machine: whose `values` have a column a term.
        weights: of the columns.
        names: what a term is, for the trace and for warnings: a word.
        linear: of values that count: each counts by itself too, q becoming `exp(scale * weight * value)` times as
            likely; and the best value is then one that is there at all.
    """

    machine: Machine
    weights: tuple[float, ...]
    names: tuple[str, ...]
    linear: bool = False

    def with_(self, other: "Valued", most: int) -> "Valued | None":
        """Both as one, of the columns of both; None where that takes more than `most` states."""
        try:
            machine = self.machine.intersection(other.machine, most)
        except TooManyStatesError:
            return None
        return Valued(machine, self.weights + other.weights, self.names + other.names, self.linear)
