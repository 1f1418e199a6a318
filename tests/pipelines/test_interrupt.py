"""`pipe._interrupt`, `interrupt`, `num_timesteps` as in diffusers; callbacks see the step that was just taken."""

import logging

import pytest
import torch

from redge_guidance import GuidanceConfig, guide
from redge_guidance.logging import disable_progress_bar, enable_progress_bar
from tests.helpers.hosts import any_reward, count_of_a, llada2, seeded
from tests.helpers.images import tiny_image_pipeline
from tests.helpers.tiny import tiny_pipeline, tiny_uniform

MASK = 2
PIPES = {
    "masked": (tiny_pipeline, {"prompt": ["a b", ""], "num_inference_steps": 4}),
    "blocks": (tiny_pipeline, {"prompt": ["", ""], "num_inference_steps": 4, "block_length": 2}),
    "uniform": (tiny_uniform, {"prompt": ["a b", ""]}),
    "images": (tiny_image_pipeline, {"class_labels": [0, 1], "num_inference_steps": 4}),
}
each = pytest.mark.parametrize("name", PIPES)


def ending(after, seen):
    def callback(pipe, step, timestep, tensors):
        seen.append((step, tensors["sample"].clone(), pipe.num_timesteps))
        pipe._interrupt = step == after

    return callback


def drawn(output):
    return output.tokens if hasattr(output, "tokens") else output.sequences


@each
@pytest.mark.parametrize("guided", [False, True])
def test_an_interrupted_call_ends_with_that_step_and_says_what_is_left(name, guided, caplog):
    make, arguments = PIPES[name]
    pipe, seen = make(), []
    handle = guide(pipe, any_reward(pipe)) if guided else None
    with caplog.at_level(logging.WARNING):
        output = pipe(**arguments, generator=seeded(), callback_on_step_end=ending(1, seen))
    assert [step for step, *_ in seen] == [0, 1]
    assert torch.equal(drawn(output), seen[-1][1])
    assert pipe.interrupt
    assert {total for *_, total in seen} == {4} == {pipe.num_timesteps}
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"the call was interrupted with {undrawn(name, output)} positions not drawn to the end")
    assert handle is None or len(handle.trace) == 2


def undrawn(name, output):
    """Of a uniform canvas of 6 all that is not prompt."""
    return 4 + 6 if name == "uniform" else int((drawn(output) == (12 if name == "images" else MASK)).sum())


@each
def test_the_next_call_is_drawn_to_its_end(name, caplog):
    make, arguments = PIPES[name]
    pipe = make()
    whole = drawn(pipe(**arguments, generator=seeded()))
    pipe(**arguments, generator=seeded(), callback_on_step_end=ending(0, []))
    caplog.clear()
    assert torch.equal(drawn(pipe(**arguments, generator=seeded())), whole)
    assert not pipe.interrupt
    assert not caplog.records


def test_texts_leave_hidden_tokens_out_and_images_show_the_mean_of_the_codebook():
    texts = tiny_pipeline()(["a b"], num_inference_steps=4, generator=seeded(), callback_on_step_end=ending(0, []))
    assert (texts.sequences == MASK).any()
    assert "[MASK]" not in texts.texts[0]
    pipe = tiny_image_pipeline()
    settings = {"output_type": "pt", "num_inference_steps": 4, "generator": seeded()}
    images = pipe([0], **settings, callback_on_step_end=ending(0, []))
    hidden = images.tokens == pipe.mask_token_id
    assert hidden.any()
    table = torch.cat([pipe.codebook, pipe.codebook.mean(0, keepdim=True)])
    torch.testing.assert_close(images.images, pipe.decode_embeddings(table[images.tokens]).detach())


def test_a_call_within_a_callback_does_not_undo_the_end_of_the_outer_one():
    pipe, steps = tiny_pipeline(), []

    def callback(pipe, step, timestep, tensors):
        steps.append(step)
        pipe._interrupt = True
        pipe("", num_inference_steps=2, generator=seeded())
        assert (pipe.interrupt, pipe.num_timesteps) == (True, 4)

    pipe("", num_inference_steps=4, generator=seeded(), callback_on_step_end=callback)
    assert steps == [0]


@pytest.mark.parametrize("name", [*PIPES, "llada2"])
def test_callbacks_read_the_figures_of_the_step_just_taken(name):
    seen = []
    if name == "llada2":
        pipe = llada2()[0]
        arguments = {"prompt": ["a b"], "gen_length": 4, "block_length": 4, "num_inference_steps": 4}
        arguments |= {"use_chat_template": False, "output_type": "seq"}
    else:
        pipe, arguments = PIPES[name][0](), PIPES[name][1]
    with guide(pipe, any_reward(pipe)) as handle:

        def callback(pipe, step, timestep, tensors):
            seen.append((len(handle.trace), handle.trace[-1].step, handle.trace[-1].reward))
            return {}

        pipe(**arguments, generator=seeded(), callback_on_step_end=callback)
        assert [(n, step) for n, step, _ in seen] == [(k + 1, k) for k in range(len(handle.trace))]
        assert [reward for *_, reward in seen] == [step.reward for step in handle.trace]


@each
def test_a_callback_that_raises_leaves_pipeline_and_handle_usable(name):
    make, arguments = PIPES[name]
    pipe = make()
    with guide(pipe, any_reward(pipe)) as handle:
        whole = drawn(pipe(**arguments, generator=seeded()))
        steps = len(handle.trace)

        def fail(*_):
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            pipe(**arguments, generator=seeded(), callback_on_step_end=fail)
        assert pipe.drawing is None
        assert torch.equal(drawn(pipe(**arguments, generator=seeded())), whole)
        assert len(handle.trace) == 2 * steps + 1
    assert "step" not in vars(pipe.scheduler)


def test_a_sample_that_a_callback_changed_is_what_guidance_sees():
    pipe, seen = tiny_pipeline(), []

    def reward(tokens):
        seen.append(tokens.ids[:, -1].tolist())
        return count_of_a(tokens)

    def callback(pipe, step, timestep, tensors):
        sample = tensors["sample"].clone()
        sample[:, -1] = 5
        return {"sample": sample}

    with guide(pipe, reward, GuidanceConfig(every=1)):
        sequences = pipe("", num_inference_steps=3, generator=seeded(), callback_on_step_end=callback).sequences
    assert sequences[0, -1] == 5
    assert all(set(ends) == {5} for ends in seen[-3:])


def test_bars_can_be_switched_off(capsys):
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=False)
    try:
        disable_progress_bar()
        pipe("", num_inference_steps=2)
        assert capsys.readouterr().err == ""
    finally:
        enable_progress_bar()
    pipe("", num_inference_steps=2)
    assert "2/2" in capsys.readouterr().err
