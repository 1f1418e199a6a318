"""Gradients inside `torch.inference_mode()`: guidance leaves it, and works on copies of what was made in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from redge_guidance.step import DenoisingStep


@contextmanager
def gradients_allowed() -> Iterator[None]:
    """In this block tensors are ordinary ones, whatever is in force around it; nothing records a gradient yet.

    Raises:
        RuntimeError: what is computed in it needs a gradient of a tensor that was made under `torch.inference_mode()`,
            as the parameters of a model that was loaded there.
    """
    with torch.inference_mode(False), torch.no_grad():
        try:
            yield
        except RuntimeError as error:
            if "nference tensor" not in str(error):
                raise
            raise RuntimeError(
                "`reward`, and what decodes images for it, must not hold parameters that were made under "
                f"`torch.inference_mode()`, which have no gradient; torch says: {error} Load them outside of it; the "
                "sampler may stay inside."
            ) from error


def outside_inference_mode(step: DenoisingStep) -> DenoisingStep:
    """`step` with copies of those tensors that were made under `torch.inference_mode()`; called outside of it.

    Copies of logits are not `spent`: what is written into them does not reach the host.
    """
    tensors = {field.name: getattr(step, field.name) for field in fields(step)}
    copies: dict[str, Any] = {
        name: one.clone() for name, one in tensors.items() if isinstance(one, Tensor) and one.is_inference()
    }
    images = step.images
    if images is not None and images.codebook.is_inference():
        images = replace(images, codebook=images.codebook.clone())
    if "logits" in copies:
        copies["spent"] = False
    return replace(step, images=images, **copies) if copies or images is not step.images else step
