"""A method of a scheduler, replaced and given back."""

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

from redge_guidance.logging import get_logger

logger = get_logger(__name__)
_PUTTING = threading.RLock()  # of pipelines in several threads that share a scheduler, one at a time

Step = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class Seam:
    """A method of a scheduler that a call of a pipeline passes through, in the place of the method itself.

    Seams of several calls, of pipelines that share a scheduler, lie on one another and may go in any order.

    Args:
        scheduler: whose method it is.
        name: of the method.
        step: called with the name, the method that was there, and its arguments.
    """

    def __init__(self, scheduler: Any, name: str, step: Step):
        if not hasattr(scheduler, "__dict__"):
            raise ValueError(f"`scheduler` must be an object whose methods can be replaced, got {type(scheduler)}.")
        self._step, self._scheduler, self._name, self._removed = step, scheduler, name, False
        with _PUTTING:
            self._before = vars(self._scheduler).get(name)  # None: the method of the class
            self._below = getattr(self._scheduler, name)
            # with its signature: some pipelines choose their arguments by it
            functools.update_wrapper(self, self._below, updated=())
            setattr(self._scheduler, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._removed:
            if vars(self._scheduler).get(self._name) is self:  # somebody put it back: it goes for good
                self._unlink()
            return self._below(*args, **kwargs)
        return self._step(self._name, self._below, args, kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError(
            f"`{type(self._scheduler).__name__}.{self._name}` is guided at the moment and cannot be copied; copy the "
            "scheduler before or after the call of the guided pipeline."
        )

    def remove(self) -> None:
        """Give the scheduler its method back."""
        self._removed = True
        with _PUTTING:
            self._unlink()

    def _unlink(self) -> None:
        top = vars(self._scheduler).get(self._name)
        if top is self:
            if self._before is None:
                delattr(self._scheduler, self._name)
            else:
                setattr(self._scheduler, self._name, self._before)
            return
        while isinstance(top, Seam):
            if top._below is self:
                top._below, top._before = self._below, self._before
                return
            top = top._below
        if top is not None:
            logger.warning(
                "`%s.%s` was wrapped by something else while the guided pipeline was drawing; that is left in place, "
                "and goes on to the scheduler's own method",
                type(self._scheduler).__name__,
                self._name,
            )


def signature_of(method: Callable[..., Any], scheduler: Any, name: str) -> inspect.Signature:
    """That of a scheduler's method, also where somebody wrapped it by a function that takes anything."""
    signature = inspect.signature(method)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if kinds <= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} and hasattr(type(scheduler), name):
        return inspect.signature(getattr(type(scheduler), name).__get__(scheduler))
    return signature
