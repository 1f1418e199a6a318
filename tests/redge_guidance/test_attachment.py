"""Guidance belongs to the calls of one pipeline: exchanges, copies, neighbours, threads, wrappers, order of removal."""

import copy
import functools
import inspect
import logging
import pickle
import threading
import time
import types

import pytest
import torch
from diffusers import BlockRefinementScheduler, LLaDA2Pipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from redge_guidance import GuidanceConfig, guide
from redge_guidance.hosts import DenoisingStep, Host, is_a, register_host, unregister_host
from redge_guidance.hosts import seam as seam_module
from redge_guidance.hosts.attachment import Attachment
from redge_guidance.hosts.seam import Seam
from redge_guidance.pipelines import MaskedDiffusionScheduler
from redge_guidance.rewards import BlackBoxReward, FluencyReward
from tests.helpers.hosts import ALL, ONE_OF_EACH, any_reward, count_of_a, llada2, masked, seeded, state_of
from tests.helpers.settings import plain_config
from tests.helpers.tiny import WORDS, tiny_llada2, tiny_pipeline, word_tokenizer

STRONG = GuidanceConfig(scale=8.0)


def strong(pipe):
    """So that tokens change: what a token does to the brightness is little."""
    return GuidanceConfig(scale=300.0) if hasattr(pipe, "vqvae") else STRONG


every_host = pytest.mark.parametrize("make", ONE_OF_EACH.values(), ids=ONE_OF_EACH)


# ---- between calls ----


@every_host
def test_between_calls_scheduler_and_models_are_untouched(make):
    pipe, run = make()
    run()
    before = state_of(pipe)
    with guide(pipe, any_reward(pipe), strong(pipe)):
        run()
        assert state_of(pipe)[1:] == before[1:]
        assert isinstance(pipe, before[0])
        assert type(pipe).__name__ == before[0].__name__
        assert inspect.signature(type(pipe).__call__) == inspect.signature(before[0].__call__)
    assert state_of(pipe) == before


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_during_a_call_the_step_has_its_own_signature_and_afterwards_nothing_stays(make):
    pipe, run = make()
    own, seen = inspect.signature(pipe.scheduler.step), []

    def reward(sample):
        seen.append(inspect.signature(pipe.scheduler.step))
        return any_reward(pipe)(sample)

    with guide(pipe, reward, STRONG):
        run()
    assert seen
    assert set(seen) == {own}


def test_the_scheduler_may_be_exchanged_between_calls():
    pipe, run = masked()
    bare = run()
    with guide(pipe, count_of_a, STRONG):
        guided = run()
        pipe.scheduler = MaskedDiffusionScheduler("left_to_right")
        other = run()
    assert not torch.equal(guided, bare)
    assert not torch.equal(other, run())  # which is the bare pipeline's with the new scheduler


def test_a_scheduler_that_no_host_knows_is_an_error_at_the_next_call():
    pipe, run = masked()
    with guide(pipe, count_of_a):
        pipe.scheduler = BlockRefinementScheduler()
        with pytest.raises(ValueError, match="got MaskedTextPipeline with scheduler BlockRefinementScheduler"):
            run()


def test_a_scheduler_exchanged_in_the_middle_of_a_call_is_an_error():
    pipe, run = masked()
    bare = run()

    def exchange(pipe, step, t, tensors):
        pipe.scheduler = MaskedDiffusionScheduler()

    with (
        guide(pipe, count_of_a),
        pytest.raises(RuntimeError, match="`scheduler` cannot be exchanged while the guided pipeline is drawing"),
    ):
        pipe("", callback_on_step_end=exchange)
    assert torch.equal(run(), bare)


# ---- copies ----


@every_host
@pytest.mark.parametrize("how", ["deepcopy", "copy", "pickle"])
def test_copies_come_out_unguided_and_independent(make, how):
    pipe, run = make()
    bare, kind = run(), type(pipe)
    if how == "pickle" and not _pickles(pipe):
        pytest.skip("the bare pipeline cannot be pickled")
    with guide(pipe, any_reward(pipe), strong(pipe)) as handle:
        guided = run()
        twin = pickle.loads(pickle.dumps(pipe)) if how == "pickle" else getattr(copy, how)(pipe)
        length = len(handle.trace)
        assert type(twin) is kind
        assert state_of(twin) == (kind, *state_of(pipe)[1:])
        assert torch.equal(_run_on(run, twin), bare)
        assert len(handle.trace) == length
        assert torch.equal(run(), guided)
    assert torch.equal(_run_on(run, twin), bare)
    if how == "deepcopy":
        with guide(twin, any_reward(twin), strong(twin)):
            assert torch.equal(run(), bare)  # the original stays bare
            assert torch.equal(_run_on(run, twin), guided)


