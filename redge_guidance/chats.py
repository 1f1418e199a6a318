"""Prompts: a text, or a conversation that waits for its next turn."""

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

Conversation = Sequence[Mapping[str, Any]]  # of messages, {"role": "user", "content": "Hello."}
Prompt = str | Conversation


def is_conversation(value: Any) -> bool:
    """Whether this is a list of messages.

    >>> is_conversation([{"role": "user", "content": "Hello."}]), is_conversation(["Hello."]), is_conversation([])
    (True, False, False)
    """
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, Mapping) for one in value)


def check_conversation(messages: Conversation, argument: str) -> None:
    """A ValueError if this is no conversation in text that waits for an answer.

    Args:
        messages: `[{"role": ..., "content": ...}, ...]`, a system message, turns of user and assistant.
        argument: the name that the error gives them.
    """
    for number, message in enumerate(messages):
        wrong = [key for key in ("role", "content") if not isinstance(message.get(key), str)]
        if wrong:
            raise ValueError(
                f"`{argument}` must be made of messages {{'role': ..., 'content': ...}} of strings, got "
                f"{message.get(wrong[0])!r} as the {wrong[0]} of message {number}."
            )
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            f"`{argument}` must end before the answer, got a conversation whose last turn is the assistant's."
        )


def as_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """A conversation as new dictionaries; of a text that with one turn, the user's."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]


def key_of(prompt: Prompt | None) -> Hashable:
    """What can be looked up in a dictionary: equal for equal prompts, and no string for a conversation."""
    if prompt is None or isinstance(prompt, str):
        return prompt
    return ("chat", json.dumps([dict(turn) for turn in prompt], sort_keys=True, default=repr))
