"""What a guided call has come to: the reward of every finished sample, whether it has its target, and if not why."""

import copy
import pickle
import warnings

import pytest
import torch
from diffusers import EntropyBoundScheduler

from redge_guidance import GuidanceConfig, LogitsGuidance, guide
from redge_guidance.generation import generate
from redge_guidance.guidance import Guidance
from redge_guidance.hosts.attachment import Attachment
from redge_guidance.records import columns
from redge_guidance.reward import Reward
from redge_guidance.rewards import BlackBoxReward, LengthReward, LexicalReward, TextClassifierReward
from redge_guidance.stopping import Settled
from redge_guidance.strength import least_of
from tests.helpers.hosts import IMAGES, MASKED, TEXTS, brightness, gemma, inpainting, llada2, masked, seeded, uniform
from tests.helpers.images import tiny_image_pipeline
from tests.helpers.tiny import CHAT_TEMPLATE, tiny_gemma, tiny_llada2, tiny_pipeline, tiny_reward, tiny_uniform
from tests.helpers.unified import UnifiedPipeline, tiny_unified
from tests.redge_guidance.test_attachment import Loop

pytestmark = pytest.mark.filterwarnings("ignore:.*moved nothing in this call", "ignore:.*whose range is unknown")
TOWARD_TWO = GuidanceConfig(target=2.0, kl_budget=0.5)


class Answer(Reward):
    """How many words of the answer are `a`."""

    answer_only = True

    def __call__(self, sample):
        judged = sample.judged(True)
        return (judged.weights_of([3])[..., 0] * judged.attention_mask).sum(-1)

    def score(self, samples, prompts=None, batch_size=32):
        return torch.tensor([float(text.split().count("a")) for text in samples])


@pytest.fixture
def endings(monkeypatch):
    """What is told at the end of calls, and so what these have returned."""
    told, own = [], Guidance.came_to
    monkeypatch.setattr(Guidance, "came_to", lambda self, ending: (told.append(ending), own(self, ending)))
    return told


def drawn_texts(pipe, result):
    """Answers of a pipeline's output, as its own code makes them of its tokens."""
    if hasattr(result, "answers"):
        return result.answers
    tokenizer = getattr(pipe, "tokenizer", None) or pipe.processor
    rows = [row[: (row == 1).nonzero()[0, 0] if (row == 1).any() else None] for row in result.sequences]
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


# ---- the figures are those of `score`, on every host, with every kind of reward ----


@pytest.mark.parametrize("name", [*TEXTS, *MASKED])
def test_it_is_the_score_of_what_texts_have_come_to(name, endings):
    pipe, run = (TEXTS | MASKED)[name]()
    with guide(pipe, Answer(), TOWARD_TWO) as handle:
        for seed in range(3):
            run(seed)
            texts = drawn_texts(pipe, endings[-1].result)
            assert [one.reward for one in handle.finished] == Answer().score(texts).tolist()
            assert all(one.target_reached is (one.reward >= 2) for one in handle.finished)
            assert all((one.why is None) is one.target_reached for one in handle.finished)


@pytest.mark.parametrize("kind", ["llada2", "gemma"])
def test_texts_that_end_early_are_known(kind):
    """Where answers have ended, and where a prediction has settled, less is drawn than was asked for."""
    pipe = tiny_llada2() if kind == "llada2" else tiny_gemma(EntropyBoundScheduler())

    def ends(tokens):
        return tokens.weights_of([1])[..., 0].sum(-1)

    with guide(pipe, ends, GuidanceConfig(target=3.0, kl_budget=3.0)) as handle:
        ended = set()
        for seed in range(4):
            settings = {"use_chat_template": False} if kind == "llada2" else {}
            settings |= {"gen_length": 8, "num_inference_steps": 4, "generator": seeded(seed)}
            sequences = pipe(["a", "c"], **settings).sequences
            assert handle.finished is not None
            ended |= set((sequences == 1).any(-1).tolist())
    assert True in ended