def _pickles(pipe):
    try:
        return bool(pickle.dumps(pipe))
    except (AttributeError, pickle.PicklingError):
        return False


def _run_on(run, pipe):
    """The same call of another pipeline."""
    cells = dict(zip(run.__code__.co_freevars, run.__closure__, strict=True))
    before, cells["pipe"].cell_contents = cells["pipe"].cell_contents, pipe
    try:
        return run()
    finally:
        cells["pipe"].cell_contents = before


def test_a_copy_in_the_middle_of_a_call_is_refused():
    pipe, run = masked()
    bare = run()

    def take(pipe, step, t, tensors):
        copy.deepcopy(pipe)

    with guide(pipe, count_of_a), pytest.raises(RuntimeError, match="cannot be copied while it draws"):
        pipe("", callback_on_step_end=take)
    assert torch.equal(run(), bare)


# ---- neighbours ----


@every_host
def test_a_pipeline_that_shares_all_components_is_not_guided(make):
    pipe, run = make()
    kind = type(pipe)
    takes = inspect.signature(kind.__init__).parameters
    parts = {name: getattr(pipe, name) for name in takes if name in vars(pipe)}
    settings = {name: value for name, value in pipe.config.items() if name in takes and name not in parts}
    other = kind(**parts, **settings)
    other.set_progress_bar_config(disable=True)
    bare = _run_on(run, other)
    with guide(pipe, any_reward(pipe), strong(pipe)) as handle:
        assert torch.equal(_run_on(run, other), bare)
        assert not handle.trace
        assert not torch.equal(run(), bare)
        sibling = type(pipe)(**parts, **settings)  # made while guided
        assert type(sibling) is kind
        sibling.set_progress_bar_config(disable=True)
        assert torch.equal(_run_on(run, sibling), bare)
    assert torch.equal(run(), bare)


def test_a_neighbour_drawn_within_a_callback_is_not_guided_and_does_no_harm():
    """It shares the model, which the host listens to, and has another batch and length."""
    pipe, _ = llada2()
    other = LLaDA2Pipeline(pipe.model, BlockRefinementScheduler(), word_tokenizer())
    other.set_progress_bar_config(disable=True)
    settings = {"use_chat_template": False, "block_length": 4, "num_inference_steps": 4, "editing_threshold": None}
    settings |= {"temperature": 1.0, "output_type": "seq"}

    def neighbour():
        return other(["a", "b", "c d"], gen_length=4, generator=seeded(7), **settings).sequences

    def call(**more):
        return pipe(["a b", "c"], gen_length=8, generator=seeded(), **settings, **more).sequences

    found = []

    def callback(pipe, step, t, tensors):
        found.append(neighbour())
        return {}

    expected = neighbour()
    with guide(pipe, count_of_a, STRONG):
        alone = call()
        assert torch.equal(call(callback_on_step_end=callback), alone)
    assert len(found) > 3
    assert all(torch.equal(one, expected) for one in found)


def test_a_reward_may_use_the_model_that_is_guided():
    """The host listens to the model's calls; those of the reward are not the pipeline's."""
    pipe, run = llada2()
    fluency = FluencyReward(pipe.model, pipe.tokenizer, masked=True)
    bare = run()
    with guide(pipe, fluency + count_of_a, STRONG) as handle:
        assert not torch.equal(run(), bare)
    progress = [step.progress for step in handle.trace]
    assert progress == sorted(progress)


class Asks(PipelineCallback):
    """Uses the model that is guided, in ways that the pipeline does not."""

    tensor_inputs = ()

    def callback_fn(self, pipe, step, timestep, tensors):
        embeddings = pipe.model.get_input_embeddings()(torch.tensor([[3, 4, 5]]))
        pipe.model(inputs_embeds=embeddings)
        pipe.model(torch.tensor([[3, 4]]))
        self.calls = getattr(self, "calls", 0) + 1
        return {}


