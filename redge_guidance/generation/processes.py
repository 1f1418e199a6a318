"""The processes of one run, as `accelerate launch` or `torchrun` starts them."""

import os
from datetime import timedelta
from typing import Any

_PATIENCE = timedelta(days=30)  # whoever is ready waits; where one dies the launcher ends all of them


class Processes:
    """This process among those that share a run.

    Attributes:
        rank, count: its number, from 0, and how many there are.
    """

    def __init__(self) -> None:
        self.rank, self.count = 0, 1
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            import torch
            from accelerate import PartialState

            self._state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_PATIENCE)
            self.rank, self.count = self._state.process_index, self._state.num_processes

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def told_by_first(self, value: Any) -> Any:
        """What the first process passed here; all of them have to ask."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def gathered(self, value: Any) -> list[Any]:
        """What every process passed here, in their order; it waits for all of them."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        found: list[Any] = gather_object([value])
        return found