@pytest.mark.parametrize("name", list(IMAGES))
def test_it_is_the_score_of_what_images_have_come_to(name, endings):
    pipe, run = IMAGES[name]()
    with guide(pipe, brightness, GuidanceConfig(target=0.5, kl_budget=1.0)) as handle:
        tokens = run()
        tokens = tokens if torch.is_tensor(tokens) else tokens[0]
    step = endings[-1].step
    pixels = step.images.decode(step.images.codebook[tokens.flatten(1)])
    torch.testing.assert_close(torch.tensor([one.reward for one in handle.finished]), brightness(pixels))


@pytest.mark.parametrize("kind", ["pt", "np", "pil"])
def test_images_are_judged_as_they_were_returned(kind):
    """With what the pipeline pastes into them."""
    pipe, _ = inpainting()
    image, mask = torch.rand(1, 3, 8, 8, generator=seeded()), torch.zeros(8, 8)
    mask[:, 4:] = 1
    with guide(pipe, brightness, GuidanceConfig(target=0.5, kl_budget=1.0)) as handle:
        settings = {"num_images_per_prompt": 2, "image": image, "mask_image": mask, "generator": seeded()}
        pixels = pipe(**settings, output_type="pt").images
        output = pipe(**settings | {"generator": seeded()}, output_type=kind, return_dict=False)
    found = torch.tensor([one.reward for one in handle.finished])
    torch.testing.assert_close(found, brightness(pixels), atol=1 / 255 if kind == "pil" else 1e-6, rtol=0)
    assert len(output[0]) == 2


def function_of_strings(text: str, prompt: str) -> float:
    return text.count("a") - len(prompt) / 10


def as_in_trl(completions, solution, **more):
    answers = [one if isinstance(one, str) else one[0]["content"] for one in completions]
    return [float(answer.split().count(wanted)) for answer, wanted in zip(answers, solution, strict=True)]