@pytest.mark.parametrize("kind", ["class", "several", "function"])
def test_a_callback_may_use_the_model_that_is_guided(kind):
    pipe, run = llada2()
    asks = Asks()
    callback = {"class": asks, "several": MultiPipelineCallbacks([asks]), "function": asks.callback_fn}[kind]
    more = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": []}
    with guide(pipe, count_of_a, STRONG):
        alone = run()
        run_with = llada2_call(pipe, **more)
        assert torch.equal(run_with, alone)
    assert asks.calls > 1


def llada2_call(pipe, **more):
    defaults = {"gen_length": 8, "block_length": 4, "num_inference_steps": 4, "temperature": 1.0}
    defaults |= {"use_chat_template": False, "editing_threshold": None, "output_type": "seq"}
    return pipe(["a b", "c"], generator=seeded(), **defaults, **more).sequences


def test_a_reward_may_draw_from_another_guided_pipeline_with_the_same_scheduler():
    first, second = tiny_pipeline(), tiny_pipeline()
    second.scheduler = first.scheduler
    found = []

    def run(pipe):
        return pipe(["", "a"], generator=seeded()).sequences

    def asks(tokens):
        if len(found) < 3:
            steps, schedule = first.scheduler.num_inference_steps, first.scheduler.timesteps
            found.append(run(second))
            first.scheduler.num_inference_steps, first.scheduler.timesteps = steps, schedule
        return count_of_a(tokens)

    with guide(first, count_of_a, STRONG):
        alone = run(first)
    with guide(second, lambda tokens: -count_of_a(tokens), STRONG):
        expected = run(second)
        with guide(first, asks, STRONG):
            assert torch.equal(run(first), alone)
    assert len(found) == 3
    assert all(torch.equal(one, expected) for one in found)
    assert "step" not in vars(first.scheduler)


def test_two_threads_that_put_their_seams_on_one_scheduler_at_once_keep_both(monkeypatch):
    scheduler, called = MaskedDiffusionScheduler(), []

    def slowly(*args, **kwargs):
        time.sleep(0.05)
        return functools.update_wrapper(*args, **kwargs)

    monkeypatch.setattr(seam_module, "functools", types.SimpleNamespace(update_wrapper=slowly))

    def work(k):
        seams.append(
            Seam(scheduler, "set_timesteps", lambda name, below, a, kw: (called.append(k), below(*a, **kw))[1])
        )

    seams = []
    threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    scheduler.set_timesteps(2)
    assert sorted(called) == [0, 1]
    [seam.remove() for seam in seams]
    assert "set_timesteps" not in vars(scheduler)


def test_two_threads_with_a_guided_pipeline_each_that_share_a_scheduler():
    first, second = tiny_pipeline(), tiny_pipeline()
    second.scheduler = first.scheduler
    rewards = {0: count_of_a, 1: lambda tokens: -count_of_a(tokens)}
    found, barrier = {0: [], 1: []}, threading.Barrier(2)

    def run(pipe):
        return pipe(["", "a"], generator=seeded(), num_inference_steps=4).sequences

    with guide(first, rewards[0], STRONG), guide(second, rewards[1], STRONG):
        alone = [run(first), run(second)]

        def work(k):
            for _ in range(4):
                barrier.wait(60)
                found[k].append(run((first, second)[k]))

        threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    for k in (0, 1):
        assert len(found[k]) == 4
        assert all(torch.equal(one, alone[k]) for one in found[k])
    assert "step" not in vars(first.scheduler)


def test_two_pipelines_that_share_a_scheduler_may_both_be_guided_and_removed_in_any_order():
    first, second = tiny_pipeline(), tiny_pipeline()
    second.scheduler = first.scheduler
    before = state_of(first)

    def run(pipe):
        return pipe(["", "a"], generator=seeded()).sequences

    bare = run(first)
    one = guide(first, count_of_a, STRONG)
    two = guide(second, lambda tokens: -count_of_a(tokens), STRONG)
    more, less = run(first), run(second)
    assert len({tuple(x.flatten().tolist()) for x in (bare, more, less)}) == 3
    one.remove()
    assert torch.equal(run(first), bare)
    assert torch.equal(run(second), less)
    two.remove()
    assert torch.equal(run(second), bare)
    assert state_of(first) == before


# ---- calls at the same time ----


