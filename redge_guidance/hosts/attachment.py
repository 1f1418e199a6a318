"""A function between a pipeline and its scheduler: what the calls of one pipeline pass through, and nobody else's."""

import contextlib
import copy
import copyreg
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from redge_guidance.ending import Ending
from redge_guidance.hosts.base import Host, drawing
from redge_guidance.hosts.call import Call, Follow, Move
from redge_guidance.hosts.callbacks import elsewhere
from redge_guidance.hosts.registry import find_host
from redge_guidance.logging import get_logger
from redge_guidance.step import DenoisingStep

logger = get_logger(__name__)


class Attachment:
    """While `pipe` draws, its scheduler's methods first have their logits moved; everything else is as it was.

    The pipeline's class is exchanged for a subclass of the same name, as `torch.nn.utils.parametrize` does it, which
    knows when a call begins and ends. The scheduler and the models are touched in between only.

    Args:
        pipe: a pipeline that a registered `Host` matches.
        begin: called when a call of the pipeline begins.
        move: from a step to guided logits `(free positions, vocabulary)`, or None to leave it; None: never.
        end: called when a call of the pipeline has come to its end.
        foresee: told, before the model is first called, of the step to come, without logits, where the host knows it.
        settle: told what was drawn in a step that can be settled; may return other tokens, `(batch, length)`.
        follow: told what was drawn; may return `(batch,)` indices, the sequences to go on with. None: nobody asks.
        came_to: told before `end` what a call has come to, where that is known; needs no logits. None: nobody asks.

    Raises:
        ValueError: no host for the pipeline, or something attached to it already.
        RuntimeError: the pipeline cannot draw with the versions that are installed.
    """

    def __init__(
        self,
        pipe: Any,
        begin: Callable[[], None] | None = None,
        move: Move | None = None,
        follow: Follow | None = None,
        end: Callable[[], None] | None = None,
        foresee: Callable[[DenoisingStep], None] | None = None,
        settle: Follow | None = None,
        came_to: Callable[[Ending], None] | None = None,
    ):
        kind, host = type(pipe), find_host(pipe)
        if _attachment_of(pipe) is not None:
            raise ValueError("`pipe` is guided already; call `remove()` on the first handle, or add up the rewards.")
        host.check(pipe)
        self.pipe, self._kind = pipe, kind
        self.move, self.follow, self.foresee, self.settle = move, follow, foresee, settle
        self.started, self.ended, self.came_to = begin or (lambda: None), end or (lambda: None), came_to
        self._busy = threading.Lock()
        self._call: Call | None = None
        entries = [name for name in host.entries if any(name in vars(base) for base in kind.__mro__)]
        try:
            pipe.__class__ = _attached_class(kind, self, entries)
        except TypeError as error:
            raise ValueError(
                f"`pipe` must be an object of a class that can be derived from, got {kind.__name__}: {error}."
            ) from error
        self._everywhere = not entries
        if self._everywhere:
            try:
                self._open({})
            except BaseException:
                self.remove()
                raise

    @property
    def attached(self) -> bool:
        return _attachment_of(self.pipe) is self

    @property
    def in_call(self) -> bool:
        """Whether the pipeline is drawing."""
        return self._call is not None and not self._everywhere

    @property
    def uses_scheduler(self) -> bool:
        """Whether another scheduler would not be guided now."""
        return self._call is not None

    def remove(self) -> None:
        """Give the pipeline its own class back. Does nothing the second time; a call in progress goes on unguided."""
        self.move = self.follow = self.settle = self.came_to = None
        was_open = self._everywhere and self.uses_scheduler
        if self._everywhere:
            self._close()
        if self.attached:
            self.pipe.__class__ = self._kind
        elif self._kind in type(self.pipe).__mro__ and any(_attachment(k) is self for k in type(self.pipe).__mro__):
            logger.warning("the class of the guided pipeline was exchanged by something else, which is left in place")
        if was_open:
            self.ended()

    def draw(self, entry: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of the pipeline's own method `entry`, with this attachment in between."""
        if self._call is not None and self._call.host.is_drawing():  # one entry by way of another
            return entry(self.pipe, *args, **kwargs)
        if not self._busy.acquire(blocking=False):
            raise RuntimeError(
                "the guided pipeline is in the middle of a call; two calls at the same time would change each other's "
                "samples. Give each a pipeline of its own, such as `copy.copy(pipe)` with a scheduler of its own."
            )
        try:
            try:
                bound = inspect.signature(entry).bind(self.pipe, *args, **kwargs)
            except TypeError:  # whoever called it so is told by the method itself
                return entry(self.pipe, *args, **kwargs)
            for name in ("callback_on_step_end", "callback"):
                callback = bound.arguments.get(name)
                if callable(callback):
                    bound.arguments[name] = elsewhere(callback)
            args, kwargs = bound.args, bound.kwargs
            bound.apply_defaults()
            call = self._open(bound.arguments)
            with drawing(call.host):
                result = _finished(entry(*args, **kwargs), entry)
            call.report(result)
            self.ended()
            return result
        finally:
            self._close()
            self._busy.release()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """In this block the pipeline is as it was before, for copies of it.

        Raises:
            RuntimeError: the pipeline is drawing.
        """
        if self.in_call:
            raise RuntimeError("a guided pipeline cannot be copied while it draws; copy it before or after the call.")
        mine = type(self.pipe)
        if self._everywhere:
            self._close()
        self.pipe.__class__ = self._kind
        try:
            yield
        finally:
            self.pipe.__class__ = mine
            if self._everywhere:
                self._open({})

    def _open(self, arguments: Mapping[str, Any]) -> Call:
        host: Host = find_host(self.pipe)(self.pipe, self._everywhere)
        self._call = Call(self, host, self.pipe.scheduler)
        self._call.begin(arguments)
        return self._call

    def _close(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.close()


def _attached_class(kind: type, attachment: Attachment, entries: list[str]) -> type:
    """A subclass of `kind` that is called the same, in which the entries of the attached pipeline pass through.

    Other objects that are made of it, as by `type(pipe)(...)`, are of `kind`.
    """

    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        self.__class__ = kind
        self.__init__(*args, **kwargs)

    def entry(name: str) -> Callable[..., Any]:
        original = getattr(kind, name)

        @functools.wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return attachment.draw(original, args, kwargs)

        return method

    def set_attribute(self: Any, name: str, value: Any) -> None:
        if name == "scheduler" and attachment.uses_scheduler and value is not self.scheduler:
            raise RuntimeError("`scheduler` cannot be exchanged while the guided pipeline is drawing; do it between.")
        super(attached, self).__setattr__(name, value)

    def deep_copy(self: Any, memo: dict[int, Any]) -> Any:
        with attachment.aside():
            return copy.deepcopy(self, memo)

    def shallow_copy(self: Any) -> Any:
        with attachment.aside():
            return copy.copy(self)

    def reduce(self: Any, protocol: Any) -> Any:
        with attachment.aside():
            make, *rest = self.__reduce_ex__(protocol)
        return (_new if make is copyreg.__newobj__ else make, *rest)  # type: ignore[attr-defined]  # not in typeshed

    # class methods make objects of `kind`
    members: dict[str, Any] = dict(inspect.getmembers(kind, inspect.ismethod))
    members |= {name: entry(name) for name in entries}
    members |= {"__init__": functools.wraps(kind.__init__)(initialise), "__setattr__": set_attribute}  # type: ignore[misc]
    members |= {"__deepcopy__": deep_copy, "__copy__": shallow_copy, "__reduce_ex__": reduce}
    members |= {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    attached: Any = type(kind.__name__, (kind,), members | {"__slots__": (), _MARK: attachment})
    return attached  # type: ignore[no-any-return]


def _finished(result: Any, entry: Callable[..., Any]) -> Any:
    """`result`, unless it is something that only begins to draw when the call is over."""
    if inspect.isgenerator(result) or inspect.isawaitable(result) or inspect.isasyncgen(result):
        raise RuntimeError(
            f"`{entry.__qualname__}` gives a {type(result).__name__}, whose steps come after the call and would not be "
            "guided; register a host with `entries = ()`, which guides whenever the scheduler is called."
        )
    return result


def _new(kind: type, *args: Any) -> Any:
    """As `copyreg.__newobj__`, by which `pickle` asks that the object be of that very class."""
    return kind.__new__(kind, *args)


_MARK = "_redge_guidance_attachment"


def _attachment(kind: type) -> Attachment | None:
    return vars(kind).get(_MARK)


def _attachment_of(pipe: Any) -> Attachment | None:
    return _attachment(type(pipe))
