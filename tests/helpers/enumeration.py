"""Every text that a tiny sampler may draw, with its probability; and particles of many prompts at once."""

import itertools
import math

import numpy as np
import torch

from redge_guidance.particles import ParticleConfig, particles
from tests.helpers.hosts import seeded
from tests.helpers.watching import log_p, watched

PROMPT = "c [MASK] [MASK] d"
STEPS = 3
GROUPS = 400


def interacting(pipe):
    """A reward that is no sum over positions: what is in one free position changes what the other is worth."""
    table = torch.randn(pipe.model.config.vocab_size, 2, generator=seeded(7))

    def reward(tokens):
        worth = tokens.embed(table)
        return worth[..., 0].sum(-1) + 1.5 * worth[..., 1].prod(-1)

    return reward


def hard(reward, pipe, ids):
    """Of finished canvases `(n, length)`, by the one-hots of their tokens."""

    class Finished:
        def embed(self, table):
            return table[ids]

    return reward(Finished()).double().numpy()


def law(pipe, prompt=PROMPT, steps=STEPS):
    """Canvases `(n, length)` that ancestral sampling may end in, and their probabilities, by all of its paths."""
    canvas = pipe.canvas([prompt])
    mask, free = pipe.tokenizer.mask_token_id, canvas.free[0].nonzero()[:, 0].tolist()
    seen, _ = watched(pipe, lambda: pipe([prompt] * 3000, num_inference_steps=steps, generator=seeded(5)))
    predictions = {}  # of every canvas that there is on the way, as the sampler itself is given them
    for step in seen:
        rows = iter(log_p(step).double().exp().numpy())
        for canvas_now, hidden_now in zip(step.ids.tolist(), step.free.tolist(), strict=True):
            predictions[tuple(canvas_now)] = {i: next(rows) for i, yes in enumerate(hidden_now) if yes}

    states = {tuple(canvas.ids[0].tolist()): 1.0}
    for step in range(steps):
        reveal, after = 1 / (steps - step), {}
        for ids, chance in states.items():
            hidden = [i for i in free if ids[i] == mask]
            for shown in itertools.product([False, True], repeat=len(hidden)):
                known = [i for i, yes in zip(hidden, shown, strict=True) if yes]
                way = chance * math.prod(reveal if yes else 1 - reveal for yes in shown)
                if way == 0:
                    continue
                tables = [predictions[ids][i] for i in known]
                for tokens in itertools.product(*[np.flatnonzero(table) for table in tables]):
                    new = list(ids)
                    for i, token in zip(known, tokens, strict=True):
                        new[i] = int(token)
                    share = math.prod(table[token] for table, token in zip(tables, tokens, strict=True))
                    after[tuple(new)] = after.get(tuple(new), 0.0) + way * share
        states = after
    return torch.tensor(list(states)), np.array(list(states.values()))


def run(pipe, reward, config, guidance, prompt=PROMPT, groups=GROUPS, seed=0, **settings):
    with particles(pipe, reward, config, guidance, seed=seed) as handle:
        batch = [prompt] * (groups * config.num_particles)
        ids = pipe(batch, generator=seeded(seed), **{"num_inference_steps": STEPS} | settings).sequences
    return ids, handle


def agrees(values, expected, errors=4.0):
    """Whether the mean of independent values is the expected one, within so many standard errors."""
    values = np.asarray(values)
    error = values.std(ddof=1) / math.sqrt(len(values))
    return abs(values.mean() - expected) <= errors * error + 1e-9


def compare(pipe, reward, score, guidance, **settings):
    """Weighted means under particles against those of many texts of the bare sampler; `score` is of canvases."""
    settings = {"num_inference_steps": STEPS} | settings
    bare = pipe([PROMPT] * 30_000, generator=seeded(11), **settings).sequences
    worth = np.exp(score(bare) / 2)
    config = ParticleConfig(num_particles=4, temperature=2.0, resample_below=0.8)
    drawn, handle = run(pipe, reward, config, guidance, **settings)
    assert any(bool(step.resampled.any()) for step in handle.steps)
    estimates, weights = handle.outcome.log_z.exp().numpy(), handle.outcome.log_weights.exp().numpy()
    drawn = drawn.view(GROUPS, 4, -1)
    a = pipe.tokenizer.convert_tokens_to_ids("a")
    for of in (lambda ids: torch.ones(ids.shape[:-1]), lambda ids: (ids == a).any(-1)):
        expected = worth * of(bare).double().numpy()
        found = estimates * (weights * of(drawn).double().numpy()).sum(-1)
        error = math.hypot(expected.std() / math.sqrt(len(expected)), found.std(ddof=1) / math.sqrt(len(found)))
        assert abs(found.mean() - expected.mean()) <= 4 * error
        assert error < 0.25 * expected.mean()
