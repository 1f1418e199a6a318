"""Which samples are drawn together: alike lengths, and the same batches whoever draws them."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from redge_guidance.generation.requests import Line, Request

logger = logging.getLogger(__name__)

_WINDOW = 8  # batches among which samples are sorted by length
_Found = TypeVar("_Found")
_HELP = (
    "out of memory with one sample in a batch; what helps: fewer `num_draws` (1) or a smaller `support` in "
    "GuidanceConfig, a shorter `gen_length`, `dtype` bfloat16, of images `decode_chunk_size=1`, or a model that is "
    "spread over devices or kept on the CPU (`device_map`, `enable_model_cpu_offload`)"
)


def windows(
    requests: Iterable[Request], batch_size: int, kind: Callable[[Line], int] = lambda line: 0
) -> Iterator[list[list[Request]]]:
    """The requests in batches, some batches at a time: within a window those of one `kind`, short prompts first.

    Which requests share a batch is a function of the input and of `batch_size` alone, so that a run that was
    interrupted, or is shared by several processes, computes what another would have.
    """
    source = iter(requests)
    while window := list(itertools.islice(source, _WINDOW * batch_size)):
        kinds = {request.key: kind(request.line) for request in window}
        window.sort(key=lambda request: (kinds[request.key], _length(request)))  # stable: else as in the input
        alike = [list(group) for _, group in itertools.groupby(window, lambda request: kinds[request.key])]
        yield [group[first : first + batch_size] for group in alike for first in range(0, len(group), batch_size)]


def _length(request: Request) -> int:
    prompt = request.line.prompt
    if isinstance(prompt, list):
        return sum(len(str(turn["content"])) for turn in prompt)
    return len(prompt) if isinstance(prompt, str) else 0


class Halving:
    """Runs batches, and halves those that the memory does not hold.

    Attributes:
        largest: samples that are run together from now on.
    """

    def __init__(self, largest: int):
        self.largest = largest

    def __call__(self, run: Callable[[Sequence[Request]], list[_Found]], batch: Sequence[Request]) -> list[_Found]:
        """`run(batch)`, in as many parts as the memory asks for.

        Raises:
            MemoryError: one sample is too many, with what would help.
        """
        found: list[_Found] = []
        rest = list(batch)
        while rest:
            part = rest[: self.largest]
            try:
                done = run(part)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise MemoryError(f"{_HELP}. {_first_line(error)}") from error
                self.largest = len(part) // 2
                logger.warning(
                    "out of memory with %d samples in a batch; going on with %d, which `batch_size` can begin with",
                    len(part),
                    self.largest,
                )
            else:
                found += done
                rest = rest[len(part) :]
                continue
            _empty_caches()  # when the error, and what it holds, is gone
        return found


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA, MPS and the CPU say it each in their way."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    told = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in told or "can't allocate memory" in told)


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _empty_caches() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
