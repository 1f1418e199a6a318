"""What a transformer of image tokens is told: classes, or texts."""

from typing import Any

import torch
from torch import Tensor

from redge_guidance.pipelines.image.vq_tokens import codebook_of
from redge_guidance.pipelines.sampling import plain_ids


def takes_text(transformer: Any) -> bool:
    """Whether a transformer is given a text, as a `UVit2DModel`, rather than a class."""
    return "encoder_hidden_size" in transformer.config


def check_parts(transformer: Any, vqvae: Any, tokenizer: Any, text_encoder: Any, mask_token_id: int | None) -> int:
    """The id of a hidden token; a ValueError if the parts of a pipeline do not fit one another."""
    codes, size = len(codebook_of(vqvae)), transformer.config.codebook_size
    if codes != size:
        raise ValueError(
            f"`vqvae` and `transformer` must have one codebook, got {codes} codes and a transformer for {size}; "
            "take both from the same checkpoint."
        )
    if mask_token_id is None:
        mask_token_id = transformer.config.vocab_size - 1 if takes_text(transformer) else size
    if mask_token_id < size:
        raise ValueError(
            f"`mask_token_id` must lie outside the codebook of {size} codes, got {mask_token_id}; a hidden token "
            "is no image token."
        )
    if takes_text(transformer) and (tokenizer is None or text_encoder is None):
        raise ValueError("`tokenizer` and `text_encoder` must be given with a transformer that is given a text.")
    return mask_token_id


def labels_of(class_labels: Any, num_classes: int) -> Tensor:
    """Labels `(n,)` int64 of one class or several, in a list, an array or a tensor; `num_classes` where there is none.

    Raises:
        ValueError: a label outside the classes, or an empty sequence.
    """
    if class_labels is None:
        return torch.tensor([num_classes])
    labels = plain_ids("class_labels", class_labels, num_classes, f"lie in [0, {num_classes})")
    if not labels:
        raise ValueError(f"`class_labels` must lie in [0, {num_classes}), got none.")
    return torch.tensor(labels)


def embed_texts(
    tokenizer: Any, text_encoder: Any, texts: list[str], image_size: int, device: torch.device
) -> dict[str, Tensor]:
    """What a `UVit2DModel` is given of texts, and of the size of the image in pixels."""
    length = tokenizer.model_max_length
    ids = tokenizer(texts, return_tensors="pt", padding="max_length", truncation=True, max_length=length).input_ids
    output = text_encoder(ids.to(device), return_dict=True, output_hidden_states=True)
    size = float(image_size)
    micro_conds = torch.tensor([[size, size, 0.0, 0.0, 6.0]], device=device)  # crop and aesthetics as aMUSEd's
    return {
        "pooled_text_emb": output.text_embeds,
        "encoder_hidden_states": output.hidden_states[-2],
        "micro_conds": micro_conds.to(output.text_embeds).expand(len(texts), -1),
    }


class Conditions:
    """What the transformer of `pipe`, a `MaskedImagePipeline`, is given beside the tokens in one call.

    Args:
        pipe: its transformer, tokenizer, text encoder and size of images are read.
        device: of what is given.
    """

    def __init__(self, pipe: Any, device: torch.device):
        self._pipe, self._device = pipe, device

    def given(
        self, class_labels: Any, prompt: Any, negative_prompt: str | None, num_images_per_prompt: int
    ) -> tuple[list[str] | None, dict[str, Tensor]]:
        """The prompts, and what the transformer is given with them or with the labels.

        Raises:
            ValueError: classes for a transformer of texts, texts for one of classes, or a label outside the classes.
        """
        transformer = self._pipe.transformer
        if not takes_text(transformer):
            if prompt is not None or negative_prompt is not None:
                raise ValueError("`prompt` is for a transformer that is given a text; this one has `class_labels`.")
            labels = labels_of(class_labels, transformer.config.num_classes)
            return None, {"class_labels": labels.repeat_interleave(num_images_per_prompt).to(self._device)}
        if class_labels is not None:
            raise ValueError("`class_labels` are for a transformer with classes; this one is given a `prompt`.")
        texts = [prompt or ""] if prompt is None or isinstance(prompt, str) else list(prompt)
        texts = [text for text in texts for _ in range(num_images_per_prompt)]
        return texts, self._embed(texts)

    def without(self, batch: int, negative_prompt: str | None) -> dict[str, Tensor]:
        """What the transformer is given without class or text."""
        transformer = self._pipe.transformer
        if takes_text(transformer):
            return self._embed([negative_prompt or ""] * batch)
        return {"class_labels": torch.full((batch,), transformer.config.num_classes, device=self._device)}

    def _embed(self, texts: list[str]) -> dict[str, Tensor]:
        pipe = self._pipe
        return embed_texts(pipe.tokenizer, pipe.text_encoder, texts, pipe.image_size, self._device)
