"""Many samples: each is what it is alone, whatever the batch, the order and the memory."""

import random
import statistics
import warnings
from types import SimpleNamespace

import pytest
import torch

from redge_guidance import GuidanceConfig
from redge_guidance.generation import generate
from redge_guidance.generation.requests import Line, Request
from redge_guidance.generation.sampler import Sampler
from redge_guidance.reward import Reward
from redge_guidance.rewards import LengthReward, LexicalReward
from tests.helpers.images import tiny_image_pipeline
from tests.helpers.tiny import tiny_pipeline, tiny_reward

CONFIG = GuidanceConfig(scale=3.0)
PROMPTS = [" ".join(random.Random(k).choices("abcde", k=k % 4)) for k in range(32)]


# A text of which a single token is to be drawn may have nothing that pulls at it.
pytestmark = pytest.mark.filterwarnings("ignore:.*moved nothing in this call")


def texts(prompts, batch_size=16, **settings):
    found = generate(tiny_pipeline(), prompts, tiny_reward(), CONFIG, batch_size=batch_size, **settings)
    return [(record.prompt, record.seed, record.text) for record in found]


@pytest.fixture(scope="module")
def of_sixteen():
    return texts(PROMPTS[:12], 16, samples_per_prompt=2)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batches_change_nothing(batch_size, of_sixteen):
    assert texts(PROMPTS[:12], batch_size, samples_per_prompt=2) == of_sixteen


def test_what_takes_as_many_steps_is_drawn_together():
    """Without `num_inference_steps` the pipeline refuses texts of other lengths beside each other."""
    sizes, inner = [], tiny_reward()

    def reward(tokens):
        sizes.append((len(tokens) // tokens.draws, len(set(tokens.free.sum(-1).tolist()))))
        return inner(tokens)

    with pytest.warns(UserWarning, match="does not score"):
        list(generate(tiny_pipeline(), PROMPTS, reward, CONFIG, batch_size=6))
    assert {size for size, _ in sizes} == {6, 2}  # eight of each length
    assert {lengths for _, lengths in sizes} == {1}


def test_the_order_changes_nothing():
    few = PROMPTS[:20]  # more than a batch
    shuffled = random.Random(0).sample(few, len(few))
    assert shuffled != few
    assert sorted(texts(shuffled)) == sorted(texts(few))


def test_the_same_prompt_again_gives_another_text():
    found = texts(["a"] * 8)
    assert len({seed for _, seed, _ in found}) == 8
    assert len({text for *_, text in found}) > 1
    assert found[:2] == texts(["a", "a"])


def test_another_seed_gives_other_texts():
    one, other = texts(PROMPTS[:8]), texts(PROMPTS[:8], seed=1)
    assert not {seed for _, seed, _ in one} & {seed for _, seed, _ in other}
    assert [text for *_, text in one] != [text for *_, text in other]


def test_records_are_what_pipeline_and_reward_say():
    """By the pipeline's own call with the record's seed, and by the reward's own score."""
    pipe, reward = tiny_pipeline(), tiny_reward() + 0.5 * LexicalReward("a")
    entry = {"prompt": "b c", "id": 7, "text": "mine"}
    bare = next(generate(pipe, [entry], reward, GuidanceConfig(scale=0), nats=True, num_inference_steps=3))
    generator = [torch.Generator().manual_seed(bare.seed)]
    assert bare.text == pipe("b c", generator=generator, num_inference_steps=3).texts[0]
    assert (bare.index, bare.sample, bare.strength, bare.kl) == (0, 0, 0.0, None)
    assert bare.reward == pytest.approx(float(reward.score([bare.text], ["b c"])), abs=1e-6)
    assert bare.rewards["LexicalReward"] == float(LexicalReward("a").score([bare.text]))
    assert bare.nats == float(pipe.nll([bare.text], generator=torch.Generator().manual_seed(bare.seed)))
    written = bare.to_dict()
    assert (written["id"], written["input_text"], written["text"]) == (7, "mine", bare.text)
    guided = next(generate(pipe, [entry], reward, CONFIG, num_inference_steps=3))
    assert guided.kl > 0
    assert guided.strength == 3


def test_kl_is_that_of_the_trace():
    from redge_guidance import guide

    pipe, reward = tiny_pipeline(), tiny_reward()
    prompts, steps = ["a [MASK] b", "b"], {"num_inference_steps": 3}  # the first of which is soon finished
    first, second = generate(pipe, prompts, reward, CONFIG, batch_size=2, **steps)
    with guide(pipe, reward, CONFIG) as handle:
        pipe(prompts, generator=[torch.Generator().manual_seed(r.seed) for r in (first, second)], **steps)
    counts = []
    for row, record in enumerate((first, second)):
        kls = [step.sequences[row].kl for step in handle.trace if step.sequences[row].free]
        assert record.kl == pytest.approx(sum(kls) / len(kls))
        counts.append(len(kls))
    assert counts[0] < counts[1]


def test_a_bad_entry_fails_alone():
    found = list(generate(tiny_pipeline(), ["a", "b " * 30, {"pompt": "c"}, "d"], tiny_reward(), CONFIG))
    assert [record.error is None for record in found] == [True, False, False, True]
    assert "the model has 24" in found[1].error
    assert "no field 'prompt'; it has 'pompt'" in found[2].error
    assert [found[0].text, found[3].text] == [record.text for record in generate_good(["a", "d"])]


def generate_good(prompts):
    return list(generate(tiny_pipeline(), prompts, tiny_reward(), CONFIG))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"prompts": "b " * 30}, "the model has 24"),
        ({"prompts": 3.5}, "`prompts` must be a text"),
        ({"prompts": [3.5]}, "got 3.5 as entry 0"),
        ({"temperature": -1}, "`temperature` must be >= 0"),
        ({"num_inference_step": 3}, "did you mean `num_inference_steps`"),
        ({"generator": 3}, "every sample is given its own"),
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1"),
        ({"samples_per_prompt": 1.5}, "`samples_per_prompt` must be an integer >= 1"),
        ({"seed": "x"}, "`seed` must be an integer"),
        ({"reward": 3}, "`reward` must be"),
        ({"reward": None}, "`reward` is None"),
    ],
)
def test_what_is_wrong_with_all_of_them_is_raised(arguments, told):
    given = {"prompts": ["a", "b"], "reward": tiny_reward(), "config": CONFIG} | arguments
    with pytest.raises(ValueError, match=told):
        list(generate(tiny_pipeline(), given.pop("prompts"), **given))


