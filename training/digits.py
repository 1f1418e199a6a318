"""The MNIST digits, split once and for all."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

NUM_VALIDATION = 500


@dataclass
class Digits:
    """Images `(n, 1, 28, 28)` in [0, 1] and labels `(n,)`."""

    images: Tensor
    labels: Tensor

    def __getitem__(self, index) -> "Digits":
        return Digits(self.images[index], self.labels[index])

    def __len__(self) -> int:
        return len(self.images)


def load_digits(path: str | Path) -> dict[str, Digits]:
    """`"training"` (8,000), its halves `"first"` and `"second"` for two classifiers, and `"validation"` (500)."""
    with np.load(path) as file:
        images = torch.tensor(file["images"], dtype=torch.float32)[:, None] / 255
        digits = Digits(images, torch.tensor(file["labels"], dtype=torch.long))
    digits = digits[torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))]
    validation, training = digits[:NUM_VALIDATION], digits[NUM_VALIDATION:]
    half = len(training) // 2
    return {"training": training, "first": training[:half], "second": training[half:], "validation": validation}


def augmented(images: Tensor, generator: torch.Generator, shift: float, turn: float) -> Tensor:
    """Images moved by up to `shift` pixels and turned by up to `turn` radians, by bilinear interpolation."""
    uniform = 2 * torch.rand(5, len(images), generator=generator) - 1
    angle, zoom = turn * uniform[0], 1 + 0.1 * uniform[1] * (turn > 0)
    move = 2 * shift * uniform[2:4] / images.shape[-1]
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    theta = torch.stack([cos, -sin, move[0], sin, cos, move[1]], -1).view(-1, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, align_corners=False)


def hidden_tokens(count: int, length: int, generator: torch.Generator, few: bool = False) -> Tensor:
    """`(count, length)` bool: k of every row, chosen at random, with k uniform from 1 to `length`, or mostly small."""
    if few:
        k = 1 + ((length - 1) * torch.rand(count, 1, generator=generator) ** 3).long()
    else:
        k = torch.randint(1, length + 1, (count, 1), generator=generator)
    return torch.rand(count, length, generator=generator).argsort(-1).argsort(-1) < k


def thickened(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images `(n, 1, h, w)` with strokes up to a pixel thicker or thinner: a share of their dilation or erosion."""
    share = 2 * torch.rand(len(images), 1, 1, 1, generator=generator) - 1
    dilated = torch.nn.functional.max_pool2d(images, 3, stride=1, padding=1)
    eroded = -torch.nn.functional.max_pool2d(-torch.nn.functional.pad(images, (0, 1, 0, 1)), 2, stride=1)
    return torch.lerp(images, torch.where(share > 0, dilated, eroded), share.abs())
