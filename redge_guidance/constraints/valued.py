"""Rewards that an automaton knows exactly."""

from dataclasses import dataclass

from redge_guidance.constraints.machine import Machine


@dataclass(frozen=True, eq=False)
class Valued:
    """A reward of finished texts, `r(x) = sum_k weights[k] * values[state of x, k]`, every text being accepted.

    Attributes:
        machine: whose `values` have a column a term.
        weights: of the columns.
        names: what a term is, for the trace and for warnings: a word.
        wanted: of each column the value that is wanted.
        worth: how many units of another reward one unit of this is pursued as: what is wanted of words is that they
            are there, and most are a million times rarer than one nat in two would mend.
    """

    machine: Machine
    weights: tuple[float, ...]
    names: tuple[str, ...]
    wanted: tuple[float, ...]
    worth: float = 15.0