def test_two_threads_cannot_use_one_guided_pipeline_at_the_same_time():
    pipe, run = masked()
    inside, go_on, errors = threading.Event(), threading.Event(), []

    def slow(tokens):
        inside.set()
        go_on.wait(20)
        return count_of_a(tokens)

    results = []
    with guide(pipe, slow, STRONG):
        thread = threading.Thread(target=lambda: results.append(run()))
        thread.start()
        assert inside.wait(20)
        try:
            run(1)
        except RuntimeError as error:
            errors.append(str(error))
        go_on.set()
        thread.join()
        alone = run()
    assert "is in the middle of a call" in errors[0]
    assert torch.equal(results[0], alone)


def test_two_threads_with_a_pipeline_each_that_share_the_model_do_not_see_one_another():
    first, second = tiny_llada2(), tiny_llada2()
    second.register_modules(model=first.model)
    settings = {"use_chat_template": False, "block_length": 4, "num_inference_steps": 4, "gen_length": 8}
    settings |= {"temperature": 1.0, "output_type": "seq", "editing_threshold": None, "eos_early_stop": False}

    def run(pipe, prompts):
        return pipe(prompts, generator=seeded(), **settings).sequences

    jobs = [(first, ["a b", "c"]), (second, ["d", "a b c", "e"])]
    with guide(first, count_of_a, STRONG), guide(second, count_of_a, STRONG):
        alone = [run(*job) for job in jobs]
        together = [[], []]
        barrier = threading.Barrier(2)

        def work(k):
            for _ in range(5):
                barrier.wait(60)
                together[k].append(run(*jobs[k]))

        threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    for k in (0, 1):
        assert all(torch.equal(found, alone[k]) for found in together[k])
        assert len(together[k]) == 5


def test_a_call_within_a_call_of_the_same_guided_pipeline_is_refused():
    pipe, run = masked()
    bare = run()

    def again(pipe, step, t, tensors):
        pipe("")

    with guide(pipe, count_of_a), pytest.raises(RuntimeError, match="two calls at the same time"):
        pipe("", callback_on_step_end=again)
    assert torch.equal(run(), bare)


# ---- wrappers, and removal in odd moments ----


def test_a_wrapper_put_on_the_scheduler_while_guided_outlives_guidance_and_the_other_way_round():
    pipe, run = masked()
    bare, before = run(), state_of(pipe)
    handle, calls = guide(pipe, count_of_a, STRONG), []
    own = pipe.scheduler.step

    def wrapper(*args, **kwargs):
        calls.append(1)
        return own(*args, **kwargs)

    pipe.scheduler.step = wrapper
    guided = run()
    assert calls
    assert not torch.equal(guided, bare)
    handle.remove()
    assert torch.equal(run(), bare)
    assert pipe.scheduler.step is wrapper
    del pipe.scheduler.step
    assert state_of(pipe) == before


def test_a_wrapper_put_on_in_the_middle_of_a_call_is_left_and_said(caplog):
    pipe, run = masked()
    bare = run()

    def wrap(pipe, step, t, tensors):
        if step == 0:
            inner = pipe.scheduler.step
            pipe.scheduler.step = lambda *args, **kwargs: inner(*args, **kwargs)

    with caplog.at_level(logging.WARNING), guide(pipe, count_of_a, STRONG):
        pipe("", callback_on_step_end=wrap)
    assert "`MaskedDiffusionScheduler.step` was wrapped by something else" in caplog.text
    assert torch.equal(run(), bare)


def test_removal_in_the_middle_of_a_call_ends_guidance_there():
    pipe, _ = masked()
    before, seen = state_of(pipe), []
    handle = guide(pipe, lambda tokens: (seen.append(1), count_of_a(tokens))[1], STRONG)

    def stop(pipe, step, t, tensors):
        handle.remove()

    pipe(["", ""], num_inference_steps=4, callback_on_step_end=stop)
    assert len(handle.trace) == 1
    assert state_of(pipe) == before
    assert "removed from" in repr(handle)


def test_a_call_with_wrong_arguments_is_the_pipelines_own_error():
    pipe, run = masked()
    bare = run()
    with guide(pipe, count_of_a):
        with pytest.raises(TypeError, match="unexpected keyword argument 'prompts'"):
            pipe(prompts=["a"])
        with pytest.raises(ValueError, match="`temperature` must be >= 0"):
            pipe("a", temperature=-1.0)
    assert torch.equal(run(), bare)


# ---- pipelines of one's own ----


