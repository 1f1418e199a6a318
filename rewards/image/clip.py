"""Rewards of models that embed images and texts in one space: CLIP, SigLIP, and preference models built on them."""

from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from redge_guidance.rewards.image.model_reward import ImageModelReward


class _EmbeddingReward(ImageModelReward):
    """A model with `get_image_features` and `get_text_features`; both embeddings are made unit vectors."""

    auto_class: ClassVar[Any] = AutoModel

    def __init__(self, model: Any, processor: Any, tokenizer: Any):
        super().__init__(model, processor)
        self.tokenizer = tokenizer
        self._of_texts: dict[str, Tensor] = {}

    @classmethod
    def _processors(cls, path: str, hub: dict[str, Any]) -> list[Any]:
        return [*super()._processors(path, hub), AutoTokenizer.from_pretrained(path, **hub)]

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        """`(batch, dim)` float32 of length 1."""
        return _unit(self.model.get_image_features(pixel_values=pixel_values))

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """`(len(texts), dim)` float32 of length 1; every text is embedded once in the life of the reward."""
        new = sorted(set(texts) - set(self._of_texts))
        if new:
            config = getattr(self.model.config, "text_config", self.model.config)
            length = min(self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", 77))
            padding = "max_length" if "siglip" in type(self.model).__name__.lower() else True  # as it was trained
            batch = self.tokenizer(new, padding=padding, truncation=True, max_length=length, return_tensors="pt")
            device = next(self.model.parameters()).device
            known = {key: batch[key].to(device) for key in ("input_ids", "attention_mask") if key in batch}
            if padding == "max_length":
                known.pop("attention_mask", None)
            self._of_texts |= zip(new, _unit(self.model.get_text_features(**known)), strict=True)
        return torch.stack([self._of_texts[text] for text in texts])


class CLIPReward(_EmbeddingReward):
    """Cosine of an image and a target, `r(x) = <e(x), e(target)>` in [-1, 1], e the unit embeddings of CLIP or SigLIP.

    Cosines of matching pairs differ from those of others by some 0.1 only: take a scale of 100 and above.

    Args:
        model: a `CLIPModel`, `SiglipModel` or the like.
        processor, tokenizer: the model's.
        target: a text; an image, as PIL image or pixels `(3, height, width)` in [0, 1]; a list of these, one for every
            image of a batch; None: the prompts of the pipeline.

    Raises:
        ValueError: a processor that cannot be redone with gradients, or a target of another kind. When called: no
            target and no prompts, or as many targets as do not fit the images.

    Source: CLIPScore, arXiv 2104.08718, without its factor 2.5 and its floor at 0; SigLIP, arXiv 2303.15343.
    """

    def __init__(self, model: Any, processor: Any, tokenizer: Any, target: Any = None):
        super().__init__(model, processor, tokenizer)
        targets = list(target) if isinstance(target, list | tuple) else [target]
        self._targets: Tensor | None = None
        if target is not None:
            self._targets = torch.stack([self._embed_target(one) for one in targets])

    def value(self, pixel_values: Tensor, prompts: list[str] | None) -> Tensor:
        if self._targets is None:
            if prompts is None:
                raise ValueError(
                    "`target` is None and the pipeline has no prompts; pass `target=`, a text or an image."
                )
            targets = self.embed_texts(prompts)
        else:
            targets = self._targets
            if len(pixel_values) % len(targets):
                raise ValueError(
                    f"`target` must be one, or one for every image of a batch; got {len(targets)} targets for "
                    f"{len(pixel_values)} images."
                )
            targets = targets.repeat(len(pixel_values) // len(targets), 1)
        return (self.embed_images(pixel_values) * targets).sum(-1)

    @torch.no_grad()
    def _embed_target(self, target: Any) -> Tensor:
        if isinstance(target, str):
            return self.embed_texts([target])[0]
        if isinstance(target, Tensor):
            pixel_values = self._pixel_values(target[None] if target.ndim == 3 else target)
        elif hasattr(target, "convert"):  # a PIL image
            pixel_values = self.processor(target.convert("RGB"), return_tensors="pt")["pixel_values"]
        else:
            raise ValueError(f"`target` must be a text or an image, got {type(target).__name__}.")
        return self.embed_images(pixel_values.to(next(self.model.parameters())))[0]


class ImagePreferenceReward(_EmbeddingReward):
    """What people preferred for a prompt: `r(x) = exp(s) <e(x), e(prompt)>`, s the model's learned logit scale.

    For PickScore, HPS and other preference models that are CLIP models. A difference of 1 is one nat of the odds that
    a person prefers an image to another.

    Args:
        model, processor, tokenizer: as for `CLIPReward`.
        prompt: what the images are to show; None: the prompts of the pipeline.

    Source: Pick-a-Pic, arXiv 2305.01569, section 4; HPS v2, arXiv 2306.09341.
    """

    def __init__(self, model: Any, processor: Any, tokenizer: Any, prompt: str | None = None):
        super().__init__(model, processor, tokenizer)
        if not isinstance(getattr(model, "logit_scale", None), Tensor):
            raise ValueError(f"`model` must have a `logit_scale`, got {type(model).__name__}; use CLIPReward.")
        self.prompt = prompt

    def value(self, pixel_values: Tensor, prompts: list[str] | None) -> Tensor:
        prompts = prompts if self.prompt is None else [self.prompt] * len(pixel_values)
        if prompts is None:
            raise ValueError("`prompt` is None and the pipeline has no prompts; pass `prompt=`.")
        cosine = (self.embed_images(pixel_values) * self.embed_texts(prompts)).sum(-1)
        scale: Tensor = self.model.logit_scale.exp().float()
        return scale * cosine


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

    def value(self, pixel_values: Tensor, prompts: list[str] | None) -> Tensor:
        if hasattr(self.model, "get_image_features"):
            embeddings = _unit(self.model.get_image_features(pixel_values=pixel_values))
        else:
            embeddings = _unit(self.model(pixel_values=pixel_values).image_embeds)
        scores: Tensor = self.head(embeddings)
        return scores[:, 0]


def _unit(features: Any) -> Tensor:
    found = getattr(features, "pooler_output", features)  # newer transformers return an output object
    return torch.nn.functional.normalize(found.float(), dim=-1)


def _read_head(path: Path) -> torch.nn.Module:
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(f"`head` must be a file of safetensors, got {path}; a pickle is not read.")
    weights = load_file(path)
    names = sorted((name for name in weights if name.endswith("weight")), key=_numbers)
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
