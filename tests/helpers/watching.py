"""Steps of a sampler as guidance is told them, and what reaches the scheduler."""

import functools
import inspect
from dataclasses import replace

import torch

from redge_guidance.guidance import Guidance
from redge_guidance.hosts.attachment import Attachment


def frozen(step):
    """A copy, since some pipelines write into what they have handed out."""
    free, text = step.free.clone(), step.attention_mask.clone()
    return replace(step, logits=step.logits.clone(), ids=step.ids.clone(), free=free, attention_mask=text)


def watched(pipe, run, follow=None):
    """The steps of one call that is not guided, and what the call returned."""
    steps = []
    attachment = Attachment(pipe, move=lambda step: steps.append(frozen(step)), follow=follow)
    try:
        output = run()
    finally:
        attachment.remove()
    return steps, output


def guided(pipe, run, reward, config, seed=0):
    """Pairs of every step and its guided logits, None where it was not guided; and the trace."""
    guidance, pairs = Guidance(reward, config, seed), []

    def move(step):
        before, logits = frozen(step), guidance(step)
        written = (
            None if torch.equal(before.logits, step.logits) else step.logits[step.free[:, -step.logits.shape[1] :]]
        )
        assert written is None or (logits is None and step.spent)
        pairs.append((before, logits if written is None else written.clone()))
        return logits

    attachment = Attachment(pipe, begin=guidance.begin, move=move)
    try:
        run()
    finally:
        attachment.remove()
    return pairs, guidance.trace


def followed(pipe, run, follow=None):
    """Triples of every step, what was said to be drawn in it, and None or the rows that `follow` chose."""
    told = []

    def note(step, drawn):
        told.append((frozen(step), drawn))
        return None if follow is None else follow(len(told) - 1)

    attachment = Attachment(pipe, follow=note)
    try:
        output = run()
    finally:
        attachment.remove()
    return told, output


def outputs_of(pipe):
    """What the scheduler's own methods are called with, and what they return, in a list; watch before drawing."""
    calls = []

    def watch(name, original):
        @functools.wraps(original)
        def method(*args, **kwargs):
            output = original(*args, **kwargs)
            calls.append((name, inspect.signature(original).bind(*args, **kwargs).arguments, output))
            return output

        setattr(pipe.scheduler, name, method)

    for name in ("step", "step_correct"):
        if hasattr(pipe.scheduler, name):
            watch(name, getattr(pipe.scheduler, name))
    return calls


def log_p(step):
    """`(free positions, V)`: the log-probabilities that the host draws from, written out."""
    logits = step.logits[step.free[:, -step.logits.shape[1] :]].float() / step.temperature
    logits[:, list(step.reserved)] = -torch.inf
    return logits.log_softmax(-1)


def picture(step):
    """A string a sequence: `?` free, `G` given, `-` given and no text, `.` other text, `~` other and no text."""

    def sign(free, given, text):
        if free:
            return "?" if text and not given else "X"
        return ("G" if text else "-") if given else ("." if text else "~")

    given = torch.zeros_like(step.free) if step.given is None else step.given
    rows = zip(step.free.tolist(), given.tolist(), step.attention_mask.tolist(), strict=True)
    return ["".join(sign(*position) for position in zip(*row, strict=True)) for row in rows]


def linear(table):
    """A reward linear in the one-hots of texts and of images: the sum of one number a token over all positions."""

    def reward(sample):
        return sample.embed(table[:, None])[..., 0].sum(-1)

    return reward
