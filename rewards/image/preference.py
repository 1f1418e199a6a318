"""What people prefer to see, as a reward: a model of images and their prompts."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from redge_guidance.rewards.image.embedding import EmbeddingReward


class ImagePreferenceReward(EmbeddingReward):
    """What people preferred for a prompt: `r(x) = exp(s) <e(x), e(prompt)>`, s the model's learned logit scale.

    For PickScore, HPS and other preference models that are CLIP models. A difference of 1 is one nat of the odds that
    a person prefers an image to another.

    Args:
        model, processor, tokenizer: as for `CLIPReward`.
        prompt: what the images are to show; None: the prompts of the pipeline, or those that `score` is told.

    Raises:
        ValueError: a model without a logit scale, or a processor that cannot be redone with gradients. When called: no
            prompt and no prompts.

    Source: Pick-a-Pic, arXiv 2305.01569, section 4; HPS v2, arXiv 2306.09341.
    """

    def __init__(self, model: Any, processor: Any, tokenizer: Any, prompt: str | None = None):
        super().__init__(model, processor, tokenizer)
        if not isinstance(getattr(model, "logit_scale", None), Tensor):
            raise ValueError(f"`model` must have a `logit_scale`, got {type(model).__name__}; use CLIPReward.")
        self.prompt = prompt

    def value(self, pixel_values: Tensor, prompts: Sequence[str] | None) -> Tensor:
        prompts = prompts if self.prompt is None else [self.prompt] * len(pixel_values)
        if prompts is None:
            raise ValueError(
                "`prompt` is None and there are no prompts to the images; make the reward with `prompt=`, or let "
                "`score` or the pipeline know the `prompts`."
            )
        found = self.embed_images(pixel_values)
        cosine = (found * self.embed_texts(prompts).to(found.device)).sum(-1)
        scale: Tensor = self.model.logit_scale.exp().float()
        return scale.to(found.device) * cosine
