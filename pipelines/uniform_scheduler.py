"""The reverse process of uniform diffusion, that of diffusers, with a generator for every row."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiscreteDDIMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_discrete_ddim import DiscreteDDIMSchedulerOutput

# SchedulerMixin has to be a name of this module: `DiffusionPipeline.from_pretrained` looks for it here.
from diffusers.schedulers.scheduling_utils import SchedulerMixin as SchedulerMixin
from torch import Tensor

from redge_guidance.checks import real_number, whole_number
from redge_guidance.pipelines.sampling import Generators

_PSI = ("constant", "constant-remdm", "max-capped", "max-rescale")


class UniformDiffusionScheduler(DiscreteDDIMScheduler):
    """diffusers' `DiscreteDDIMScheduler`, which may be given a generator for every row.

    With one generator, or none, it is that scheduler. With a list each row is drawn by itself, without its padding, so
    that its tokens depend on its own generator and logits alone; of a corrector sweep `sampled_tokens` of the output
    are then those of `prev_sample`.

    With `psi` it is one of the Psi-samplers of Duo (arXiv 2602.21185): each position takes the posterior's token with
    probability kappa, and else the clean token that was drawn, corrupted anew to the next noise level. With alpha_t and
    alpha_s the shares that survive before and after the step, kappa is, by Duo's names,

    - `"pure-posterior"`: 1; `"pure-pc"`: 0; `"constant-ETA"`: eta;
    - `"constant-remdm-ETA"`, `"max-capped-ETA"`, `"max-rescale-ETA"`: `1 - sigma / (1 - alpha_s)`, at least 0, where
      sigma is eta, `min(eta, (1 - alpha_s) / alpha_t)`, and eta times that (eta where alpha_t is 0).

    Args:
        num_inference_steps, corrector_steps, corrector_k, corrector_selection, corrector_selection_tau: as diffusers'.
        psi: one of the above, with a number in [0, 1] for ETA.

    Raises:
        ValueError: another `psi`.
    """

    @register_to_config
    def __init__(
        self,
        num_inference_steps: int = 32,
        corrector_steps: int = 0,
        corrector_k: int = 1,
        corrector_selection: str = "lowest_log_margin",
        corrector_selection_tau: float = 1.0,
        psi: str = "pure-posterior",
    ):
        steps = whole_number("num_inference_steps", num_inference_steps, 1)
        sweeps, positions = (
            whole_number("corrector_steps", corrector_steps, 0),
            whole_number("corrector_k", corrector_k, 1),
        )
        tau = real_number("corrector_selection_tau", corrector_selection_tau)
        super().__init__(steps, sweeps, positions, corrector_selection, tau)
        self._mode, self._eta = _psi(psi)

    def kappa(self, step_index: int) -> float:
        """Probability of the posterior's token in a step, counted from 0."""
        if self._mode in ("posterior", "constant") or step_index + 1 >= self.num_inference_steps:
            return self._eta if self._mode == "constant" else 1.0
        steps: int = self.num_inference_steps
        alpha_t, alpha_s = step_index / steps, (step_index + 1) / steps
        capped = min(self._eta, (1 - alpha_s) / alpha_t) if alpha_t > 0 else self._eta
        sigma = {
            "constant-remdm": self._eta,
            "max-capped": capped,
            "max-rescale": self._eta * capped if alpha_t > 0 else self._eta,
        }[self._mode]
        return min(1.0, max(0.0, 1 - sigma / (1 - alpha_s)))

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
            output = super(UniformDiffusionScheduler, self).step(
                logits, timestep, tokens, temperature=temperature, generator=source
            )
            return self._corrupted(output, int(timestep), logits.shape[-1], source)

        return _row_by_row(draw, "sampled_tokens", model_output, sample, attention_mask, generator, return_dict)

    def _corrupted(self, output: Any, step_index: int, vocabulary: int, generator: torch.Generator | None) -> Any:
        """The output of a step, some of whose tokens are clean ones that were corrupted anew."""
        kappa = self.kappa(step_index)
        if kappa == 1:
            return output
        device = output.prev_sample.device
        shape, source = output.prev_sample.shape, device if generator is None else generator.device
        keep, stays = torch.rand((2, *shape), generator=generator, device=source).to(device)
        noise = torch.randint(vocabulary, shape, generator=generator, device=source).to(device)
        again = torch.where(stays < (step_index + 1) / self.num_inference_steps, output.sampled_tokens, noise)
        output.prev_sample = torch.where(keep < kappa, output.prev_sample, again)
        return output

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
            if logits.device.type == "mps":  # a sweep is computed in float64
                if source is not None:
                    raise ValueError(
                        f"`generator` must be on the CPU for corrector steps on {logits.device}, which has no float64, "
                        f"got one on {source.device}; make it with `torch.Generator()`."
                    )
                logits, tokens = logits.cpu(), tokens.cpu()
            return super(UniformDiffusionScheduler, self).step_correct(logits, timestep, tokens, generator=source)

        return _row_by_row(draw, "prev_sample", model_output, sample, attention_mask, generator, return_dict)


def _psi(name: str) -> tuple[str, float]:
    """Mode and eta of a Psi-sampler."""
    if name in ("pure-posterior", "pure-pc"):
        return ("posterior", 1.0) if name == "pure-posterior" else ("constant", 0.0)
    mode, _, eta = name.rpartition("-")
    try:
        value = float(eta)
    except ValueError:
        value = -1.0
    if mode not in _PSI or not 0 <= value <= 1:
        raise ValueError(
            f"`psi` must be pure-posterior, pure-pc, or one of {', '.join(_PSI)} with -ETA in [0, 1] behind it, "
            f"got {name!r}."
        )
    return mode, value


def where_drawn(
    draw: Callable[[Tensor, Tensor, torch.Generator | None], Any],
    logits: Tensor,
    sample: Tensor,
    generator: torch.Generator | None,
) -> Any:
    """`draw(logits, sample, generator)` on the device of the generator, with its output on that of the logits."""
    source = logits.device if generator is None else generator.device
    output = draw(logits.to(source), sample.to(source), generator)
    fields = (output.prev_sample, output.sampled_tokens, output.sampled_probs)
    return DiscreteDDIMSchedulerOutput(*(field.to(logits.device) for field in fields), logits)


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
        output = where_drawn(draw, logits, sample, generator)
        return output if return_dict else output.to_tuple()
    text = torch.ones_like(sample, dtype=torch.bool) if attention_mask is None else attention_mask
    prev_sample, tokens = sample.clone(), sample.clone()
    for row, source in enumerate(generator):
        where = text[row]
        output = where_drawn(draw, logits[row, where][None], sample[row, where][None], source)
        prev_sample[row, where], tokens[row, where] = output.prev_sample[0], getattr(output, drawn)[0]
    log_probs = logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)
    output = DiscreteDDIMSchedulerOutput(prev_sample, tokens, log_probs.exp(), logits)
    return output if return_dict else output.to_tuple()
