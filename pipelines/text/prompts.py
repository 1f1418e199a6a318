"""Prompts in tokens, and the canvas that they lie on."""

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import jinja2
import torch
from torch import Tensor

from redge_guidance.chats import Prompt, as_messages, check_conversation, is_conversation
from redge_guidance.pipelines.drawing import Canvas
from redge_guidance.pipelines.text.families import ModelFamily
from redge_guidance.text import end_token_id, special_token_ids


class Encoded(str):
    """A text with the token ids that it is to have, special tokens among them; nothing else is put around it.

    For prompts that were tokenized elsewhere: a chat in its template, a context that was cut to fit, one half of a text
    that was tokenized whole. It goes wherever a pipeline takes a string.

    Attributes:
        ids: token ids.
        start: how many of them, at the beginning, the caller did not write, such as a beginning-of-text token.

    >>> Encoded("a b", [0, 3, 4], start=1).ids
    [0, 3, 4]
    """

    ids: list[int]
    start: int

    def __new__(cls, text: str, ids: Sequence[int], start: int = 0) -> "Encoded":
        new = super().__new__(cls, text)
        new.ids, new.start = [int(i) for i in ids], start
        return new

    def __getnewargs__(self) -> tuple[str, list[int], int]:  # type: ignore[override]  # of copies and pickles
        return str(self), self.ids, self.start


_MESSAGE = "{'role': ..., 'content': ...}"


