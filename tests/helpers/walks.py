"""Canvases that automata accept, drawn at random."""

import numpy as np


def walked(automaton, rng, more=8):
    """Tokens of one accepted canvas: `more` of an evenly drawn class, evenly drawn, then the way to the end."""
    distance, tokens_of = automaton.distances(), {}
    state, ids = 0, []
    while len(ids) < more or not automaton.accepting[state]:
        after = automaton.table[state]
        possible = np.flatnonzero(after >= 0)
        if len(ids) >= more:  # straight to the end
            possible = possible[distance[after[possible]] < distance[state]]
        if not len(possible):
            break  # nothing goes on
        chosen = int(rng.choice(possible))
        if chosen not in tokens_of:
            tokens_of[chosen] = np.flatnonzero(automaton.class_of == chosen)
        ids.append(int(rng.choice(tokens_of[chosen])))
        state = automaton.step(state, ids[-1])
    return ids


def text_of(tokenizer, ids, ends):
    """What a pipeline returns of a canvas: up to the first end, special tokens left out."""
    before = next((k for k, i in enumerate(ids) if i in ends), len(ids))
    return tokenizer.decode(ids[:before], skip_special_tokens=True)
