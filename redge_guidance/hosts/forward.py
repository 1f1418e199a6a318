"""Guidance at the forward of a model: for samplers that are functions of a model."""

import contextlib
import threading
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from redge_guidance.checks import as_real
from redge_guidance.hosts.branches import Branches, Reading
from redge_guidance.hosts.calls import (
    ForwardSettings,
    ModelCall,
    arguments_of,
    cached,
    ids_of,
    logits_of,
    padding_of,
    start_of,
    with_logits,
)
from redge_guidance.loop import LogitsGuidance

_GUIDING: ContextVar[frozenset[int]] = ContextVar("guiding", default=frozenset())  # whose guidance calls what is called
_GUIDED: "WeakSet[torch.nn.Module]" = WeakSet()


@dataclass(eq=False)
class _Sampling:
    """What is known of the sampler that calls the model in one thread.

    Attributes:
        loop: guides its logits.
        branches: which of its calls are one step.
        seen: ids of the text so far, and which of them are text.
        cached: how much was in the cache of the call that is being made.
    """

    loop: LogitsGuidance
    branches: Branches
    seen: tuple[Tensor, Tensor] | None = None
    cached: int | None = None


class ForwardAttachment:
    """Moves the logits of every call of a model that somebody else makes without gradients.

    Samplers of several threads are followed apart.

    A copy of the model, by `copy.deepcopy` or `pickle`, comes out unguided: in the place of the hooks it has functions
    of the standard library that do nothing.

    Args:
        model: whose forward returns logits.
        loop: guides them.
        mask_token_id: what a hidden token holds, as the model is given it.
        settings: how the model is called.
        prompts: what each text is asked for; None: not known.

    Raises:
        ValueError: the model is guided already, or settings that do not go together.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loop: LogitsGuidance,
        mask_token_id: int | None,
        settings: ForwardSettings,
        prompts: Sequence[str] | None = None,
    ):
        if model in _GUIDED:
            raise ValueError("`pipe` is guided already; call `remove()` on the first handle, or add up the rewards.")
        if mask_token_id is None and settings.free is None:
            raise ValueError(
                "`mask_token_id` must be given, since the tokenizer has none; of a model without masks pass `free`, "
                "from the ids of a call to what may be drawn."
            )
        if settings.shift_logits and loop.codes is not None:
            raise ValueError("`shift_logits` is for texts, and tokens are those of images; leave it out.")
        if settings.vocabulary is not None and loop.codes is None:
            raise ValueError("`vocabulary` is for image tokens, and there are no `images`; leave it out.")
        scale = settings.guidance_scale
        if scale is not None and as_real(scale) is None:
            raise ValueError(f"`guidance_scale` must be a number or None, got {scale!r}.")
        self.model, self.prompts = model, prompts
        self._loop, self._mask, self._settings = loop, mask_token_id, settings
        self._context: tuple[Tensor, Tensor] | None = None
        self._threads, self._samplings = threading.local(), WeakSet[_Sampling]()
        self._begin()
        self._told: set[str] = set()
        self._hooks = [
            model.register_forward_pre_hook(_Hook(self.before), with_kwargs=True),
            model.register_forward_hook(_Hook(self.after), with_kwargs=True),
        ]
        _GUIDED.add(model)

    @property
    def attached(self) -> bool:
        return bool(self._hooks)

    def remove(self) -> None:
        """Give the model back as it was. Does nothing the second time."""
        for hook in self._hooks:
            hook.remove()
        if self._hooks:
            self._hooks = []
            _GUIDED.discard(self.model)
            self.reset()

    def reset(self, prompts: Sequence[str] | None = None, context: Tensor | None = None) -> None:
        """The next call begins a sampling, of these prompts, after this text."""
        for one in list(self._samplings):
            one.loop.reset()
        self._threads = threading.local()
        self.prompts = self.prompts if prompts is None else prompts
        self._context = None if context is None else (context, torch.ones_like(context, dtype=torch.bool))

    def _begin(self) -> _Sampling:
        settings = self._settings
        how = (settings.classifier_free, settings.guidance_scale, settings.conditional_first, self._mask)
        begun = _Sampling(self._loop.alike(), Branches(self._read, *how), self._context)
        self._threads.sampling = begun
        self._samplings.add(begun)
        return begun

    @property
    def _here(self) -> _Sampling:
        """Of this thread."""
        found: _Sampling | None = getattr(self._threads, "sampling", None)
        return self._begin() if found is None else found

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before the model's forward: how much is in its cache, which that may fill."""
        if id(self) not in _GUIDING.get():
            self._here.cached = cached(arguments_of(self.model, args, kwargs))

    def after(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Called after it, with what it gave; what it returns is given instead, None: nothing else."""
        if id(self) in _GUIDING.get() or self._is_training(module, output):
            return None
        with _guiding(self), torch.no_grad():
            arguments = arguments_of(self.model, args, kwargs)
            call = self._call(arguments, logits_of(output, module))
            if self._mask is not None and self._settings.free is None and not (call.ids == self._mask).any():
                return None
            moved = self._here.branches(call)
        return None if moved is None else with_logits(output, moved)

    def _is_training(self, module: Any, output: Any) -> bool:
        """Whether somebody wants the model's own gradients, or its dropout."""
        gradients = torch.is_grad_enabled() and logits_of(output, module).requires_grad
        why = "in training mode: call `model.eval()`" if module.training else "with gradients: use `torch.no_grad()`"
        if (gradients or module.training) and why not in self._told:
            self._told.add(why)
            warnings.warn(
                f"the guided {type(module).__name__} was called {why} around the sampler. Such calls are not guided.",
                stacklevel=4,
            )
        return gradients or bool(module.training)

    def _call(self, arguments: dict[str, Any], logits: Tensor) -> ModelCall:
        """The call with all of its text: what the model has in its cache was in earlier calls."""
        ids = ids_of(arguments, self.model)
        length = ids.shape[1]
        said = self._settings.start
        start = start_of(arguments, length, self._here.cached) if said is None else int(said(arguments))
        padding = padding_of(arguments, ids.shape, start)
        text = torch.ones_like(ids, dtype=torch.bool) if padding is None else padding
        if start:
            ids, text = self._after_context(ids, text, start)
        self._here.seen = (ids.clone(), text.clone())
        return ModelCall(ids, text, logits, start + length - logits.shape[1])

    def _after_context(self, ids: Tensor, text: Tensor, start: int) -> tuple[Tensor, Tensor]:
        if self._settings.classifier_free == "two_calls" or self._settings.shift_logits:
            what = "`shift_logits`" if self._settings.shift_logits else '`classifier_free="two_calls"`'
            raise ValueError(
                f"{what} does not go with a call that begins at token {start} of a text, whose beginning is in a "
                "cache; use the sampler without its cache, or guide the logits by `LogitsGuidance`."
            )
        seen = self._here.seen
        if seen is None or seen[0].shape[1] < start or len(seen[0]) != len(ids):
            known = "nothing" if seen is None else f"{tuple(seen[0].shape)} of it"
            raise ValueError(
                f"a call of the guided model, {tuple(ids.shape)} ids, begins at token {start} of a text, of which "
                f"{known} was seen; guide the model before its cache is filled, pass the text by "
                "`handle.reset(context=ids)`, or say where calls begin by `start`."
            )
        behind = start + ids.shape[1]
        pieces = [
            torch.cat([old[:, :start], new, old[:, behind:]], 1) for old, new in zip(seen, (ids, text), strict=True)
        ]
        return pieces[0], pieces[1]

    def _read(self, call: ModelCall) -> Reading:
        """A call with the prompt as guidance reads it."""
        settings = self._settings
        columns = slice(*(settings.vocabulary or slice(None)).indices(call.logits.shape[-1]))
        free = None if settings.free is None else settings.free(call.ids)
        logits = call.logits[..., columns]
        if settings.shift_logits:
            hidden = call.ids.eq(-1 if self._mask is None else self._mask)
            free = self._without_first(hidden if free is None else free, call.offset)
            logits = torch.cat([logits[:, :1], logits[:, :-1]], 1)
        inside = None
        ids, text, offset = call.ids, call.text, call.offset
        if self._loop.codes is not None:
            inside, ids = self._image(call, columns)
            free = None if free is None else free[inside].view(ids.shape)
            logits, text, offset = logits[inside].view(*ids.shape, -1), torch.ones_like(ids, dtype=torch.bool), 0
        loop = self._here.loop
        step, now = loop.read(
            logits,
            ids,
            free,
            prompts=self.prompts,
            generator=settings.generator,
            temperature=settings.temperature,
            attention_mask=text,
            offset=offset,
        )
        if inside is not None:
            now = torch.zeros_like(inside).masked_scatter(inside, now)
        where = torch.nn.functional.pad(now[:, 1:], (0, 1)) if settings.shift_logits else now

        def move(rows: Tensor | None) -> Tensor | None:
            if rows is None:
                return loop.move(step)
            mixed = step.logits.float().clone()
            mixed[step.free[:, -mixed.shape[1] :]] = rows
            return loop.move(replace(step, logits=mixed))

        given = ~inside if inside is not None else torch.zeros_like(call.text) if step.given is None else step.given
        return Reading(where, now, given, columns, move)

    def _without_first(self, free: Tensor, offset: int) -> Tensor:
        if offset == 0 and free[:, 0].any():
            if "first" not in self._told:
                self._told.add("first")
                warnings.warn(
                    "the first position is free, and a model of shifted logits has none for it but those of the "
                    "second; it is not guided by itself. Begin texts with a token.",
                    stacklevel=6,
                )
            free = free.clone()
            free[:, 0] = False
        return free

    def _image(self, call: ModelCall, columns: slice) -> tuple[Tensor, Tensor]:
        """Positions of image tokens, `(batch, length)` bool, and their ids in the codebook, hidden ones behind it."""
        if columns.stop - columns.start != self._loop.codes:
            raise ValueError(
                f"`vocabulary` must be the slice of the logits that is of the {self._loop.codes} codes, got "
                f"{self._settings.vocabulary} and {call.logits.shape[-1]} logits."
            )
        inside = (call.ids >= columns.start) & (call.ids < columns.stop)
        if self._mask is not None:
            inside |= call.ids == self._mask
        counts = inside.sum(-1)
        if call.offset or (counts != counts[0]).any() or call.logits.shape[:2] != call.ids.shape:
            raise ValueError(
                "the rows of a batch must have as many image tokens each, ids in `vocabulary` or hidden, with "
                f"logits at all positions, got {counts.tolist()} and logits {tuple(call.logits.shape)}."
            )
        ids = call.ids[inside].view(len(counts), -1)
        codes = columns.stop - columns.start
        return inside, torch.where(ids == self._mask, codes, ids - columns.start) if self._mask is not None else ids


class _Hook:
    """A hook whose copies, by `copy` and `pickle`, are functions of the standard library that do nothing."""

    def __init__(self, function: Callable[..., Any]):
        self._function = torch.compiler.disable(function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")


@contextlib.contextmanager
def _guiding(attachment: ForwardAttachment) -> Any:
    token = _GUIDING.set(_GUIDING.get() | {id(attachment)})
    try:
        yield
    finally:
        _GUIDING.reset(token)
