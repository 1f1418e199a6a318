"""A list of generators, one a row: each is what it is alone, in another order, in another batch, beside padding."""

import pytest
import torch

from redge_guidance import GuidanceConfig, guide
from redge_guidance.pipelines.scheduler import ORDERS
from redge_guidance.updates import Adam, Natural
from tests.helpers.hosts import JUMP, brightness, seeded
from tests.helpers.images import tiny_image_pipeline
from tests.helpers.tiny import tiny_pipeline, tiny_uniform
from tests.helpers.watching import linear

TABLE = torch.randn(8, generator=seeded(3))
PROMPTS = ["a b", "", "c", "d e"]
NATURAL, ADAM = Natural(num_updates=2), Adam(num_updates=2)
CASES = {"entropy_mix": NATURAL, "straight_through": ADAM, "redge": ADAM, "reinforce_loo": NATURAL}


def reward(tokens):
    """Not linear, and blind to padding."""
    alive = tokens.attention_mask.float()
    value = tokens.embed(TABLE[:, None])[..., 0] * alive
    return value.sum(-1) - 0.3 * value.sum(-1).square()


def text_rows(pipe, new=4, **settings):
    """`draw(chosen)`: the new tokens of prompts by number, each with the generator of its number."""

    def draw(chosen):
        generators = [seeded(10 + i) for i in chosen]
        texts = pipe([PROMPTS[i] for i in chosen], gen_length=new, generator=generators, **settings)
        return texts.sequences[:, -new:]

    return draw


def image_rows(pipe, **settings):
    def draw(chosen):
        generators = [seeded(10 + i) for i in chosen]
        labels = [i % 3 for i in chosen]
        return pipe(labels, generator=generators, output_type="latent", guidance_scale=2.0, **settings).tokens

    return draw


def check(draw):
    """Alone, in another order, in two batches; rows of one batch are different ones."""
    alone = torch.cat([draw([i]) for i in range(4)])
    for chosen in ([3, 1, 0, 2], [1, 2]):
        assert torch.equal(draw(chosen), alone[chosen])
    assert len(alone.unique(dim=0)) > 1


MAKERS = {f"masked, {order}": lambda order=order: _masked(order) for order in ORDERS if order != "halton"}
MAKERS |= {
    "masked, noisy confidence": lambda: _masked("confidence", choice_temperature=2.0),
    "masked, blocks": lambda: _masked("random", calls={"block_length": 2, "num_inference_steps": 4}),
    "masked, uneven blocks": lambda: _masked("confidence", calls={"block_length": 3, "num_inference_steps": 3}),
    "masked, a token a step": lambda: _masked("random", calls={"num_inference_steps": None}),
    "masked, cfg": lambda: _masked("random", calls={"guidance_scale": 2.0}),
    "masked, top-p": lambda: _masked("random", calls={"top_p": 0.9, "top_k": 4}),
    "uniform": lambda: _uniform(),
    "uniform, corrector": lambda: _uniform(corrector_steps=2, corrector_k=2),
    "uniform, random corrector": lambda: _uniform(corrector_steps=1, corrector_selection="random"),
    "uniform, top-k": lambda: _uniform({"top_k": 3}),
    "images": lambda: _images(unmasking_order="random"),
    "images, confidence": lambda: _images(unmasking_order="confidence", choice_temperature=2.0),
    "images, ancestral": lambda: _images(unmasking_order="ancestral", schedule="cosine"),
    "images, remasking": lambda: _images(unmasking_order="remasking"),
    "images, halton": lambda: _images(unmasking_order="halton", schedule="arccos", counting="floor", roll=True),
}


def _masked(order, calls=None, **scheduler):
    pipe = tiny_pipeline(unmasking_order=order, **scheduler)
    return pipe, text_rows(pipe, **{"num_inference_steps": 3, "temperature": 2.0} | (calls or {}))


def _uniform(calls=None, **scheduler):
    pipe = tiny_uniform(**scheduler)
    return pipe, text_rows(pipe, **{"temperature": 2.0} | (calls or {}))


def _images(**scheduler):
    pipe = tiny_image_pipeline(**scheduler)
    return pipe, image_rows(pipe, num_inference_steps=3)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_bare_rows_are_those_drawn_alone(make):
    check(make()[1])


ENOUGH_BARE = ("masked, top-p", "uniform, top-k", "uniform, random corrector", "images, ancestral", "images")
FEW = {name: make for name, make in MAKERS.items() if name not in ENOUGH_BARE}


