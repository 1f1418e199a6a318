"""What is known of prompts beside their text: the other fields of the records that they came from."""

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_COLUMNS: ContextVar[Mapping[str, list[Any]]] = ContextVar("columns", default={})  # noqa: B039 - never changed in place


@contextmanager
def columns(fields: Mapping[str, Sequence[Any]] | None = None, /, **more: Sequence[Any]) -> Iterator[None]:
    """In this block, and in this thread, reward functions are told these fields of the prompts.

    One value for each prompt of the pipeline's call, or for each sample that is scored, in their order; draws and
    batches are kept in step.

        with columns(solution=["4", "9"]), guide(pipe, right):
            pipe(["2 + 2 =", "3 * 3 ="])

    Args:
        fields, more: lists by name.

    Raises:
        ValueError: something that is no list of values, or lists of different lengths.
    """
    found: dict[str, list[Any]] = {}
    for name, values in {**(fields or {}), **more}.items():
        several: Any = values  # an array or a column of a table too
        if isinstance(several, str | bytes | Mapping | Set) or not hasattr(several, "__len__"):
            raise ValueError(f"`{name}` must be a list with a value for each prompt, got {type(values).__name__}.")
        found[name] = list(values)
    counts = {name: len(values) for name, values in found.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise ValueError(f"`fields` must have as many values each, got {told}.")
    token = _COLUMNS.set(found)
    try:
        yield
    finally:
        _COLUMNS.reset(token)


def columns_now() -> Mapping[str, list[Any]]:
    """The fields that are known where this is called, for a block that is opened later."""
    return _COLUMNS.get()


def columns_of(count: int) -> dict[str, list[Any]]:
    """The fields of `count` samples, all of them once for every draw; empty where none are known.

    Raises:
        ValueError: they are of another number of prompts.
    """
    found = _COLUMNS.get()
    given = len(next(iter(found.values()), []))
    if found and (not given or count % given):
        raise ValueError(
            f"`columns` must have a value for each prompt, got {given} values and {count} samples; open the block with "
            "the fields of just these prompts."
        )
    return {name: values * (count // given) for name, values in found.items()}
