"""What rewards of models that embed images and texts in one space have in common: CLIP, SigLIP, and their kin."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from redge_guidance.rewards.image.model_reward import ImageModelReward


class EmbeddingReward(ImageModelReward):
    """A model with `get_image_features` and `get_text_features`; both embeddings are made unit vectors.

    Args:
        model: a `CLIPModel`, `SiglipModel` or the like.
        processor, tokenizer: the model's.
    """

    auto_class: ClassVar[Any] = AutoModel

    def __init__(self, model: Any, processor: Any, tokenizer: Any):
        super().__init__(model, processor)
        self.tokenizer = tokenizer
        self._of_texts: dict[str, Tensor] = {}

    @classmethod
    def processors(cls, path: str, hub: dict[str, Any]) -> list[Any]:
        return [*super().processors(path, hub), AutoTokenizer.from_pretrained(path, **hub)]

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        """`(batch, dim)` float32 of length 1."""
        return unit_embedding(self.model.get_image_features(pixel_values=pixel_values))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
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
            self._of_texts |= zip(new, unit_embedding(self.model.get_text_features(**known)), strict=True)
        return torch.stack([self._of_texts[text] for text in texts])


def unit_embedding(features: Any) -> Tensor:
    """What a model found of images or texts as `(batch, dim)` float32 of length 1."""
    found = getattr(features, "pooler_output", features)  # newer transformers return an output object
    return torch.nn.functional.normalize(found.float(), dim=-1)
