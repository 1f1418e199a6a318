"""One call of a pipeline, between whose steps somebody acts: its host, and the methods of its scheduler."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from redge_guidance.ending import Ending
from redge_guidance.hosts.base import Drawn, Host, drawing
from redge_guidance.hosts.registry import explain
from redge_guidance.hosts.seam import Seam, signature_of
from redge_guidance.step import DenoisingStep

Move = Callable[[DenoisingStep], Tensor | None]
Follow = Callable[[DenoisingStep, Drawn], Tensor | None]


class Acting(Protocol):
    """What is attached to the pipeline, as `Attachment` has it."""

    move: Move | None
    follow: Follow | None
    settle: Follow | None
    foresee: Callable[[DenoisingStep], None] | None
    came_to: Callable[[Ending], None] | None
    started: Callable[[], None]
    ended: Callable[[], None]


class Call:
    """One call of a pipeline: its host, and the methods of the scheduler that pass through it."""

    def __init__(self, attachment: Acting, host: Host, scheduler: Any):
        self.attachment, self.host, self.scheduler = attachment, host, scheduler
        self._seams: list[Seam] = []
        self._last: Ending | None = None  # what the last step has come to; None: not known

    def begin(self, arguments: Mapping[str, Any]) -> None:
        self.attachment.started()
        self.host.begin(arguments)
        if self.attachment.foresee is not None:
            self.host.foresee(self.attachment.foresee)
        for name in self.host.seams:
            if hasattr(self.scheduler, name):
                self._seams.append(Seam(self.scheduler, name, self.step))
        if self.host.everywhere and hasattr(self.scheduler, "set_timesteps"):
            self._seams.append(Seam(self.scheduler, "set_timesteps", self.step))

    def close(self) -> None:
        for seam in self._seams:
            seam.remove()
        self.host.close()

    def step(self, name: str, below: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The scheduler's method `name`, `below`, with guidance before and after it."""
        attachment, host = self.attachment, self.host
        if not host.is_drawing() or (attachment.move is None and attachment.follow is None):
            return below(*args, **kwargs)
        if name == "set_timesteps":  # a new generation of a pipeline that says so in no other way
            host.close()
            attachment.ended()
            attachment.started()
            host.begin({})
            return below(*args, **kwargs)
        bound = signature_of(below, self.scheduler, name).bind(*args, **kwargs)
        try:
            step = host.read(name, bound.arguments)
        except (KeyError, AttributeError) as error:
            explained = explain(host, name, error)
            raise explained from (None if explained is error else error)
        step = step if attachment.follow is None else replace(step, spent=False)  # who follows reads the logits, too
        with drawing(None):
            logits = None if attachment.move is None else attachment.move(step)
        if logits is not None:
            host.write(bound.arguments, step, logits)
        output = below(*bound.args, **bound.kwargs)
        if attachment.settle is not None and step.settles:
            drawn = host.after(name, step, output)
            with drawing(None):
                tokens = attachment.settle(step, drawn)
            if tokens is not None:
                output = host.settle(step, output, drawn.positions, tokens)
        if attachment.came_to is not None:
            self._last = self._after(name, step, output)
        if attachment.follow is None:
            return output
        with drawing(None):
            rows = attachment.follow(step, host.after(name, step, output))
        return output if rows is None else host.reorder(step, output, rows)

    def report(self, result: Any) -> None:
        """The call has come to its end and returned `result`: say what it has come to, unless it was broken off."""
        told, host, last = self.attachment.came_to, self.host, self._last
        broken_off = any(getattr(host.pipe, name, False) is True for name in ("interrupt", "_interrupt"))
        if told is not None and last is not None and not broken_off:
            told(replace(last, ids=host.finished(result), result=result))

    def _after(self, name: str, step: DenoisingStep, output: Any) -> Ending | None:
        """What a step has come to; its logits are let go."""
        try:
            drawn = self.host.after(name, step, output)
        except Exception:  # a host of one's own that guides, and does not say what was drawn
            return None
        step = replace(step, logits=step.logits.new_empty(len(step.ids), 0, step.logits.shape[-1]), generator=None)
        return Ending(step, drawn.tokens, drawn.positions)