class Loop:
    """A sampler without `__call__`, whose scheduler is used directly."""

    def __init__(self):
        self.scheduler, self.tokenizer = MaskedDiffusionScheduler("left_to_right"), word_tokenizer()

    def generate(self, steps=3):
        ids = torch.full((1, 3), 2)
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            ids = self.scheduler.step(
                torch.zeros(1, 3, len(WORDS)), t, ids, mask_token_id=2, generator=seeded(), return_dict=False
            )[0]
        return ids


def test_a_pipeline_without_a_call_is_guided_whenever_its_scheduler_is_used():
    pipe = Loop()
    bare = pipe.generate()
    with guide(pipe, count_of_a, plain_config(scale=20.0)) as handle:
        assert pipe.generate().tolist() == [[3, 3, 3]]
        first = [step.progress for step in handle.trace]
        twin = copy.deepcopy(pipe)
        assert torch.equal(twin.generate(), bare)
        pipe.generate()
        assert [step.progress for step in handle.trace] == 2 * first
    assert torch.equal(pipe.generate(), bare)
    assert not {"step", "set_timesteps"} & set(vars(pipe.scheduler))


def test_goals_of_a_sampler_without_a_call_are_judged_at_the_next_one_and_at_the_end():
    never = BlackBoxReward(lambda text: 0.0, name="never")
    pipe = Loop()
    handle = guide(pipe, never, GuidanceConfig(num_draws=2))
    pipe.generate()
    with pytest.warns(UserWarning, match="`reward` never moved nothing in this call"):
        pipe.generate()  # which sets the timesteps anew
    handle.remove()
    handle = guide(pipe, never, GuidanceConfig(num_draws=2))
    pipe.generate()
    with pytest.warns(UserWarning, match="`reward` never moved nothing in this call"):
        handle.remove()


@pytest.fixture
def loop_host():
    @register_host
    class LoopHost(Host):
        description = "Loop"
        entries = ("generate",)

        @classmethod
        def matches(cls, pipe):
            return is_a(pipe, "Loop")

        def read(self, seam, arguments):
            ids = arguments["sample"]
            free = ids == 2
            return DenoisingStep(arguments["model_output"], ids, free, free | True, 1.0, 0.0, self.pipe.tokenizer)

    yield LoopHost
    unregister_host(LoopHost)


def test_a_host_may_name_the_methods_that_draw(loop_host):
    pipe = Loop()
    bare = pipe.generate()
    with guide(pipe, count_of_a, plain_config(scale=20.0)):
        assert pipe.generate().tolist() == [[3, 3, 3]]
        assert "step" not in vars(pipe.scheduler)
    assert torch.equal(pipe.generate(), bare)


def test_slots_are_no_obstacle_and_what_cannot_be_derived_from_is_an_error():
    class Slotted:
        __slots__ = ("scheduler", "tokenizer")
        __init__ = Loop.__init__

    pipe = Slotted()
    with guide(pipe, count_of_a):
        assert type(pipe) is not Slotted
    assert type(pipe) is Slotted
    fixed = types.SimpleNamespace(scheduler=pipe.scheduler, tokenizer=pipe.tokenizer)
    with pytest.raises(ValueError, match="`pipe` must be an object of a class that can be derived from, got Simple"):
        guide(fixed, count_of_a)


# ---- what follows a step ----


def test_follow_is_told_what_was_drawn_without_anything_being_moved():
    pipe, run = masked(block_length=2, num_inference_steps=4)
    bare, told = run(), []
    attachment = Attachment(pipe, follow=lambda step, drawn: told.append(drawn))
    assert torch.equal(run(), bare)
    attachment.remove()
    free = pipe.canvas(["a b", "", "c [MASK] [MASK] d"]).free
    assert sum(drawn.positions.int() for drawn in told).equal(free.int())  # every one of them once
    assert torch.equal(told[-1].tokens, bare)


