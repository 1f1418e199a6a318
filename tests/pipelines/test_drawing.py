"""`drawing`: what a pipeline says of the call in progress, and that it says nothing of any other."""

import threading

import pytest
import torch

from tests.helpers.hosts import MASK, seeded
from tests.helpers.images import CODES, tiny_image_pipeline
from tests.helpers.tiny import tiny_pipeline, tiny_uniform

CALLS = {
    "masked": (tiny_pipeline, lambda pipe, **more: pipe(["a b", ""], generator=seeded(), **more)),
    "uniform": (tiny_uniform, lambda pipe, **more: pipe(["a b", ""], generator=seeded(), **more)),
    "images": (tiny_image_pipeline, lambda pipe, **more: pipe([0, 2], generator=seeded(), **more)),
}
every_pipeline = pytest.mark.parametrize(("make", "call"), CALLS.values(), ids=CALLS)


@every_pipeline
def test_there_is_none_between_calls(make, call):
    pipe, seen = make(), []
    assert pipe.drawing is None
    call(pipe, callback_on_step_end=lambda pipe, step, t, tensors: seen.append(pipe.drawing))
    assert pipe.drawing is None
    assert all(drawing is not None for drawing in seen)
    assert all(drawing.canvas is seen[0].canvas for drawing in seen)


@every_pipeline
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_there_is_none_after_an_exception(make, call, error):
    pipe = make()

    def stop(pipe, step, t, tensors):
        assert pipe.drawing is not None
        raise error

    with pytest.raises(error):
        call(pipe, callback_on_step_end=stop)
    assert pipe.drawing is None
    with pytest.raises(ValueError, match="temperature"):
        call(pipe, temperature=-1.0)
    assert pipe.drawing is None


def test_it_says_what_is_drawn():
    texts, images = tiny_pipeline(), tiny_image_pipeline()
    seen = []

    def callback(pipe, step, t, tensors):
        seen.append(pipe.drawing)

    texts(["a b", "c [MASK]"], callback_on_step_end=callback, num_inference_steps=1)
    images([0, 2], num_images_per_prompt=2, callback_on_step_end=callback, num_inference_steps=1)
    of_texts, of_images = seen
    assert (of_texts.prompts, of_texts.class_labels) == (["a b", "c [MASK]"], None)
    assert of_texts.canvas.ids.tolist() == [[3, 4, MASK, MASK, MASK, MASK], [5, MASK, 1, 1, 1, 1]]
    assert of_texts.canvas.free.tolist() == [[False] * 2 + [True] * 4, [False, True] + [False] * 4]
    assert (of_texts.block, of_texts.num_blocks) == (0, 1)
    assert (of_images.prompts, of_images.class_labels.tolist()) == (None, [0, 0, 2, 2])
    assert (of_images.canvas.ids == CODES).all()


def test_blocks_are_counted_with_their_steps():
    """Two blocks of two tokens, three steps: one and two."""
    pipe, seen = tiny_pipeline(), []

    def callback(pipe, step, t, tensors):
        drawing = pipe.drawing
        seen.append((step, drawing.block, drawing.num_blocks, drawing.steps_before, drawing.num_steps))

    pipe(["a b"], block_length=2, num_inference_steps=3, callback_on_step_end=callback)
    assert seen == [(0, 0, 2, 0, 3), (1, 1, 2, 1, 3), (2, 1, 2, 1, 3)]


def test_both_are_right_where_the_callback_of_one_draws_with_another():
    outer, inner, seen = tiny_pipeline(), tiny_uniform(), []

    def within(pipe, step, t, tensors):
        seen.append((outer.drawing.prompts, pipe.drawing.prompts))

    def callback(pipe, step, t, tensors):
        before = pipe.drawing
        assert inner.drawing is None
        inner(["c"], callback_on_step_end=within, num_inference_steps=2)
        assert inner.drawing is None
        assert pipe.drawing is before

    outer(["a", "b"], callback_on_step_end=callback, num_inference_steps=2)
    assert seen == [(["a", "b"], ["c"])] * 4


def test_the_innermost_call_of_one_pipeline_counts():
    pipe, seen = tiny_pipeline(), []

    def callback(pipe, step, t, tensors):
        pipe(["c"], num_inference_steps=1, callback_on_step_end=lambda p, *_: seen.append(p.drawing.prompts))
        seen.append(pipe.drawing.prompts)

    pipe(["a", "b"], callback_on_step_end=callback, num_inference_steps=1)
    assert seen == [["c"], ["a", "b"]]


def test_after_an_exception_within_the_outer_call_goes_on():
    outer, inner, seen = tiny_pipeline(), tiny_pipeline(), []

    def fail(pipe, step, t, tensors):
        raise ZeroDivisionError

    def callback(pipe, step, t, tensors):
        with pytest.raises(ZeroDivisionError):
            inner(["c"], callback_on_step_end=fail)
        seen.append((outer.drawing.prompts, inner.drawing))

    outer(["a"], callback_on_step_end=callback, num_inference_steps=2)
    assert seen == [(["a"], None)] * 2


def test_threads_see_their_own():
    pipe, barrier, seen, errors = tiny_pipeline(), threading.Barrier(2), {}, []

    def work(prompt):
        def callback(pipe, step, t, tensors):
            barrier.wait(20)
            seen.setdefault(prompt, []).append(pipe.drawing.prompts)
            barrier.wait(20)

        try:
            # a scheduler of its own, and the same pipeline
            pipe([prompt], generator=torch.Generator(), callback_on_step_end=callback, num_inference_steps=2)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(prompt,)) for prompt in "ab"]
    [thread.start() for thread in threads]
    while any(thread.is_alive() for thread in threads):
        assert pipe.drawing is None  # here nothing is drawn
        threads[0].join(0.01)
    [thread.join() for thread in threads]
    assert not errors
    assert seen == {"a": [["a"]] * 2, "b": [["b"]] * 2}