def encode(
    tokenizer: Any, text: str, argument: str, allow_mask: bool = True, needs_start: bool = False
) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before a text, and those of the text; what it puts after a text is left out.

    A text that `needs_start`, since its model predicts every token from the one before, begins with the
    beginning-of-text token, where there is one, even if the tokenizer adds none (Dream's `add_bos_token`).
    """
    if isinstance(text, Encoded):
        return text.ids[: text.start], text.ids[text.start :]
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    mask = tokenizer.mask_token_id
    special = special_token_ids(tokenizer)
    found = [tokenizer.convert_ids_to_tokens(i) for i in ids if i in special and (i != mask or not allow_mask)]
    if found:
        hint = f"; its mask is {tokenizer.mask_token!r}" if allow_mask and mask is not None else ""
        if found[0] == tokenizer.unk_token and found[0] not in text:
            raise ValueError(
                f"`{argument}` must be of signs that the tokenizer knows, got {text!r}, some of which it does not; "
                f"leave them out{hint}."
            )
        raise ValueError(
            f"`{argument}` must not contain reserved tokens, got {found[0]!r} in {text!r}; remove it{hint}."
        )
    if allow_mask and "[MASK]" in text and tokenizer.mask_token not in (None, "[MASK]"):
        warnings.warn(
            f"`{argument}` holds '[MASK]', which is a word to this model; its mask is {tokenizer.mask_token!r}.",
            stacklevel=2,
        )
    ends = {end_token_id(tokenizer), mask}
    start = itertools.takewhile(lambda i: i in special and i not in ends, tokenizer(text).input_ids)
    bos = tokenizer.bos_token_id if needs_start else None
    return list(start) or [bos] * (bos is not None), ids


def chat(tokenizer: Any, prompt: Prompt, argument: str = "prompt") -> list[int]:
    """Ids of a conversation, or of a text as the turn of a user, in the chat template of the tokenizer."""
    if getattr(tokenizer, "chat_template", None) is None:
        hint = "set it to False" if isinstance(prompt, str) else "pass the prompt as a string"
        what = "`use_chat_template`" if isinstance(prompt, str) else f"`{argument}` of messages"
        raise ValueError(f"{what} needs a chat template, and the tokenizer has none; {hint}.")
    messages = as_messages(prompt)
    check_conversation(messages, argument)
    for message in messages:
        encode(tokenizer, message["content"], argument, allow_mask=False)
    try:
        encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    except (jinja2.TemplateError, KeyError, TypeError, ValueError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"`{argument}` cannot be written in the chat template of the tokenizer: {error}. It has turns of {roles}; "
            "leave out what the template does not know."
        ) from error
    return list(encoded["input_ids"])


def as_prompts(prompt: Any, use_chat_template: bool = False, argument: str = "prompt") -> tuple[list[Prompt], bool]:
    """A prompt, or several, as a list, and whether they are turns of a chat.

    >>> as_prompts([{"role": "user", "content": "Hello."}])
    ([[{'role': 'user', 'content': 'Hello.'}]], True)

    Raises:
        ValueError: what is neither a text nor a list of messages, or both of them among each other, where nobody said
            that texts are turns of a chat too.
    """
    prompts = [prompt] if isinstance(prompt, str) or is_conversation(prompt) else prompt
    if not isinstance(prompts, list | tuple):
        raise ValueError(
            f"`{argument}` must be a string or a list of strings, or of messages {_MESSAGE}, got {prompt!r:.200}."
        )
    wrong = [one for one in prompts if not isinstance(one, str) and not is_conversation(one)]
    if wrong:
        raise ValueError(
            f"`{argument}` must be a string or a list of strings, or of messages {_MESSAGE}, got {wrong[0]!r:.200}."
        )
    chats = [not isinstance(one, str) for one in prompts]
    if any(chats) and not all(chats) and not use_chat_template:
        raise ValueError(
            "`prompt` has both strings and lists of messages; pass `use_chat_template=True`, by which a string is the "
            "turn of a user."
        )
    return list(prompts), use_chat_template or any(chats)


def as_texts(prompt: Any, argument: str = "prompt") -> list[str]:
    """A text, or several, as a list; a ValueError if they are no strings."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list | tuple) or not all(isinstance(one, str) for one in prompts):
        raise ValueError(f"`{argument}` must be a string or a list of strings, got {prompt!r}.")
    return list(prompts)


def lay_out(
    tokenizer: Any,
    family: ModelFamily,
    prompts: Sequence[Prompt],
    length: int,
    gen_length: int | None = None,
    use_chat_template: bool = False,
) -> Canvas:
    """The canvas of a batch of prompts, padded on the left.

    Args:
        tokenizer: has an end-of-text token, and a mask token where the diffusion is masked.
        family: whose blocks are drawn whole.
        prompts: texts to continue or to fill in, or conversations, which are always put into the chat template.
        length: of the canvas of a text that fits it.
        gen_length, use_chat_template: as in a call of a pipeline.

    Raises:
        ValueError: a prompt that holds a reserved token, or leaves nothing that a model of shifted logits could predict
            the first token from.
    """
    mask_id, end_id = tokenizer.mask_token_id, end_token_id(tokenizer)
    rows: list[list[Any]] = []
    written: list[list[bool]] = []
    free: list[list[bool]] = []
    for prompt in prompts:
        start, text = (
            ([], chat(tokenizer, prompt))
            if use_chat_template or not isinstance(prompt, str)
            else encode(tokenizer, prompt, "prompt", needs_start=family.shift_logits)
        )
        room = length - len(start) - len(text)
        holes = [i == mask_id for i in text]
        new = max(1, room) if any(holes) else gen_length or max(room, length // 2)
        new += -(len(start) + len(text) + new) % (family.block_size or 1)
        if family.shift_logits and not start and (not text or holes[0]):
            raise ValueError(f"`prompt` must begin with a word for a model of shifted logits, got {prompt!r}.")
        fill = end_id if any(holes) or mask_id is None else mask_id
        rows.append(start + text + [fill] * new)
        written.append([False] * len(start) + [not hole for hole in holes] + [False] * new)
        free.append([False] * len(start) + holes + [not any(holes)] * new)
    longest = max(map(len, rows), default=0)
    pad = tokenizer.pad_token_id

    def pack(values: list[list[Any]], fill: Any, dtype: torch.dtype) -> Tensor:
        padded = [[fill] * (longest - len(row)) + list(row) for row in values]
        return torch.tensor(padded, dtype=dtype).view(len(rows), longest)

    return Canvas(
        ids=pack(rows, end_id if pad in (None, mask_id) else pad, torch.long),  # no mask, which some models count
        attention_mask=pack([[True] * len(row) for row in rows], False, torch.bool),
        prompt=pack(written, False, torch.bool),
        free=pack(free, False, torch.bool),
    )


def given_before(prompts: Any, ends: Sequence[int], suppressed: Sequence[int] | None) -> Any:
    """The prompts of texts that are scored; where none are told and nothing may end a text the empty one."""
    return prompts if prompts is not None or set(ends) - set(suppressed or ()) else ""


def scored_rows(
    tokenizer: Any,
    texts: Sequence[str],
    prompts: Prompt | Sequence[Prompt] | None,
    shifted: bool,
    length: int,
    longest: int | None = None,
) -> list[tuple[list[int], int, int]]:
    """For each text the ids of its canvas, how many of them stand before its prompt, and how many are given.

    Args:
        tokenizer: has an end-of-text token.
        texts: whose probability is asked for.
        prompts: what each of them, or all, follow, texts or conversations, on a canvas that ends with the text; None:
            nothing, and the text is filled up with end-of-text tokens to `length`, at least one if there is room.
        shifted: logits are shifted, so that there is none for the first token.
        length: of the canvas of a text that fits it.
        longest: positions of the model; None: any number.

    Raises:
        ValueError: a text with a reserved token, or not a prompt for each text.
    """
    one = prompts is None or isinstance(prompts, str) or is_conversation(prompts)
    before: list[Any] = [prompts] * len(texts) if one else as_prompts(prompts, True, "prompts")[0]
    if len(before) != len(texts):
        raise ValueError(f"`prompts` must be one, or one for each of {len(texts)} texts, got {len(before)}.")
    end: Any = end_token_id(tokenizer)
    rows = []
    for text, prompt in zip(texts, before, strict=True):
        start, ids = encode(tokenizer, text, "texts", allow_mask=False, needs_start=shifted)
        given: list[int] = []
        if prompt is None:
            taken = len(start + ids)
            ids += [end] * (max(length, taken + (longest is None or taken < longest)) - taken)
        elif not isinstance(prompt, str):
            start = chat(tokenizer, prompt, "prompts")
        else:
            start, given = encode(tokenizer, prompt, "prompts", allow_mask=False, needs_start=shifted)
        first = max(len(start + given), int(shifted))
        rows.append((start + given + ids, len(start) if given else first, first))
    return rows


def check_tokenizer(tokenizer: Any, *names: str) -> None:
    """A ValueError if one of these special tokens is missing."""
    for name in names:
        if (end_token_id(tokenizer) if name == "eos_token_id" else getattr(tokenizer, name, None)) is None:
            raise ValueError(f"`tokenizer` must have a `{name}`, got None; set it on the tokenizer.")
