"""Something attached to a pipeline or a model, for as long as it is wanted."""

from types import TracebackType
from typing import Any, Protocol, TypeVar

_Self = TypeVar("_Self", bound="Handle")


class Attached(Protocol):
    """What holds on to a pipeline or a model."""

    @property
    def attached(self) -> bool: ...

    def remove(self) -> None: ...


class Handle:
    """A context manager that removes itself on exit.

    Attributes:
        config: the settings in force.
    """

    def __init__(self, pipe: Any, attachment: Attached):
        self._pipe, self._attachment = pipe, attachment

    @property
    def config(self) -> Any:
        raise NotImplementedError

    def remove(self) -> None:
        """Give the pipeline, or the model, back as it was. Does nothing the second time."""
        self._attachment.remove()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        where = "on" if self._attachment.attached else "removed from"
        return f"<{type(self).__name__} {where} {type(self._pipe).__name__}, {self.config}>"
