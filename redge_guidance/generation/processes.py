"""The processes of one run, as `accelerate launch` or `torchrun` starts them."""

import functools
import os
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

_PATIENCE = timedelta(days=30)  # whoever is ready waits; where one dies the launcher ends all of them


class ElsewhereError(Exception):
    """What another process of the run has to say; it stops this one too."""


class ElsewhereValueError(ElsewhereError, ValueError):
    """A ValueError of the first process."""


class ElsewhereOSError(ElsewhereError, OSError):
    """An OSError of the first process."""


class ProcessEndedError(ElsewhereError, ConnectionError):
    """Another process ended before the run was done."""


class Processes:
    """This process among those that share a run.

    They talk by way of the CPU, whatever devices they compute on.

    Attributes:
        rank, count: its number, from 0, and how many there are.
    """

    def __init__(self) -> None:
        self.rank, self.count, self._group = 0, 1, None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from torch import distributed

            if distributed.is_initialized():
                self._group = _beside(distributed.group.WORLD)
            else:
                # one that fails before it gets here is never met: whoever waits has to hear that the launcher ends all
                _hearing(lambda: distributed.init_process_group("gloo", timeout=_PATIENCE))
            self.rank, self.count = distributed.get_rank(), distributed.get_world_size()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def shared(self, work: Callable[[], Any]) -> Any:
        """What the first process does for all of them; all have to ask.

        Raises:
            ValueError, OSError: what the work raises is raised in all; in the others it is an `ElsewhereError` too.
            ProcessEndedError: another process is gone.
        """
        found, error = None, None
        if self.is_first:
            try:
                found = work()
            except (ValueError, OSError) as raised:
                error = raised
        if self.count == 1:
            told = None
        else:
            found, told = self.gathered((found, None if error is None else (isinstance(error, OSError), str(error))))[0]
        if error is not None:
            raise error
        if told is not None:
            raise (ElsewhereOSError if told[0] else ElsewhereValueError)(told[1])
        return found

    def gathered(self, value: Any) -> list[Any]:
        """What every process passed here, in their order; it waits for all of them.

        Raises:
            ProcessEndedError: another process is gone.
        """
        if self.count == 1:
            return [value]
        from torch import distributed

        found: list[Any] = [None] * self.count
        try:
            distributed.all_gather_object(found, value, group=self._group)
        except RuntimeError as error:
            raise ProcessEndedError("another process of the run ended before it was done; see its error.") from error
        return found


def _hearing(work: Callable[[], None]) -> None:
    """`work()` in a thread of its own, so that signals are heard while it waits outside of Python."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # for the thread that waits
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(1.0)
    if raised:
        raise raised[0]


@functools.cache
def _beside(world: Any) -> Any:
    """A group of the CPU beside what somebody made."""
    from torch import distributed

    return distributed.new_group(backend="gloo", timeout=_PATIENCE)