@pytest.mark.parametrize("name", ["masked", "gemma ddim"])
def test_a_neighbour_that_shares_all_components_may_be_drawn_within_a_callback(name):
    pipe, _ = ONE_OF_EACH[name]()
    parts = {
        part: getattr(pipe, part) for part in inspect.signature(type(pipe).__init__).parameters if part in vars(pipe)
    }
    other = type(pipe)(**parts)
    other.set_progress_bar_config(disable=True)
    settings = {"gen_length": 4, "num_inference_steps": 2, "return_dict": False}
    settings |= {} if name == "masked" else {"output_type": "seq", "temperature": 1.0}

    def neighbour():
        return other(["a b"] if name == "masked" else ["a b", "d e", "b"][:1], generator=seeded(5), **settings)[0]

    expected, found = neighbour(), []

    def callback(pipe, step, t, tensors):
        steps, schedule = pipe.scheduler.num_inference_steps, pipe.scheduler.timesteps
        found.append(neighbour())
        pipe.scheduler.num_inference_steps, pipe.scheduler.timesteps = steps, schedule  # as a caller would have to
        return {}

    def call(**more):
        defaults = {} if name == "masked" else {"output_type": "seq", "temperature": 1.0, "eos_early_stop": False}
        return pipe(["a b", "c d"], gen_length=8, num_inference_steps=4, generator=seeded(), **defaults, **more)[0]

    with guide(pipe, count_of_a, plain_config(scale=8.0)):
        alone = call(return_dict=False)
        assert torch.equal(call(return_dict=False, callback_on_step_end=callback), alone)
    assert len(found) >= 4
    assert all(torch.equal(one, expected) for one in found)


# ---- found by trying to break it ----


def test_class_methods_of_a_guided_pipeline_make_unguided_ones(tmp_path):
    pipe, run = masked()
    bare = run()
    with guide(pipe, count_of_a, STRONG):
        pipe.save_pretrained(tmp_path)
        loaded, again = type(pipe).from_pretrained(tmp_path), type(pipe).from_pipe(pipe)
    for other in (loaded, again):
        assert type(other) is type(pipe)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(_run_on(run, loaded), bare)


class Two(Loop):
    def __call__(self):
        return self.generate()

    def stream(self):
        yield self.generate()


class _LoopReader(Host):
    description = "Two"

    def read(self, seam, arguments):
        ids = arguments["sample"]
        free = ids == 2
        return DenoisingStep(arguments["model_output"], ids, free, free | True, 1.0, 0.0, self.pipe.tokenizer)

    @classmethod
    def matches(cls, pipe):
        return is_a(pipe, "Two")


@pytest.fixture
def two_entries():
    host = register_host(type("TwoHost", (_LoopReader,), {"entries": ("__call__", "generate", "stream")}))
    yield host
    unregister_host(host)


def test_an_entry_may_go_by_way_of_another_and_a_generator_is_refused(two_entries):
    pipe = Two()
    bare = pipe()
    with guide(pipe, count_of_a, plain_config(scale=20.0)) as handle:
        assert pipe().tolist() == [[3, 3, 3]]
        assert len(handle.trace) == 3
        with pytest.raises(
            RuntimeError, match=r"`Two.stream` gives a generator.*register a host with `entries = \(\)`"
        ):
            pipe.stream()
    assert torch.equal(pipe(), bare)


def test_a_pipeline_without_a_call_keeps_its_scheduler_while_guided():
    pipe = Loop()
    with guide(pipe, count_of_a), pytest.raises(RuntimeError, match="`scheduler` cannot be exchanged"):
        pipe.scheduler = MaskedDiffusionScheduler()
    pipe.scheduler = MaskedDiffusionScheduler()
    assert pipe.generate().shape == (1, 3)


def test_a_guided_method_that_is_put_back_after_removal_goes_for_good_and_is_no_copy_meanwhile():
    pipe = Loop()
    bare, handle = pipe.generate(), guide(pipe, count_of_a)
    kept = pipe.scheduler.step
    with pytest.raises(RuntimeError, match="`MaskedDiffusionScheduler.(step|set_timesteps)` is guided at the moment"):
        copy.deepcopy(pipe.scheduler)
    handle.remove()
    pipe.scheduler.step = kept
    assert torch.equal(pipe.generate(), bare)
    assert "step" not in vars(pipe.scheduler)


def test_a_scheduler_with_slots_is_an_error_that_says_so():
    class Fixed:
        __slots__ = ()

        def step(self, model_output, timestep, sample):
            return sample

    pipe = Loop()
    pipe.scheduler = type("MaskedDiffusionScheduler", (Fixed,), {"__slots__": ()})()
    with pytest.raises(ValueError, match="`scheduler` must be an object whose methods can be replaced"):
        guide(pipe, count_of_a)
    assert type(pipe) is Loop


def test_seams_on_one_another_go_in_any_order():
    scheduler = MaskedDiffusionScheduler()
    first, second = (Seam(scheduler, "step", lambda name, below, args, kwargs: below(*args, **kwargs)) for _ in "ab")
    assert vars(scheduler)["step"] is second
    first.remove()
    second.remove()
    assert "step" not in vars(scheduler)
