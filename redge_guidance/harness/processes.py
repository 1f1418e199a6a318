"""Several processes of one evaluation, as `accelerate launch` starts them."""

import os
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Processes:
    """This process, counted from 0, among `number`."""

    rank: int = 0
    number: int = 1

    @classmethod
    def of_environment(cls) -> "Processes":
        """Joined, where a launcher has started several."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=not torch.accelerator.is_available())  # else each of the CPU believes itself alone
        return cls(state.process_index, state.num_processes)

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Of all processes, one after the other: `(number * n, ...)`, or `(number,)` of numbers."""
        if self.number == 1:
            return tensor
        from accelerate.utils import gather

        gathered: Any = gather(tensor.reshape(1) if tensor.dim() == 0 else tensor)
        result: torch.Tensor = gathered
        return result

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """A list of one a process, in the process `dst`, None elsewhere."""
        if self.number == 1:
            return [obj]
        found: list[Any] | None = [None] * self.number if self.rank == dst else None
        torch.distributed.gather_object(obj, found, dst=dst)
        return found

    def barrier(self) -> None:
        """Wait for all."""
        if self.number > 1:
            torch.distributed.barrier()