SUM = 2 * tiny_reward() + LexicalReward("a") - 0.5 * BlackBoxReward(lambda text: float(len(text)))
KINDS = {
    "label": (tiny_reward(), -0.4),
    "sum with an automaton": (SUM, -4.0),
    "answers": (TextClassifierReward(tiny_reward().model, tiny_reward().tokenizer, "good", answer_only=True), -0.4),
    "function of strings": (function_of_strings, 1.0),
    "columns": (as_in_trl, 2.0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [tiny_pipeline, tiny_uniform], ids=["masked", "uniform"])
@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_it_is_what_records_say(kind, make, chat):
    (reward, target), pipe = KINDS[kind], make(length=12)
    pipe.tokenizer.chat_template = CHAT_TEMPLATE
    prompts = [[{"role": "user", "content": text}] if chat else text for text in ("a b", "c d", "a a", "e")]
    config = GuidanceConfig(target=target, kl_budget=0.1)
    how = {"gen_length": 4, "num_inference_steps": 4}
    entries = [{"prompt": prompt, "solution": "a"} for prompt in prompts]
    records = list(generate(pipe, entries, reward, config, **how))
    with guide(pipe, reward, config) as handle, columns(solution=["a"] * 4):
        output = pipe(prompts, generator=[seeded(record.seed) for record in records], **how)
    assert output.texts == [record.text for record in records]  # `finished` is read where the fields are gone
    assert [one.target_reached for one in handle.finished] == [record.target_reached for record in records]
    assert [one.reward for one in handle.finished] == pytest.approx([record.reward for record in records])
    for one, record in zip(handle.finished, records, strict=True):
        assert one.rewards == pytest.approx(record.rewards)


def test_it_is_what_records_of_images_say():
    pipe, config = tiny_image_pipeline(), GuidanceConfig(target=0.5, kl_budget=1.0)
    records = list(generate(pipe, [2, 0, 1], brightness, config, num_inference_steps=3))
    generators = [seeded(record.seed) for record in records]
    with guide(pipe, brightness, config) as handle:
        pipe([2, 0, 1], num_inference_steps=3, generator=generators, output_type="pt")
    assert [one.reward for one in handle.finished] == [record.reward for record in records]
    assert [one.target_reached for one in handle.finished] == [record.target_reached for record in records]


def test_a_target_counts_as_reached_but_for_rounding():
    pipe, run = masked(prompt=("a b", ""))
    constant = BlackBoxReward(lambda text: 1000.0)
    for target, reached in ((1000.0, True), (1000.005, True), (1001.0, False)):
        with guide(pipe, constant, GuidanceConfig(target=target, kl_budget=0.1)) as handle:
            run()
        assert {one.target_reached for one in handle.finished} == {least_of(target) <= 1000.0} == {reached}


def test_functions_of_relaxed_tokens_are_asked_about_hard_ones():
    pipe, run = masked()
    with guide(pipe, lambda tokens: tokens.weights_of([3])[..., 0].sum(-1), TOWARD_TWO) as handle:
        sequences = run()
    assert [one.reward for one in handle.finished] == (sequences == 3).sum(-1).tolist()


# ---- what it costs ----


def test_the_reward_is_asked_once_when_it_is_first_read():
    asked = []

    class Counted(Answer):
        def score(self, samples, prompts=None, batch_size=32):
            asked.append(len(samples))
            return super().score(samples, prompts, batch_size)

    pipe, run = masked()
    with guide(pipe, Counted(), TOWARD_TWO) as handle:
        run()
        assert not asked
        first = handle.finished
        assert handle.finished is first is handle.trace.finished
        assert asked == [3]
        run(1)
        run(2)
    assert handle.finished is not first
    assert asked == [3, 3]


@pytest.mark.parametrize("make", [masked, uniform], ids=["masked", "uniform"])
def test_logits_that_are_spent_are_written_into_all_the_same(make, monkeypatch):
    pipe, run = make()
    spent, own = [], Guidance.__call__
    monkeypatch.setattr(Guidance, "__call__", lambda self, step: (spent.append(step.spent), own(self, step))[1])
    with guide(pipe, Answer(), TOWARD_TWO) as handle:
        run()
    assert set(spent) == {True}
    assert handle.finished is not None


def test_no_logits_are_kept(endings):
    pipe, run = masked()
    with guide(pipe, Answer(), TOWARD_TWO):
        run()
    assert endings[-1].step.logits.untyped_storage().nbytes() == 0


def test_it_goes_with_copies_of_the_trace():
    pipe, run = masked()
    with guide(pipe, Answer(), TOWARD_TWO) as handle:
        run()
    assert pickle.loads(pickle.dumps(handle.trace)).finished == copy.deepcopy(handle.trace).finished == handle.finished


def test_without_a_target_samples_are_worth_what_they_are(endings):
    pipe, run = masked()
    with guide(pipe, Answer(), GuidanceConfig(scale=1.0)) as handle:
        run()
    texts = drawn_texts(pipe, endings[-1].result)
    assert [one.reward for one in handle.finished] == Answer().score(texts).tolist()
    assert {(one.target_reached, one.why) for one in handle.finished} == {(None, None)}


def test_an_automaton_alone_has_no_target(endings):
    pipe, run = masked(prompt=("", ""))
    reward = LengthReward(2, 3)
    with guide(pipe, reward) as handle:
        run()
    texts = drawn_texts(pipe, endings[-1].result)
    assert [one.reward for one in handle.finished] == reward.score(texts).tolist()
    assert {one.target_reached for one in handle.finished} == {None}


# ---- where it is not known ----


def test_what_guides_nothing_hears_nothing(endings):
    pipe, run = masked()
    with guide(pipe, Answer(), GuidanceConfig(scale=0.0)) as handle:
        run()
    assert handle.finished is None
    assert not endings


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_uniform], ids=["masked", "uniform"])
def test_a_call_that_was_broken_off_is_not_known(make):
    pipe, how = make(), {"num_inference_steps": 4, "generator": seeded()}

    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = step == 1
        return {}

    def fail(pipe, step, timestep, tensors):
        raise KeyError("mine")

    with guide(pipe, Answer(), TOWARD_TWO) as handle:
        assert handle.finished is None
        pipe(["a", "b"], **how)
        assert len(handle.finished) == 2
        pipe(["a", "b"], **how, callback_on_step_end=stop)
        assert handle.finished is None
        pipe(["a", "b"], **how)
        with pytest.raises(KeyError):
            pipe(["a", "b"], **how, callback_on_step_end=fail)
        assert handle.finished is None
    handle = guide(pipe, Answer(), TOWARD_TWO)
    seen = []
    pipe(["a"], **how, callback_on_step_end=lambda *_: (seen.append(handle.finished), handle.remove(), {})[2])
    assert handle.finished is None
    assert set(seen) == {None}


