"""Guidance inside anybody's loop: `logits = guidance(logits, ids)`."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from redge_guidance.arguments import (
    Images,
    at_the_end,
    check_generators,
    check_shapes,
    put,
    read_images,
    read_progress,
    read_prompts,
)
from redge_guidance.checks import real_number, whole_number
from redge_guidance.config import GuidanceConfig
from redge_guidance.following import Following
from redge_guidance.guidance import Guidance
from redge_guidance.reward import Wanted
from redge_guidance.step import DenoisingStep, Generators
from redge_guidance.stopping import StopRule
from redge_guidance.text import reserved_token_ids
from redge_guidance.trace import Trace


class LogitsGuidance:
    """Moves the logits of a denoising step toward a reward, in a loop of one's own:

        guidance = LogitsGuidance(reward, tokenizer=tokenizer)
        while (ids == tokenizer.mask_token_id).any():
            logits = guidance(model(ids).logits, ids)
            ids = ...  # draw some of the hidden tokens from `logits`

    The result has the shape and dtype of the logits and is theirs but for the free positions. Guidance keeps the prompt
    in mind: what was not free in the first call of a sampling was given. Where a new sampling begins is told from the
    tokens, see `Following`, or by `reset()`. It works under `torch.no_grad()` and `torch.inference_mode()`.

    Mix the logits of classifier-free guidance first, and shift those of a model that predicts the next token.

    Args:
        reward, config, seed, stop_when: as for `guide`.
        tokenizer: the model's, which says what is reserved, what ends a text, and to rewards what the text is; None:
            for images.
        mask_token_id: what a hidden token holds; None: the tokenizer's. Without any (uniform diffusion) every call says
            what is `free`.
        num_steps: calls of a sampling, by which progress is counted; None: a call says its progress, or it is the share
            of the positions first free that are not free any more.
        images: where tokens are those of images, an `ImageDecoder`, or `(codebook, decode)` for it.
        block_length: where a call does not say what is free, it is what is hidden in the first unfinished block of so
            many positions, counted from the first position that was free (LLaDA's blocks); None: all that is hidden.
        remasking: whether the sampler hides again what it has drawn (ReMDM).
        ends: token ids that end a text; None: the tokenizer's.

    Attributes:
        config: the settings in force.
        trace: a `Trace`, one `StepTrace` a guided call, the last 10,000 of them.

    Raises:
        ValueError: as `guide`; neither a tokenizer nor images.

    Example:
        >>> guidance = LogitsGuidance(lambda pixels: pixels.mean((1, 2, 3)), mask_token_id=2, images=(
        ...     torch.tensor([[0.0], [1.0]]), lambda codes: codes.mean(1)[:, :, None, None].expand(-1, 3, 1, 1)))
        >>> guided = guidance(torch.zeros(4, 2), torch.tensor([2, 2, 2, 0]))  # one image, without a batch
        >>> guided.shape, bool((guided[:3, 1] > guided[:3, 0]).all()), guided[3].tolist()
        (torch.Size([4, 2]), True, [0.0, 0.0])
    """

    def __init__(
        self,
        reward: Wanted,
        config: GuidanceConfig | None = None,
        *,
        tokenizer: Any = None,
        mask_token_id: int | None = None,
        num_steps: int | None = None,
        seed: int = 0,
        images: Images | None = None,
        block_length: int | None = None,
        remasking: bool = False,
        ends: Sequence[int] | None = None,
        stop_when: StopRule | None = None,
    ):
        if tokenizer is None and images is None:
            raise ValueError(
                "`tokenizer` must be given, got None; where tokens are those of images, `images=(codebook, decode)`."
            )
        self._guidance = Guidance(reward, config, seed, stop_when, images=images is not None)
        self._tokenizer, self._images = tokenizer, read_images(images)
        mask = getattr(tokenizer, "mask_token_id", None) if mask_token_id is None else mask_token_id
        self._mask = None if mask is None else whole_number("mask_token_id", mask, 0, "it is the id of a token")
        steps = None if num_steps is None else whole_number("num_steps", num_steps, 1, "pass the calls of a sampling")
        if images is not None and block_length is not None:
            raise ValueError(f"`block_length` is for texts, got {block_length} and images; leave it out.")
        self._block_length = None if block_length is None else whole_number("block_length", block_length, 1)
        self._ends = None if ends is None else tuple(ends)
        self._timed = steps is not None
        self._following = Following(tokenizer, self._ends, steps, remasking)
        self._told = False

    @property
    def config(self) -> GuidanceConfig:
        return self._guidance.config

    @property
    def codes(self) -> int | None:
        """Codes of the codebook where tokens are those of images; None: of texts."""
        return None if self._images is None else len(self._images.codebook)

    @property
    def trace(self) -> Trace:
        return self._guidance.trace

    def alike(self) -> "LogitsGuidance":
        """The same guidance, of another loop at the same time; its trace is this one's."""
        other = copy.copy(self)
        other._guidance, other._following = self._guidance.alike(), copy.copy(self._following)
        other._following.reset()
        return other

    def reset(self) -> None:
        """The next call begins a sampling; of the one before, goals that nothing moved are reported."""
        self._guidance.end()
        self._following.reset()

    def __call__(
        self,
        logits: Tensor,
        ids: Tensor,
        free: Tensor | None = None,
        *,
        progress: float | None = None,
        prompts: Sequence[str] | None = None,
        generator: Generators = None,
        temperature: float = 1.0,
        attention_mask: Tensor | None = None,
        given: Tensor | None = None,
        offset: int | None = None,
    ) -> Tensor:
        """Guided logits, of the shape and dtype of `logits`; a new tensor, or `logits` where nothing is guided.

        All tensors may come without the dimension of the batch. -inf stays -inf, and is what reserved tokens become at
        the free positions. In half precision the likeliest token stays the likeliest.

        Args:
            logits: `(batch, block, vocabulary)`, what the loop draws from, at all positions or at `block` of them.
            ids: `(batch, length)` int64, the whole text: prompt, what was drawn, what is hidden.
            free: `(batch, length)` bool, what may be drawn from these logits; None: what holds the mask token, see
                `block_length`.
            progress: share of the denoising steps done before this one, in [0, 1); None: see `num_steps`.
            prompts: what each of the batch was asked for, for rewards that want to know.
            generator: the loop's source of randomness, one or a list of one a row: read, never advanced. Guidance's
                noise is a function of its state, of `seed` and of the number of the call; None: torch's global one.
            temperature: what the loop divides the logits by before it draws; 0 is greedy.
            attention_mask: `(batch, length)`, False or 0 on padding; None: no padding.
            given: `(batch, length)` bool, the prompt; None: what was not free in the first call of the sampling.
            offset: position of the first of the logits; None: they are of the last positions.

        Raises:
            ValueError: tensors of other shapes, numbers out of range, no way to know what is free or how far the
                sampling is. A reward of the wrong kind or shape, not finite, or without gradient.
        """
        alone = ids.ndim == 1
        if alone:
            logits, ids = logits[None], ids[None]
            free, attention_mask, given = (_with_batch(one) for one in (free, attention_mask, given))
        step, where = self.read(
            logits,
            ids,
            free,
            progress=progress,
            prompts=prompts,
            generator=generator,
            temperature=temperature,
            attention_mask=attention_mask,
            given=given,
            offset=offset,
        )
        result = put(logits, where, self.move(step))
        return result[0] if alone else result

    def move(self, step: DenoisingStep) -> Tensor | None:
        """Guided logits `(free positions, vocabulary)`, float32, of what `read` gave; None: leave it."""
        return self._guidance(step)

    def read(
        self,
        logits: Tensor,
        ids: Tensor,
        free: Tensor | None = None,
        *,
        progress: float | None = None,
        prompts: Sequence[str] | None = None,
        generator: Generators = None,
        temperature: float = 1.0,
        attention_mask: Tensor | None = None,
        given: Tensor | None = None,
        offset: int | None = None,
    ) -> tuple[DenoisingStep, Tensor]:
        """A call as a step, and where its free positions are among the logits, `(batch, block)` bool."""
        first = check_shapes(logits, ids, free, attention_mask, given, offset)
        text = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        check_generators(generator, len(ids))
        now, hidden = self._free(ids, free)
        said = read_progress(progress)
        if self._following.see(ids, now | hidden, text, said):
            self._guidance.end()
            self._guidance.begin()
        if free is None and self._block_length is not None:
            now = self._following.block(now, self._block_length)
        block = torch.zeros_like(now)
        block[:, first : first + logits.shape[1]] = True
        now = now & block & text
        if self._images is not None and (hidden & ~now).any():
            raise ValueError(
                "`free` must be all that is hidden where tokens are those of images, with logits there: pixels need a "
                "token at every place."
            )
        heat = real_number("temperature", temperature)
        if not 0 <= heat < float("inf"):
            raise ValueError(f"`temperature` must be a finite number >= 0, got {temperature!r}; 0 is greedy.")
        step = DenoisingStep(
            logits=at_the_end(logits, first, ids.shape[1]),
            ids=ids,
            free=now,
            attention_mask=text & (now | ~hidden),
            temperature=heat or 1.0,
            progress=self._share(said),
            tokenizer=self._tokenizer,
            given=self._following.given if given is None else given.bool(),
            reserved=self._reserved(logits.shape[-1]),
            prompts=read_prompts(prompts, len(ids)),
            images=self._images,
            generator=generator,
            ends=self._ends,
            unending=None if self._tokenizer is None else self._following.unending,
            later=hidden & ~now & text,
            greedy=heat == 0,
        )
        return step, now[:, first : first + logits.shape[1]]

    def _free(self, ids: Tensor, free: Tensor | None) -> tuple[Tensor, Tensor]:
        """What may be drawn now, and what is hidden."""
        hidden = torch.zeros_like(ids, dtype=torch.bool) if self._mask is None else ids == self._mask
        if free is None and self._mask is None:
            raise ValueError(
                "`free` must be given where no token is a mask, `(batch, length)` bool, True where the loop draws; or "
                "pass `mask_token_id` to `LogitsGuidance`."
            )
        return hidden if free is None else free.bool(), hidden

    def _share(self, said: float | None) -> float:
        if said is not None:
            return said
        if self._mask is None and not self._timed:
            raise ValueError(
                "`progress` must be given where no token is a mask, a number in [0, 1), or `num_steps` to "
                "`LogitsGuidance`: nothing else tells how far the sampling is."
            )
        config = self.config
        if self._following.grown and not self._timed and not self._told and (config.start > 0 or config.stop < 1):
            self._told = True
            warnings.warn(
                "the text grows while it is drawn, so that progress, for `start` and `stop`, is only that of what is "
                "there; pass `progress`, or `num_steps` of all blocks.",
                stacklevel=4,
            )
        return self._following.progress()

    def _reserved(self, vocabulary: int) -> list[int]:
        found = reserved_token_ids(self._tokenizer, vocabulary, self._ends)
        return found if self._mask is None or self._mask >= vocabulary else sorted({*found, self._mask})


def _with_batch(one: Tensor | None) -> Tensor | None:
    return None if one is None else one[None]