@pytest.mark.parametrize("make", FEW.values(), ids=FEW)
def test_guided_rows_are_those_drawn_alone(make):
    pipe, draw = make()
    images = hasattr(pipe, "vqvae")
    config = GuidanceConfig(30.0 if images else 3.0, num_draws=3, update=JUMP.update)
    bare = draw([0, 1, 2, 3])
    with guide(pipe, brightness if images else reward, config):
        check(draw)
        assert images or not torch.equal(draw([0, 1]), bare[:2])


@pytest.mark.parametrize("together", [2**24, 1])
@pytest.mark.parametrize(("estimator", "update"), CASES.items(), ids=CASES)
def test_with_every_estimator_and_however_the_draws_are_held(estimator, update, together, monkeypatch):
    monkeypatch.setattr("redge_guidance.gradients._MOST_TOGETHER", together)
    pipe, draw = _masked("random")
    with guide(pipe, reward, GuidanceConfig(3.0, estimator, update, num_draws=3, support=4)):
        check(draw)


@pytest.mark.parametrize("estimator", ["entropy_mix", "redge"])
def test_how_many_draws_are_held_together_changes_nothing(estimator, monkeypatch):
    pipe, draw = _masked("random")
    found = []
    with guide(pipe, reward, GuidanceConfig(3.0, estimator, num_draws=3)):
        for together in (2**24, 300, 1):
            monkeypatch.setattr("redge_guidance.gradients._MOST_TOGETHER", together)
            found.append(draw([0, 1, 2, 3]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_prompts_with_holes_and_padding_beside_others():
    """`c [MASK] [MASK] d` is a text of its own beside longer and shorter ones."""
    pipe = tiny_pipeline()
    prompts = ["c [MASK] [MASK] d", "a b", ""]

    def draw(chosen):
        settings = {"num_inference_steps": 2, "temperature": 2.0, "gen_length": 8}
        generators = [seeded(i) for i in chosen]
        found = pipe([prompts[i] for i in chosen], generator=generators, **settings).sequences
        lengths = (6, 10, 8)  # prompt and new tokens, without the padding in front
        return {i: row.tolist()[-lengths[i] :] for i, row in zip(chosen, found, strict=True)}

    with guide(pipe, linear(TABLE), GuidanceConfig(2.0, num_draws=2)):
        alone = draw([0]) | draw([1]) | draw([2])
        assert draw([0, 1, 2]) == alone
        assert draw([2, 0]) == {i: alone[i] for i in (2, 0)}


def test_what_cannot_be_independent_is_an_error():
    pipe, generators = tiny_pipeline(), [seeded(0), seeded(1)]
    message = r"`num_inference_steps` must be given with a list of generators.*got None"
    for settings in ({}, {"block_length": 5}):  # the canvas has four free tokens, and six
        with pytest.raises(ValueError, match=message):
            pipe(["a b", ""], generator=generators, **settings)
    with pytest.raises(ValueError, match="`generator` must be one generator where texts have different numbers of b"):
        pipe(["a b", ""], generator=generators, block_length=4, num_inference_steps=4)
    pipe(["a b", ""], generator=generators, num_inference_steps=4)
    pipe(["a b", ""], generator=seeded(), block_length=4, num_inference_steps=4)
    pipe(["a b", "c d"], generator=generators, block_length=2)


CALLS = {
    "masked": lambda generator: tiny_pipeline()(["a", "b"], generator=generator, num_inference_steps=2),
    "uniform": lambda generator: tiny_uniform()(["a", "b"], generator=generator),
    "images": lambda generator: tiny_image_pipeline()([0, 1], generator=generator, output_type="latent"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_bad_generators_are_errors_that_name_them(call):
    one = seeded()
    for wrong, message in (
        ([seeded()], "one for each of 2 samples, got 1"),
        ([seeded() for _ in range(3)], "one for each of 2 samples, got 3"),
        ([], "one for each of 2 samples, got 0"),
        ([one, one], "different generators, got one of them twice"),
        ([seeded(), 3], "a list of torch.Generator objects, got one int"),
        ([seeded(), None], "a list of torch.Generator objects, got one NoneType"),
        (3, "a torch.Generator or a list of them, got int"),
    ):
        with pytest.raises(ValueError, match=f"`generator` must be .*{message}"):
            call(wrong)
    assert call((seeded(1), seeded(2)))  # a tuple is a list
