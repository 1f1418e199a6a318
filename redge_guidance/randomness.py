"""Guidance's own randomness: a function of the sampler's, of a seed, and of the step."""

import hashlib
from typing import Any

import torch

from redge_guidance.checks import as_whole
from redge_guidance.step import DenoisingStep


def check_seed(seed: Any, argument: str = "seed") -> int:
    """`seed` as an integer, of the range that `torch.Generator.manual_seed` takes.

    Raises:
        ValueError: it is no integer, or beyond that range.

    >>> check_seed(3)
    3
    """
    number = as_whole(seed)
    if number is None or not -(2**63) <= number < 2**64:
        raise ValueError(
            f"`{argument}` must be an integer from -2**63 to 2**64 - 1, as torch.Generator.manual_seed takes it, got "
            f"{str(seed)[:40] if number is not None else repr(seed)[:80]}."
        )
    return number


def noise_of(step: DenoisingStep, seed: int, index: int, purpose: str = "") -> torch.Generator | list[torch.Generator]:
    """What guidance draws from in one denoising step: one generator, or one for every sequence of the batch.

    Each is seeded by a hash of the state of the sampler's generator, of `seed` and of `index`. The sampler's generator
    is read and never advanced, so that guidance changes nothing of what the sampler draws; where it is None torch's
    global one is read. A list of generators makes the noise of a sequence independent of its batch.

    Args:
        step: whose `generator` is read; the results are on the device of its logits.
        seed: that of `guide`.
        index: number of the step within its call, since a greedy sampler's generator does not move.
        purpose: another one, another noise.
    """
    device, index_and = step.logits.device, f"{index}{purpose}"
    if step.generator is None or isinstance(step.generator, torch.Generator):
        return _seeded(_state(step.generator, device), seed, index_and, device)
    return [_seeded(_state(generator, device), seed, index_and, device) for generator in step.generator]


def _seeded(state: bytes, seed: int, index: str, device: torch.device) -> torch.Generator:
    digest = hashlib.blake2b(state + f"|{seed}|{index}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def _state(generator: torch.Generator | None, device: torch.device) -> bytes:
    if generator is not None:
        state = generator.get_state()
    elif device.type == "cpu":
        state = torch.get_rng_state()
    else:
        state = torch.get_device_module(device).get_rng_state()
    return state.cpu().numpy().tobytes()
