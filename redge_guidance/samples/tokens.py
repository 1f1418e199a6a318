"""What a reward sees of a text that is being denoised."""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from redge_guidance.chats import Prompt, is_conversation
from redge_guidance.evaluation import call_plain, check_modality
from redge_guidance.precision import Autocast
from redge_guidance.samples.lookup import LookUp, mix
from redge_guidance.text import is_in, special_token_ids, text_mask


@dataclass(frozen=True, eq=False)
class RelaxedTokens:
    """A batch of token sequences, some positions of which are differentiable one-hot samples.

    Attributes:
        ids: `(batch, length)` int64. Hard token ids everywhere; at the free positions those of the sample.
        free: `(batch, length)` bool. The positions being denoised; all others are fixed.
        weights: `(free positions, S)` float. The relaxed sample of the free positions in row-major order, rows on the
            simplex. One column a token of the vocabulary, or of `support`. The path of every gradient.
        support: `(free positions, S)` int64, the token ids that the columns of `weights` stand for; None: column = id.
        hard: whether the rows of `weights` are exactly one-hot, so that an embedding is a look-up.
        attention_mask: `(batch, length)` bool, what counts as text; left padding and all that follows the first
            end-of-text token do not. None: computed by `text_mask` from `ids`, `given` and the tokenizer.
        tokenizer: the generator's tokenizer.
        given: `(batch, length)` bool, tokens of the prompt, in front of or among what is generated; None: none.
        draws: the batch is that many samples of the same texts, all texts of a sample together; so is `support`.
        prompts: what each sequence was asked for, `batch` strings or conversations; None: not known.
        log_probs: `(free positions of one sample, S)`, in nats, without gradient: of the distribution that `weights`
            were drawn from, the same for every draw; None: not known.
        notes: figures that a reward wants kept in the trace, a number or a tensor with one element each, by name.
        ends: token ids that end a text; None: those of the tokenizer, as `end_token_ids` has them.
        lead: `(batch, length)` bool, the prompt in front of an answer, none of a text with gaps; None: the beginning of
            `given`.
        chat: whether the prompts are turns of a chat, so that rewards judge the answers unless told otherwise.
    """

    ids: Tensor
    free: Tensor
    weights: Tensor
    support: Tensor | None = None
    hard: bool = True
    attention_mask: Tensor | None = None
    tokenizer: Any = None
    given: Tensor | None = None
    draws: int = 1
    prompts: Sequence[Prompt] | None = None
    log_probs: Tensor | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    ends: Sequence[int] | None = None
    lead: Tensor | None = None
    chat: bool = False
    modality: ClassVar[str] = "text"

    def __post_init__(self) -> None:
        num_free = int(self.free.sum())
        if self.ids.shape != self.free.shape or self.ids.ndim != 2:
            raise ValueError(
                f"`ids` and `free` must both be (batch, length), got {tuple(self.ids.shape)} and "
                f"{tuple(self.free.shape)}."
            )
        if self.weights.ndim != 2 or len(self.weights) != num_free:
            raise ValueError(
                f"`weights` must be (free positions, S) with {num_free} rows, one for every True in `free`, "
                f"got {tuple(self.weights.shape)}."
            )
        if self.support is not None and self.support.shape != self.weights.shape:
            raise ValueError(
                f"`support` must have the shape of `weights` {tuple(self.weights.shape)}, "
                f"got {tuple(self.support.shape)}."
            )
        if self.draws < 1 or len(self.ids) % self.draws or num_free % self.draws:
            raise ValueError(f"`draws` must divide the batch of {len(self.ids)}, got {self.draws}.")
        if isinstance(self.prompts, str) or is_conversation(self.prompts):
            kind = "the string" if isinstance(self.prompts, str) else "one conversation,"
            raise ValueError(f"`prompts` must be a list of strings or conversations, got {kind} {self.prompts!r:.60}.")
        expected = (num_free // self.draws, self.weights.shape[1])
        if self.log_probs is not None and self.log_probs.shape != expected:
            raise ValueError(f"`log_probs` must be those of one sample, {expected}, got {tuple(self.log_probs.shape)}.")
        if self.prompts is not None and len(self.prompts) != len(self.ids):
            raise ValueError(f"`prompts` must be one a sequence, {len(self.ids)}, got {len(self.prompts)}.")
        if self.attention_mask is None:
            mask = text_mask(self.ids, self.tokenizer, given=self.given, ends=self.ends)
            object.__setattr__(self, "attention_mask", mask)

    def __len__(self) -> int:
        return len(self.ids)

    def evaluate(self, reward: Any) -> Tensor:
        """The reward of these texts, `(batch,)`: any callable is given the sample itself.

        Raises:
            ValueError: a reward of images, or what is not callable.
        """
        check_modality(reward, self.modality)
        return call_plain(reward, self, self.modality, self.prompts)

    def judged(self, answer_only: bool | None = None) -> "RelaxedTokens":
        """These texts as a reward is to judge them: without the `lead` if `answer_only`; None: if this is a chat."""
        lead = self.lead
        if lead is None and self.given is not None:
            lead = self.given.cumprod(-1).bool()
        if lead is None or not (self.chat if answer_only is None else answer_only):
            return self
        assert self.attention_mask is not None
        other = copy.copy(self)
        object.__setattr__(other, "attention_mask", self.attention_mask & ~lead)
        return other

    def finished(self, answer_only: bool | None = None) -> list[str]:
        """The hard ids as strings, `answers()` or `texts()`, as `judged` has it."""
        return self.judged(answer_only).texts()

    def embed(self, table: Tensor) -> Tensor:
        """`sum_v weights[v] * table[v]` at the free positions, `table[ids]` elsewhere.

        A hard sample is looked up, never multiplied with the table; the gradient is that of the sum all the same:
        `d loss / d weights[v] = <d loss / d embedding, table[v]>`.

        Args:
            table: `(vocabulary, dim)`, one row a token id of the generator's tokenizer. Rows for ids that the
                generator does not know are left alone; it may lack rows for ids that are never sampled.

        Returns:
            `(batch, length, dim)` of the dtype of `table`, inside `torch.autocast` too.

        Raises:
            ValueError: a token id without a row.
        """
        if self.ids.numel() and int(self.ids.max()) >= len(table):
            raise ValueError(
                f"`table` must have a row for every token id, got {len(table)} rows and the id {int(self.ids.max())}; "
                "use the input embeddings of a model with the generator's tokenizer."
            )
        with Autocast.off(table.device):
            return table[self.ids].masked_scatter(self.free[..., None], self._embed_free(table))

    def weights_of(self, token_ids: Tensor) -> Tensor:
        """How much of each position is each of some tokens: `(batch, length, n)`, differentiable in `weights`.

        Args:
            token_ids: `(n,)` int64, or a list, distinct.

        Returns:
            The relaxed weights at the free positions, 0 for a token outside the support; 0 or 1 elsewhere.
        """
        token_ids = torch.as_tensor(token_ids, device=self.ids.device)
        fixed = (self.ids[..., None] == token_ids).to(self.weights.dtype)
        if self.support is None:
            relaxed = self.weights[:, token_ids]
        else:
            empty = self.weights.new_zeros(len(self.weights), len(token_ids) + 1)
            relaxed = empty.scatter_add(1, _columns(token_ids, self.support), self.weights)[:, :-1]
        return fixed.masked_scatter(self.free[..., None], relaxed)

    def log_probs_of(self, token_ids: Tensor) -> Tensor:
        """Log-probability of some tokens at each position, in nats: `(texts, length, n)`, without gradient.

        `texts` is the batch of one sample, `len(self) / draws`. Where `log_probs` are not known those of the mean of
        the weights over the draws are taken.

        Args:
            token_ids: `(n,)` int64, or a list, distinct.

        Returns:
            At the free positions that of `log_probs`, -inf for a token outside the support; 0 or -inf elsewhere.
        """
        texts, rows = len(self.ids) // self.draws, len(self.weights) // self.draws
        logs = self.log_probs
        if logs is None:
            logs = self.weights.detach().view(self.draws, rows, -1).mean(0).log()
        token_ids = torch.as_tensor(token_ids, device=self.ids.device)
        fixed = (self.ids[:texts, :, None] == token_ids).to(logs).log()
        if self.support is None:
            relaxed = logs[:, token_ids]
        else:
            column = _columns(token_ids, self.support[:rows])
            empty = logs.new_full((rows, len(token_ids) + 1), -torch.inf)
            relaxed = empty.scatter(1, column, logs)[:, :-1]
        return fixed.masked_scatter(self.free[:texts, :, None], relaxed)

    def text_positions(self) -> Tensor:
        """Positions that `texts()` decodes: no special tokens; `(batch, length)` bool."""
        assert self.attention_mask is not None
        return self.attention_mask & ~is_in(self.ids, special_token_ids(self.tokenizer))

    def texts(self) -> list[str]:
        """The hard ids as strings, special tokens left out and nothing after the end of the text."""
        if self.tokenizer is None:
            raise ValueError("`tokenizer` is None: texts() needs the generator's tokenizer.")
        kept = zip(self.ids.tolist(), self.text_positions().tolist(), strict=True)
        rows = [list(itertools.compress(ids, mask)) for ids, mask in kept]
        texts: list[str] = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return texts

    def answers(self) -> list[str]:
        """`texts()` without the prompt in front; a text with gaps in its prompt is whole."""
        return self.judged(answer_only=True).texts()

    def to(self, device: torch.device | str) -> "RelaxedTokens":
        """The same on another device; gradients come back to where `weights` are."""
        other = copy.copy(self)  # which has been checked, by values that "meta" has not
        for name in _TENSORS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(other, name, value.to(device))
        return other

    def rows(self, which: Tensor) -> "RelaxedTokens":
        """Some of the sequences, `which` `(n,)` int64 in ascending order; figures go to the notes of all."""
        chosen = torch.zeros(len(self), dtype=torch.bool, device=self.ids.device).index_fill_(0, which, True)
        rows = chosen[:, None].expand_as(self.free)[self.free]
        values: dict[str, Any] = {name: getattr(self, name) for name in _TENSORS}
        of_rows = {name: values[name][rows] for name in ("weights", "support") if values[name] is not None}
        if self.log_probs is not None:
            of_rows["log_probs"] = self.log_probs.repeat(self.draws, 1)[rows]
        of_batch = {name: value[which] for name, value in values.items() if value is not None and name not in of_rows}
        prompts = None if self.prompts is None else [self.prompts[k] for k in which.tolist()]
        return replace(self, **of_rows, **of_batch, prompts=prompts, draws=1)

    def _embed_free(self, table: Tensor) -> Tensor:
        """`(free positions, dim)`."""
        # that of one sample, which serves all of them
        support = None if self.support is None else self.support[: len(self.support) // self.draws]
        if self.hard:
            found: Tensor = LookUp.apply(self.weights, table, self.ids[self.free], support)
            return found
        if support is None:
            columns = min(len(table), self.weights.shape[1])
            return self.weights[:, :columns].to(table.dtype) @ table[:columns]
        return mix(self.weights, table, support)


_TENSORS = ("ids", "free", "weights", "support", "attention_mask", "given", "lead", "log_probs")


def _columns(token_ids: Tensor, support: Tensor) -> Tensor:
    """Which of the distinct `token_ids` `(n,)` each entry of `support` is, n for none of them."""
    ordered, order = token_ids.sort()
    place = torch.searchsorted(ordered, support).clamp(max=len(token_ids) - 1)
    return torch.where(ordered[place] == support, order[place], len(token_ids))