def test_what_is_left_open_is_not_known():
    """A callback hides the last token again; behind the end of a text that changes nothing."""
    pipe, seen = tiny_pipeline(), set()

    def hide(pipe, step, timestep, tensors):
        return {"sample": tensors["sample"].masked_fill(torch.tensor([False] * 5 + [True]), 2)}

    with guide(pipe, Answer(), TOWARD_TWO) as handle:
        for seed in range(12):
            how = {"num_inference_steps": 4, "generator": seeded(seed), "callback_on_step_end": hide}
            sequences = pipe(["", ""], **how).sequences
            left_open = not bool((sequences[:, :5] == 1).any(-1).all())
            assert (handle.finished is None) is left_open
            seen.add(left_open)
    assert True in seen
    pipe = tiny_image_pipeline()

    def hide_all(pipe, step, timestep, tensors):
        return {"sample": torch.full_like(tensors["sample"], pipe.mask_token_id)}

    with guide(pipe, brightness, GuidanceConfig(target=0.5, kl_budget=1.0)) as handle:
        pipe([0], num_inference_steps=2, generator=seeded(), callback_on_step_end=hide_all, output_type="latent")
    assert handle.finished is None


def test_a_text_that_is_read_off_elsewhere_is_not_known():
    """Muddit reads its texts off the last logits: where these are others than was drawn nothing is claimed."""
    pipe, agreed = tiny_unified(UnifiedPipeline), []
    with guide(pipe, Answer(), TOWARD_TWO) as handle:
        for seed in range(4):
            pictures = torch.rand(2, 3, 8, 8, generator=seeded())
            _, texts = pipe("a", image=pictures, num_inference_steps=1 + seed % 2, generator=seeded(seed))
            found = handle.finished
            agreed.append(found is None or [one.reward for one in found] == Answer().score(texts).tolist())
    assert all(agreed)


def test_loops_and_models_hear_of_no_end():
    pipe, how = tiny_pipeline(), {"tokenizer": tiny_pipeline().tokenizer}
    loop, ids = LogitsGuidance(Answer(), TOWARD_TWO, **how), torch.tensor([[3, 2, 2]])
    handle = guide(pipe.model, Answer(), TOWARD_TWO, **how)
    while (ids == 2).any():
        with torch.no_grad():
            logits = handle._pipe(ids).logits
        ids = ids.where(ids != 2, loop(logits, ids)[..., 3:].argmax(-1) + 3)
    handle.remove()
    assert loop.trace.finished is handle.finished is None
    sampler = Loop()
    with guide(sampler, Answer(), TOWARD_TWO) as handle:
        sampler.generate()
    assert handle.finished is None


def test_a_host_that_does_not_say_what_was_drawn_goes_on(monkeypatch):
    pipe, run = masked()
    monkeypatch.setattr("redge_guidance.hosts.base.Host.after", lambda *args: 1 / 0)
    with guide(pipe, Answer(), TOWARD_TWO) as handle:
        run()
    assert handle.finished is None


# ---- why a target is missed ----


def missed(reward, config, pipe=None, prompts=("", "a", "b"), steps=4, **guiding):
    pipe = tiny_pipeline() if pipe is None else pipe
    with guide(pipe, reward, config, **guiding) as handle:
        pipe(list(prompts), num_inference_steps=steps, generator=seeded())
    return [one.why for one in handle.finished if not one.target_reached], handle


def test_a_price_that_was_paid_in_full_is_said():
    why, handle = missed(Answer(), GuidanceConfig(target=9.0, kl_budget=0.2))
    last = [step for step in handle.trace if step.sequences[0].asked][-1].sequences
    for told, figures in zip(why, last, strict=True):
        paid, spent = figures.strength > 0.97 * figures.ceiling, figures.kl > 0.97 * 0.2
        assert paid or spent
        assert "larger `kl_budget`" in told
        assert ("it paid the most that the budget allows" in told) is paid
        assert (f"it spent the whole budget, {figures.kl:.3g} nats" in told) is (spent and not paid)
        assert (f"{figures.strength:.3g} nats a unit of reward" in told) is paid
    why, _ = missed(tiny_reward(), GuidanceConfig(target=-1e-6))
    assert any("the most that `usual_scale` of the reward allows" in one for one in why)


