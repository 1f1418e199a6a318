"""Text on a canvas of token positions: encoding of prompts, blocks, and the steps that they get."""

import itertools
from typing import Any

import torch
from torch import Tensor

from redge_guidance.text import end_token_id


def encode(tokenizer: Any, text: str, argument: str, allow_mask: bool = True) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before a text, and those of the text; what it puts after a text is left out."""
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    reserved = set(tokenizer.all_special_ids) - ({tokenizer.mask_token_id} if allow_mask else set())
    found = [tokenizer.convert_ids_to_tokens(i) for i in ids if i in reserved]
    if found:
        raise ValueError(f"`{argument}` must not contain reserved tokens, got {found[0]!r} in {text!r}; remove it.")
    ends = {end_token_id(tokenizer), tokenizer.mask_token_id}
    start = itertools.takewhile(lambda i: i in tokenizer.all_special_ids and i not in ends, tokenizer(text).input_ids)
    return list(start), ids


def chat(tokenizer: Any, prompt: str) -> list[int]:
    """Ids of a prompt as the turn of a user, in the chat template of the tokenizer."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError("`use_chat_template` needs a chat template, and the tokenizer has none; set it to False.")
    encode(tokenizer, prompt, "prompt", allow_mask=False)
    messages = [{"role": "user", "content": prompt}]
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return list(encoded["input_ids"])


def split_into_blocks(hidden: Tensor, block_length: int | None) -> list[Tensor]:
    """Positions `(batch, length)` of every block: the first `block_length` hidden ones of a row, the next, ..."""
    if block_length is None or not hidden.any():
        return [torch.ones_like(hidden)]
    number = (hidden.cumsum(-1) - 1).div(block_length, rounding_mode="floor")
    return [hidden & (number == i) for i in range(int(number.max()) + 1)]


def steps_of_blocks(hidden: list[Tensor], num_inference_steps: int | None) -> list[int]:
    """Denoising steps of every block: equal shares, or one for every token."""
    if num_inference_steps is None:
        return [max(1, int(block.sum(-1).max())) for block in hidden]
    number = len(hidden)
    if num_inference_steps < number:
        raise ValueError(
            f"`num_inference_steps` must be >= {number}, the number of blocks, got {num_inference_steps}; raise "
            "it, or `block_length`."
        )
    return [num_inference_steps * (i + 1) // number - num_inference_steps * i // number for i in range(number)]
