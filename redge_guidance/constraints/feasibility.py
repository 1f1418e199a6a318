"""Whether canvases can hold a text of the form at all, and what would have to change where they cannot."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from redge_guidance.constraints.canvas import Conditioning, Reading
from redge_guidance.constraints.refinement import DEAD


def impossible(conditioning: Conditioning, reading: Reading) -> list[int]:
    """The canvases of a batch that no accepted text fits, whatever the model says."""
    found = conditioning.messages(reading, None)
    return [int(k) for k in np.flatnonzero(np.isneginf(found.log_z))]


def without_impossible_hold(conditioning: Conditioning, reading: Reading) -> Reading:
    """The same, with nothing held in canvases that what is held rules out: tokens that are noise yet."""
    if not reading.held.any():
        return reading
    wrong = torch.zeros(len(reading), dtype=torch.bool, device=reading.held.device)
    wrong[impossible(conditioning, reading)] = True
    return replace(reading, held=reading.held & ~wrong[:, None])


def explained(conditioning: Conditioning, reading: Reading, k: int, tokenizer: Any) -> str:
    """Why canvas k of a batch cannot be completed, and what to do."""
    if k not in impossible(conditioning, reading):
        return (
            f"`constraint` cannot be met by text {k}: the tokens that it needs are forbidden by the pipeline or "
            "have no probability at all; allow them (`suppress_tokens`, `top_k`, `top_p`)."
        )
    automaton = conditioning.automaton
    table, states = automaton.table, {0}
    ids = reading.ids[k].tolist()
    drawn = (reading.free & ~reading.held | reading.unknown)[k].tolist()
    length = 0
    for t, skip in enumerate(reading.skipped[k].tolist()):
        if skip:
            continue
        length += 1
        if drawn[t]:
            states = {int(j) for i in states for j in np.unique(table[i]) if j != DEAD}
            continue
        after = {automaton.step(i, ids[t]) for i in states} - {DEAD}
        if not after:
            token = tokenizer.convert_ids_to_tokens(ids[t])
            return (
                f"`constraint` contradicts text {k}: with its token {token!r}, number {length}, nothing that is "
                "accepted can be written; change the prompt, or have the answer alone judged (`answer_only=True`)."
            )
        states = after
    needed = automaton.distances()
    missing = min((int(needed[i]) for i in states if needed[i] >= 0), default=0)
    return (
        f"`constraint` cannot be met by text {k}, a canvas of {length} tokens: the shortest accepted text that it "
        f"could become takes {length + missing}; make the canvas longer (`gen_length`)."
    )
