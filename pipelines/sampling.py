"""What the loops of all pipelines share: checks of how to sample, and the user's callback after a step."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Callback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


def check_settings(temperature: float, top_p: float | None, counts: dict[str, int | None]) -> None:
    """A ValueError if `temperature`, `top_p` or one of `counts`, by name, is out of range; None is in range."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"`temperature` must be >= 0, got {temperature}; 0 is greedy.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"`top_p` must lie in (0, 1], got {top_p}.")
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be >= 1, got {value}.")


class AfterStep:
    """Calls a user's `callback_on_step_end`, if there is one, and gives back the sample to go on with.

    Args:
        pipe: handed to the callback; its `_callback_tensor_inputs` are the tensors that there are.
        callback: called as `callback(pipe, step, timestep, {name: tensor})`; may return a dict with a new `sample`.
        names: tensors that it is given; None: `["sample"]`.

    Raises:
        ValueError: a name of no tensor.
    """

    def __init__(self, pipe: Any, callback: Callback | None, names: Sequence[str] | None):
        self._pipe, self._callback, self._names = pipe, callback, list(names or ["sample"])
        unknown = set(self._names) - set(pipe._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be of {pipe._callback_tensor_inputs}, "
                f"got {sorted(unknown)}."
            )

    def __call__(self, step: int, timestep: Any, sample: Tensor, logits: Tensor) -> Tensor:
        if self._callback is None:
            return sample
        tensors = {"sample": sample, "logits": logits}
        result = self._callback(self._pipe, step, timestep, {name: tensors[name] for name in self._names}) or {}
        after: Tensor = result.get("sample", sample)
        return after