def test_arguments_are_checked_before_anything_is_drawn():
    with pytest.raises(ValueError, match="no argument of MaskedTextPipeline"):
        generate(tiny_pipeline(), "a", nonsense=1)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_out_of_memory_halves_the_batch(error, caplog):
    """A reward that does not fit with more than 3 sequences."""
    sizes, inner = [], tiny_reward()

    class Hungry(Reward):
        modality = "text"

        def __call__(self, tokens):
            sizes.append(len(tokens) // tokens.draws)
            if sizes[-1] > 3:
                raise error
            return inner(tokens)

        def score(self, samples, prompts=None, batch_size=32):
            return inner.score(samples, prompts)

    steps = {"num_inference_steps": 3}
    found = list(generate(tiny_pipeline(), PROMPTS[:10], Hungry(), CONFIG, batch_size=8, **steps))
    assert [record.text for record in found] == [text for *_, text in texts(PROMPTS[:10], **steps)]
    assert "going on with 4" in caplog.text
    assert "going on with 2" in caplog.text
    assert list(dict.fromkeys(sizes)) == [8, 4, 2]


def test_out_of_memory_with_one_sample_says_what_helps():
    def reward(tokens):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(MemoryError, match="num_draws.*decode_chunk_size.*Tried to allocate"):
        list(generate(tiny_pipeline(), ["a", "b"], reward, CONFIG))


def test_other_errors_are_those_they_are():
    def reward(tokens):
        raise RuntimeError("of my own")

    with pytest.raises(RuntimeError, match="of my own"):
        list(generate(tiny_pipeline(), ["a"], reward, CONFIG))


def test_the_pipeline_comes_back_as_it_was():
    pipe = tiny_pipeline()
    kind = type(pipe)
    records = generate(pipe, ["a", "b"], tiny_reward(), CONFIG, batch_size=1)
    next(records)
    records.close()
    assert type(pipe) is kind


def test_a_reward_that_cannot_score_is_said_once():
    def reward(tokens):
        return tokens.weights.sum() + torch.zeros(len(tokens))

    pipe = tiny_pipeline()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = list(generate(pipe, ["a", "b", "c"], reward, CONFIG, batch_size=1))
    assert [record.reward for record in found] == [None] * 3
    assert sum("does not score finished samples" in str(one.message) for one in told) == 1


def test_images_of_classes_and_of_any():
    from tests.helpers.hosts import brightness

    pipe = tiny_image_pipeline()
    prompts, config = [2, 0, None, 1, ""], GuidanceConfig(30.0)
    together = list(generate(pipe, prompts, brightness, config, num_inference_steps=3))
    alone = list(generate(pipe, prompts, brightness, config, num_inference_steps=3, batch_size=1))
    assert [one.image.tobytes() for one in together] == [one.image.tobytes() for one in alone]
    assert [one.prompt for one in together] == prompts
    assert all(one.text is None and one.kl > 0 for one in together)
    label = [torch.Generator().manual_seed(together[0].seed)]
    bare = next(generate(pipe, [2], brightness, GuidanceConfig(0), num_inference_steps=3))
    own = pipe([2], generator=label, num_inference_steps=3).images[0]
    assert bare.image.tobytes() == own.tobytes()


def test_terms_that_judge_finished_texts_and_lengths():
    reward = LengthReward(2, 3) + 2 * tiny_reward()
    record = next(generate(tiny_pipeline(), "a", reward, CONFIG))
    assert record.reward == pytest.approx(
        sum(w * record.rewards[t.name] for w, t in zip((1, 2), reward.terms, strict=True))
    )
    assert isinstance(record.reached, bool)


@pytest.mark.parametrize("target", [-1e3, None, 0.0])
def test_a_target_is_reached_where_the_finished_text_has_it(target):
    """By the terms that have one: what is an automaton has none."""
    reward, pipe = 2 * tiny_reward() + LexicalReward("a"), tiny_pipeline()
    middle = statistics.median(tiny_reward().score([one.text for one in generate(pipe, PROMPTS[:16])]).tolist())
    target = 2 * middle if target is None else target
    records = list(generate(pipe, PROMPTS[:16], reward, GuidanceConfig(target=target, kl_budget=0.01)))
    for record in records:
        value = 2 * next(iter(record.rewards.values()))
        assert record.target_reached is (value >= target)
    assert target in (-1e3, 0.0) or {record.target_reached for record in records} == {False, True}


def test_without_a_target_none_is_reached_or_missed():
    records = list(generate(tiny_pipeline(), ["a", "b"], tiny_reward(), CONFIG))
    assert [record.target_reached for record in records] == [None, None]


@pytest.mark.parametrize("takes_list", [True, False])
@pytest.mark.parametrize("place", ["_execution_device", "device", None])
def test_generators_are_where_the_pipeline_can_draw_from_them(takes_list, place, monkeypatch):
    """diffusers' block refinement draws where the logits are, of one generator; ours moves what it has drawn."""
    annotation = torch.Generator | list[torch.Generator] | None if takes_list else torch.Generator | None
    made = []

    class Generator:
        def __init__(self, device="cpu"):
            made.append(str(device))

        def manual_seed(self, seed):
            return self

    class Pipe:
        def __call__(self, prompt, generator: annotation = None):
            return SimpleNamespace(texts=prompt if isinstance(prompt, list) else [prompt])

    pipe = Pipe()
    if place is not None:
        setattr(pipe, place, torch.device("cuda:1"))
    sampler = Sampler(pipe, {})
    monkeypatch.setattr(torch, "Generator", Generator)
    sampler.draw([Request(Line(0, "a"), 0, 7)])
    assert made == ["cpu" if takes_list or place is None else "cuda:1"]
