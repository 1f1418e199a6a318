"""What a transformer of image tokens is told: classes, or texts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def labels_of(class_labels: int | Sequence[int] | None, num_classes: int) -> Tensor:
    """Labels `(n,)` int64 of one class or several; `num_classes` where there is none.

    Raises:
        ValueError: a label outside the classes, or an empty sequence.
    """
    if class_labels is None:
        return torch.tensor([num_classes])
    labels = [class_labels] if isinstance(class_labels, int) else [int(label) for label in class_labels]
    wrong = [label for label in labels if not 0 <= label < num_classes]
    if wrong or not labels:
        raise ValueError(f"`class_labels` must lie in [0, {num_classes}), got {wrong[0] if wrong else 'none'}.")
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
