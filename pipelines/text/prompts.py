"""Prompts in tokens."""

import itertools
from typing import Any

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
