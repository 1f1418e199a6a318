"""What sampling costs: time, memory, calls of the model and of the reward's models."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from redge_guidance.terms import terms_of

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_DENOISERS = ("model", "transformer", "unet")


@dataclass
class Clock:
    """Seconds by the clock on the wall and of all processors, of this process, that its blocks took together."""

    wall: float = 0.0
    process: float = 0.0

    def __enter__(self) -> "Clock":
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall += time.perf_counter() - self._began[0]
        self.process += time.process_time() - self._began[1]


class Meter:
    """What happens within its block costs.

    Sequences are counted, not batches: two calls of the model with 64 texts are 128 sequences, so that the figures of
    batches of any size are alike. Of a reward those of its models are counted, the modules among its attributes; a
    reward without any, as of words, has none.

    Args:
        pipe: a pipeline with a `model`, `transformer` or `unet`.
        rewards: rewards, sums, or functions.

    Attributes:
        seconds, process_seconds: as of `Clock`.
        peak_memory: bytes, of CUDA where the model is there, else of this process, as far as the system tells; None.
        model_calls, model_sequences: of the pipeline's model.
        reward_forwards, reward_backwards: sequences through models of the rewards, and those that were
            differentiated.
    """

    def __init__(self, pipe: Any, rewards: Sequence[Any]):
        self._pipe, self._rewards = pipe, rewards
        self.seconds = self.process_seconds = 0.0
        self.peak_memory: int | None = None
        self.model_calls = self.model_sequences = self.reward_forwards = self.reward_backwards = 0

    def __enter__(self) -> "Meter":
        with ExitStack() as hooks:
            for module in _denoisers(self._pipe):
                hooks.callback(module.register_forward_hook(self._model_called, with_kwargs=True).remove)
            for module in _modules(self._rewards):
                hooks.callback(module.register_forward_hook(self._reward_called, with_kwargs=True).remove)
            self._hooks = hooks.pop_all()
        self._peak = _peak_of(self._pipe)
        self._clock = Clock()
        self._clock.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clock.__exit__()
        self.seconds, self.process_seconds = self._clock.wall, self._clock.process
        self.peak_memory = self._peak()
        self._hooks.close()

    def _model_called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.model_calls += 1
        self.model_sequences += _sequences(args, kwargs)

    def _reward_called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        count = _sequences(args, kwargs)
        self.reward_forwards += count
        found = next((one for one in _tensors(output) if one.requires_grad), None)
        if found is not None:
            found.register_hook(lambda grad: self._differentiated(count))

    def _differentiated(self, count: int) -> None:
        self.reward_backwards += count


def _denoisers(pipe: Any) -> list[nn.Module]:
    found = (getattr(pipe, name, None) for name in _DENOISERS)
    return next(([one] for one in found if isinstance(one, nn.Module)), [])


def _modules(rewards: Sequence[Any]) -> list[nn.Module]:
    """Of all their terms; a model that two share is there once."""
    found: dict[int, nn.Module] = {}
    for term in (term for reward in rewards for term in terms_of(reward)):
        whole = [term.reward] if isinstance(term.reward, nn.Module) else []
        for value in (*whole, *getattr(term.reward, "__dict__", {}).values()):
            if isinstance(value, nn.Module):
                found[id(value)] = value
    return list(found.values())


def _sequences(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    first = next(iter(_tensors((*args, *kwargs.values()))), None)
    return 0 if first is None or not first.ndim else len(first)


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _peak_of(pipe: Any) -> Callable[[], int | None]:
    """Begins to watch, and gives what says the most there was since."""
    device = next((one.device for module in _denoisers(pipe) for one in module.parameters()), torch.device("cpu"))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device)
    try:
        _CLEAR.write_text("5")  # Linux begins anew with the highest resident set, see proc(5)
    except OSError:
        return lambda: None
    return _highest_resident


def _highest_resident() -> int | None:
    try:
        lines = [line.split() for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
    except OSError:
        return None
    return int(lines[0][1]) * 1024 if lines else None
