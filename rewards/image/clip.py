"""How well an image fits a text or another image, as a reward."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from redge_guidance.chats import Prompt
from redge_guidance.finished import to_judge
from redge_guidance.rewards.image.embedding import EmbeddingReward


class CLIPReward(EmbeddingReward):
    """Cosine of an image and a target, `r(x) = <e(x), e(target)>` in [-1, 1], e the unit embeddings of CLIP or SigLIP.

    Cosines of matching pairs differ from those of others by some 0.1 only: take a scale of 100 and above.

    Args:
        model: a `CLIPModel`, `SiglipModel` or the like.
        processor, tokenizer: the model's.
        target: a text; an image, as PIL image or pixels `(3, height, width)` in [0, 1]; a list of these, one for every
            image of a batch; None: the prompts of the pipeline, or those that `score` is told.

    Raises:
        ValueError: a processor that cannot be redone with gradients, or a target of another kind. When called: no
            target and no prompts, or as many targets as do not fit the images.

    Source: CLIPScore, arXiv 2104.08718, without its factor 2.5 and its floor at 0; SigLIP, arXiv 2303.15343.
    """

    highest = 1.0

    def __init__(self, model: Any, processor: Any, tokenizer: Any, target: Any = None):
        super().__init__(model, processor, tokenizer)
        targets = list(target) if isinstance(target, list | tuple) else [target]
        self._targets: Tensor | None = None
        if target is not None:
            self._targets = torch.stack([self._embed_target(one) for one in targets])
        self.whole_batch = len(targets) > 1

    def __call__(self, sample: Any) -> Tensor:
        self._check_targets(len(sample) // sample.tokens.draws)
        return super().__call__(sample)

    def value(self, pixel_values: Tensor, prompts: Sequence[str] | None) -> Tensor:
        return self._likeness(pixel_values, self._directions(len(pixel_values), prompts))

    @torch.no_grad()
    def score(self, samples: Tensor, prompts: Sequence[Prompt] | None = None, batch_size: int = 32) -> Tensor:
        if self._targets is None or len(self._targets) == 1:
            return super().score(samples, prompts, batch_size)
        samples, prompts, batch_size = to_judge(samples, prompts, batch_size)
        self._check_targets(len(samples))
        directions, values = self._directions(len(samples), None), []
        for first in range(0, len(samples), batch_size):  # the targets of these images, and not the first ones
            rows = slice(first, first + batch_size)
            values.append(self._likeness(self.pixel_values(samples[rows]), directions[rows]).cpu())
        return torch.cat(values) if values else torch.zeros(0)

    def _directions(self, count: int, prompts: Sequence[str] | None) -> Tensor:
        """Unit embeddings of what `count` images are to be like, `(count, dim)`."""
        if self._targets is None:
            if prompts is None:
                raise ValueError(
                    "`target` is None and there are no prompts to the images; make the reward with `target=`, a text "
                    "or an image, or let `score` or the pipeline know the `prompts`."
                )
            return self.embed_texts(prompts)
        if count % len(self._targets):
            self._check_targets(count)
        return self._targets.repeat(count // len(self._targets), 1)

    def _check_targets(self, batch: int) -> None:
        """Nobody can tell whether a pipeline that makes two images of a prompt has them side by side."""
        if self._targets is not None and len(self._targets) not in (1, batch):
            raise ValueError(
                f"`target` must be one, or one for every image of a batch; got {len(self._targets)} targets for "
                f"{batch} images. Repeat them in the order of the images, or leave `target` out for the prompts."
            )

    def _likeness(self, pixel_values: Tensor, directions: Tensor) -> Tensor:
        found = self.embed_images(pixel_values)
        return (found * directions.to(found.device)).sum(-1)

    @torch.no_grad()
    def _embed_target(self, target: Any) -> Tensor:
        if isinstance(target, str):
            return self.embed_texts([target])[0]
        if isinstance(target, Tensor):
            pixel_values = self.pixel_values(target[None] if target.ndim == 3 else target)
        elif hasattr(target, "convert"):  # a PIL image
            pixel_values = self.processor(target.convert("RGB"), return_tensors="pt")["pixel_values"]
        else:
            raise ValueError(f"`target` must be a text or an image, got {type(target).__name__}.")
        return self.embed_images(pixel_values.to(next(self.model.parameters())))[0]
