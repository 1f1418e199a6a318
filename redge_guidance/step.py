"""One denoising step of a sampler, as guidance needs to know it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redge_guidance.chats import Prompt
from redge_guidance.samples.images import ImageDecoder

Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True, eq=False)
class DenoisingStep:
    """What guidance needs to know of one call of `scheduler.step`.

    Attributes:
        logits: `(batch, block, vocabulary)`, the model's logits at the last `block` positions, as the host has them;
            those at the free positions are read, and nothing is written to them unless `spent`.
        ids: `(batch, length)` int64, the whole context, fixed and free.
        free: `(batch, length)` bool, the positions whose tokens are still to be drawn.
        attention_mask: `(batch, length)` bool, False on padding.
        temperature: what the host divides the logits by before it samples; 1 for greedy decoding.
        progress: share of the denoising steps done before this one, in [0, 1).
        tokenizer: the generator's; None where the host has none.
        given: `(batch, length)` bool, tokens of the prompt, among which an end-of-text token ends nothing; None: none.
        reserved: token ids that guidance forbids at the free positions.
        prompts: what each of the `batch` sequences was asked for, for rewards; None where the host has no texts.
        images: where tokens are those of images, what makes them pixels for the reward; None: the reward sees
            `RelaxedTokens`.
        generator: the sampler's source of randomness, one for the batch or one a sequence; None: torch's global one.
            Guidance reads its state and never advances it.
        ends: token ids that end a text; None: those of the tokenizer, as `end_token_ids` has them.
        unending: `(batch, length)` bool, free positions with given text behind them, at which guidance forbids `ends`;
            None: none, or the host has forbidden them in its logits.
        lead: `(batch, length)` bool, the prompt in front of an answer, none of a text with gaps; None: the beginning of
            `given`.
        classes: `(batch,)`, what class each image was asked to be of; None: none.
        chat: whether the prompts are turns of a chat, so that rewards judge the answers unless told otherwise.
        later: `(batch, length)` bool, positions of the canvas that are drawn in later steps, from logits that are not
            these: later blocks; None: none. They are no text to `attention_mask`.
        coming: number of positions that the host will put behind the canvas, and draw.
        held: `(batch, length)` bool, free positions whose token stays unless the host exchanges it (LLaDA2's editing,
            corrector sweeps); None: none.
        greedy: whether the host takes the likeliest tokens.
        settles: whether what the host has drawn can be exchanged afterwards, so that it may be given the marginals of
            texts of a form and choose its positions by these.
        independent: whether which positions keep what was drawn does not depend on the logits.
        redraws: number of steps to come in which a token that is drawn in this one may be drawn anew, as in uniform
            diffusion and remasking; 0: it stays.
        decisive: whether the host, in this last step, keeps tokens only where it is sure of them, and noise elsewhere.
        spent: whether the guided logits may be written into `logits`, which nobody but the scheduler reads.
    """

    logits: Tensor
    ids: Tensor
    free: Tensor
    attention_mask: Tensor
    temperature: float
    progress: float
    tokenizer: Any
    given: Tensor | None = None
    reserved: Sequence[int] = ()
    prompts: Sequence[Prompt] | None = None
    images: ImageDecoder | None = None
    generator: Generators = None
    ends: Sequence[int] | None = None
    unending: Tensor | None = None
    lead: Tensor | None = None
    classes: Tensor | None = None
    chat: bool = False
    later: Tensor | None = None
    coming: int = 0
    held: Tensor | None = None
    greedy: bool = False
    decisive: bool = False
    settles: bool = False
    independent: bool = False
    redraws: int = 0
    spent: bool = False


_BY_ROW = (
    "logits",
    "ids",
    "free",
    "attention_mask",
    "given",
    "prompts",
    "generator",
    "unending",
    "lead",
    "later",
    "held",
    "classes",
)


def rows_of(step: DenoisingStep, chosen: Tensor) -> DenoisingStep:
    """The step of the sequences `chosen` alone, `(batch,)` bool."""
    if bool(chosen.all()):
        return step
    index = chosen.nonzero()[:, 0]

    def rows(values: Any) -> Any:
        if isinstance(values, Tensor):
            return values[index]
        several = isinstance(values, Sequence) and not isinstance(values, str)
        return [values[k] for k in index.tolist()] if several else values

    return replace(step, **{name: rows(getattr(step, name)) for name in _BY_ROW})


def without_others(step: DenoisingStep, chosen: Tensor) -> DenoisingStep:
    """The step, with nothing free in sequences that are not `chosen`, `(batch,)` bool."""
    return replace(step, free=step.free & chosen[:, None])