def test_what_had_no_gradient_is_said():
    for reward in (
        BlackBoxReward(lambda text: 0.0),
        lambda tokens: tokens.weights.sum() * 0 + torch.zeros(len(tokens)),
    ):
        why, _ = missed(reward, GuidanceConfig(target=1.0, kl_budget=0.2))
        assert len(why) == 3
        assert all(one.startswith("nothing pulled at it") for one in why)


def test_what_was_stopped_is_said():
    rule = Settled(tolerance=100.0, patience=1)
    why, _ = missed(Answer(), GuidanceConfig(target=9.0, kl_budget=0.2, every=1), steps=6, stop_when=rule)
    assert len(why) == 3
    assert all(one.startswith("`stop_when` ended its guidance after step 2 of 6") for one in why)


def test_guidance_that_ended_or_never_was_is_said():
    why, _ = missed(Answer(), GuidanceConfig(target=1.0, kl_budget=3.0, stop=0.3), prompts=["b"] * 16, steps=6)
    assert any("expected it to be reached" in one and "take a later `stop`" in one for one in why)
    why, _ = missed(Answer(), GuidanceConfig(target=9.0, kl_budget=0.2, schedule="early", every=1), steps=6)
    assert all(one.startswith("at step 3 of 6, the last that asked") for one in why)
    assert all("; guidance ended 3 steps before the end: look at `stop` and `schedule`" in one for one in why)
    why, _ = missed(Answer(), GuidanceConfig(target=9.0, kl_budget=0.2, every=1), steps=6)
    assert not any("guidance ended" in one for one in why)
    why, _ = missed(tiny_reward(), GuidanceConfig(target=-1e-6, schedule="linear", every=1), steps=4)
    assert any("nats a unit of reward, of which `schedule` left 0.25" in one for one in why)
    why, _ = missed(Answer(), GuidanceConfig(target=9.0, kl_budget=3.0, start=0.9), steps=2)
    assert all("since there were none; look at `start`" in one for one in why)
    assert len(why) == 3


def test_a_guess_that_was_wrong_is_said():
    """The mean of what may be drawn is worth more to this reward than any text."""

    def spread(tokens):
        return -(tokens.weights_of([3, 4, 5, 6, 7]) ** 2).sum((-1, -2))

    why, handle = missed(spread, GuidanceConfig(target=-2.5, kl_budget=3.0), prompts=[""] * 3)
    hopeful = [one.reached for one in handle.trace[-1].sequences]
    assert len(why) == 3
    assert any(hopeful)
    told = "expected it to be reached without being moved"
    assert ["expected it to be reached" in one and "hard ones" in one for one in why] == hopeful
    assert any(told in one for one in why)


def test_every_line_is_told_without_warnings_for_hosts_in_blocks():
    torch.compiler.cudagraph_mark_step_begin()  # which DiffusionGemma calls; torch warns where it is first imported
    for pipe, run in (llada2(), gemma(EntropyBoundScheduler()), masked(block_length=2, num_inference_steps=4)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with guide(pipe, Answer(), GuidanceConfig(target=9.0, kl_budget=0.1)) as handle:
                run()
            assert all(one.why for one in handle.finished)


def test_attachments_that_do_not_ask_are_told_nothing():
    pipe, run = masked()
    told = []
    attachment = Attachment(pipe, move=lambda step: None, came_to=told.append)
    run()
    attachment.remove()
    run()
    assert len(told) == 1


@pytest.mark.parametrize("make", [masked, uniform, inpainting], ids=["masked", "uniform", "image"])
def test_calls_under_inference_mode_are_judged_too(make):
    pipe, run = make()
    reward = brightness if make is inpainting else Answer()
    with guide(pipe, reward, TOWARD_TWO) as handle:
        with torch.inference_mode():
            run()
        first = handle.finished
        run()
    assert [one.reward for one in first] == pytest.approx([one.reward for one in handle.finished])
