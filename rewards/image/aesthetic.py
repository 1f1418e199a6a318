"""How people rate an image, as a reward."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel

from redge_guidance.rewards.image.embedding import unit_embedding
from redge_guidance.rewards.image.model_reward import ImageModelReward


class AestheticReward(ImageModelReward):
    """What people rated, `r(x) = head(e(x))`: a head on the unit embedding e of a CLIP model, usually from 1 to 10.

    Args:
        model: a `CLIPModel` or `CLIPVisionModelWithProjection`.
        processor: its image processor.
        head: file of safetensors with the weights of linear layers one after the other, `...weight` `(out, in)` and
            `...bias`, in the order of their names' numbers; nothing is between them, as in LAION's aesthetic
            predictors. Or a module from `(batch, dim)` to `(batch, 1)`.

    Raises:
        ValueError: a head that is no such file, or whose layers do not fit one another or the model.
    """

    auto_class: ClassVar[Any] = AutoModel

    def __init__(self, model: Any, processor: Any, head: Any):
        super().__init__(model, processor)
        parameter = next(self.model.parameters())
        head = head if isinstance(head, torch.nn.Module) else _read_head(Path(head))
        self.head = head.to(parameter.device, torch.float32).eval().requires_grad_(False)

    def value(self, pixel_values: Tensor, prompts: Sequence[str] | None) -> Tensor:
        if hasattr(self.model, "get_image_features"):
            embeddings = unit_embedding(self.model.get_image_features(pixel_values=pixel_values))
        else:
            embeddings = unit_embedding(self.model(pixel_values=pixel_values).image_embeds)
        scores: Tensor = self.head(embeddings)
        return scores[:, 0]


def _read_head(path: Path) -> torch.nn.Module:
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(f"`head` must be a file of safetensors, got {path}; a pickle is not read.")
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"`head` {path} cannot be read: {error}; download it again.") from error
    names = sorted((name for name in weights if name.endswith("weight")), key=_numbers)
    flat = [f"{name} {tuple(weights[name].shape)}" for name in names if weights[name].ndim != 2]
    if flat:
        raise ValueError(f"`head` must be linear layers, with weights (out, in), got {flat[0]}.")
    layers = []
    for name in names:
        weight, bias = weights[name].float(), weights.get(name.removesuffix("weight") + "bias")
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        layer.weight.data = weight
        if bias is not None:
            layer.bias.data = bias.float()
        layers.append(layer)
    widths = [(layer.in_features, layer.out_features) for layer in layers]
    chained = all(a[1] == b[0] for a, b in pairwise(widths))
    if not layers or not chained or widths[-1][1] != 1:
        raise ValueError(f"`head` must be linear layers one after the other down to one output, got {widths}.")
    return torch.nn.Sequential(*layers)


def _numbers(name: str) -> list[int]:
    return [int(part) for part in name.split(".") if part.isdigit()]
