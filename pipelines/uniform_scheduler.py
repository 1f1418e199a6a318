"""The reverse process of uniform diffusion, that of diffusers, with a generator for every row."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiscreteDDIMScheduler
from diffusers.schedulers.scheduling_discrete_ddim import DiscreteDDIMSchedulerOutput

# SchedulerMixin has to be a name of this module: `DiffusionPipeline.from_pretrained` looks for it here.
from diffusers.schedulers.scheduling_utils import SchedulerMixin as SchedulerMixin
from torch import Tensor

from redge_guidance.pipelines.sampling import Generators


class UniformDiffusionScheduler(DiscreteDDIMScheduler):
    """diffusers' `DiscreteDDIMScheduler`, which may be given a generator for every row.

    With one generator, or none, it is that scheduler. With a list each row is drawn by itself, without its padding, so
    that its tokens depend on its own generator and logits alone; of a corrector sweep `sampled_tokens` of the output
    are then those of `prev_sample`.
    """

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        temperature: float = 0.0,
        attention_mask: Tensor | None = None,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """As the base class; `attention_mask` `(batch, length)` is False on padding, None: there is none."""

        def draw(logits: Tensor, tokens: Tensor, source: torch.Generator | None) -> Any:
            return super(UniformDiffusionScheduler, self).step(
                logits, timestep, tokens, temperature=temperature, generator=source
            )

        return _row_by_row(draw, "sampled_tokens", model_output, sample, attention_mask, generator, return_dict)

    def step_correct(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        attention_mask: Tensor | None = None,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """As the base class; `attention_mask` as in `step`."""

        def draw(logits: Tensor, tokens: Tensor, source: torch.Generator | None) -> Any:
            return super(UniformDiffusionScheduler, self).step_correct(logits, timestep, tokens, generator=source)

        return _row_by_row(draw, "prev_sample", model_output, sample, attention_mask, generator, return_dict)


def _row_by_row(
    draw: Callable[[Tensor, Tensor, torch.Generator | None], Any],
    drawn: str,
    logits: Tensor,
    sample: Tensor,
    attention_mask: Tensor | None,
    generator: Generators,
    return_dict: bool,
) -> Any:
    """`draw(logits, sample, generator)`, or for each row of its own, padding left out; `drawn` names its tokens."""
    if generator is None or isinstance(generator, torch.Generator):
        output = draw(logits, sample, generator)
        return output if return_dict else output.to_tuple()
    text = torch.ones_like(sample, dtype=torch.bool) if attention_mask is None else attention_mask
    prev_sample, tokens = sample.clone(), sample.clone()
    for row, source in enumerate(generator):
        where = text[row]
        output = draw(logits[row, where][None], sample[row, where][None], source)
        prev_sample[row, where], tokens[row, where] = output.prev_sample[0], getattr(output, drawn)[0]
    log_probs = logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)
    output = DiscreteDDIMSchedulerOutput(prev_sample, tokens, log_probs.exp(), logits)
    return output if return_dict else output.to_tuple()
