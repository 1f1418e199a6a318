"""The embedded checkpoints do what their cards say, on a few samples; `benchmarks/` has the figures."""

import json
import math
import os
import re

import pytest
import torch

from redge_guidance import GuidanceConfig, guide, hub
from redge_guidance.pipelines import MaskedImagePipeline, MaskedTextPipeline, TextPipeline, UniformTextPipeline
from redge_guidance.rewards import AllDifferentReward, ImageClassifierReward, TextClassifierReward

SENTENCES = [
    "The children were playing in the garden when it began to rain.",
    "I forgot to buy milk on my way home.",
    "Could you tell me where the nearest bank is?",
    "My sister has never been to Australia.",
    "They sold their house and moved to the city.",
]


def test_bits_per_character_of_ordinary_sentences(embedded):
    bits = embedded.nll(SENTENCES).sum().item() / math.log(2) / sum(map(len, SENTENCES))
    assert bits < 1.6
    shuffled = [" ".join(sorted(sentence.split())) for sentence in SENTENCES]
    assert embedded.nll(shuffled).sum() > 1.5 * embedded.nll(SENTENCES).sum()


def test_any_text_round_trips_through_the_tokenizer(embedded):
    for text in [*SENTENCES, "Ünïcode € 5,000", "don't you'd  two spaces", ""]:
        ids = embedded.tokenizer(text).input_ids
        assert embedded.tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.fixture(scope="module")
def bare(embedded):
    return embedded([""] * 16, generator=torch.Generator().manual_seed(0)).texts


@pytest.mark.parametrize("label", ["negative", "positive"])
def test_guidance_reaches_the_label(embedded, bare, label):
    reward = TextClassifierReward.from_pretrained("builtin:sentiment", label=label)

    def hits(texts):
        return sum(found == label for found in reward.predict(texts)) / len(texts)

    with guide(embedded, reward):
        guided = embedded([""] * 16, generator=torch.Generator().manual_seed(0)).texts
    assert hits(bare) < 0.5
    assert hits(guided) > 0.8
    assert len(set(guided)) >= 15


@pytest.fixture(scope="module")
def uniform():
    pipe = TextPipeline.from_pretrained("builtin:tatoeba-uniform")
    assert isinstance(pipe, UniformTextPipeline)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_uniform_model_knows_sentences_from_shuffled_words(uniform):
    bits = uniform.nll(SENTENCES).sum().item() / math.log(2) / sum(map(len, SENTENCES))
    assert bits < 1.9
    shuffled = [" ".join(sorted(sentence.split())) for sentence in SENTENCES]
    assert uniform.nll(shuffled).sum() > 1.5 * uniform.nll(SENTENCES).sum()


def test_guidance_of_the_uniform_model_reaches_the_label(uniform):
    reward = TextClassifierReward.from_pretrained("builtin:sentiment", label="positive")

    def hits(**settings):
        texts = uniform([""] * 8, generator=torch.Generator().manual_seed(0), **settings).texts
        assert len(set(texts)) >= 7
        return sum(found == "positive" for found in reward.predict(texts)) / len(texts)

    bare = hits(num_inference_steps=16)
    with guide(uniform, reward):
        guided = hits(num_inference_steps=16)
    assert bare < 0.5
    assert guided > 0.7


def test_infilling_keeps_what_is_given(embedded):
    texts = embedded(["Tom [MASK] to [MASK] home."] * 4, generator=torch.Generator().manual_seed(0)).texts
    for text in texts:
        assert text.startswith("Tom ")
        assert text.endswith(" home.")
        assert " to " in text


@pytest.fixture(scope="module")
def digits():
    pipe = MaskedImagePipeline.from_pretrained("builtin:mnist-masked")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_digits_of_a_class(digits):
    reward = ImageClassifierReward.from_pretrained("builtin:mnist-classifier", 0)
    labels = list(range(10))
    images = digits(
        labels, num_images_per_prompt=4, generator=torch.Generator().manual_seed(0), output_type="pt"
    ).images
    found = reward.predict(images)
    assert sum(label == str(i // 4) for i, label in enumerate(found)) >= 34


def test_guidance_of_digits_without_a_class(digits):
    reward = ImageClassifierReward.from_pretrained("builtin:mnist-classifier", "7", temperature=8.0)

    def draw():
        return digits(num_images_per_prompt=8, generator=torch.Generator().manual_seed(0), output_type="pt").images

    bare = draw()
    with guide(digits, reward, GuidanceConfig(scale=500.0)):
        guided = draw()
    assert sum(label == "7" for label in reward.predict(bare)) <= 3
    assert sum(label == "7" for label in reward.predict(guided)) >= 7
    assert torch.pdist(guided[:, 0].flatten(1)).min() > 1  # no two alike


@pytest.fixture(scope="module")
def boards():
    pipe = MaskedTextPipeline.from_pretrained("builtin:sudoku-masked")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def puzzles(name):
    with open(os.path.join(hub.resolve("builtin:sudoku-masked"), "puzzles.json"), encoding="utf-8") as file:
        return json.load(file)[name]


def filled_in(pipe, prompts):
    return pipe(prompts, num_inference_steps=20, generator=torch.Generator().manual_seed(0)).texts


def test_sudoku_puzzles_are_filled_in_with_digits_and_solved(boards):
    pairs = puzzles("easy")[:16]
    texts = filled_in(boards, [puzzle.replace(".", "[MASK]") for puzzle, _ in pairs])
    for text, (puzzle, _) in zip(texts, pairs, strict=True):
        assert re.fullmatch("[1-9]{81}", text)
        assert all(given in (".", digit) for given, digit in zip(puzzle, text, strict=True))
    assert sum(text == solution for text, (_, solution) in zip(texts, pairs, strict=True)) >= 12


def test_a_prompt_of_a_board_may_have_lines_and_nothing_but_digits(boards):
    solution = puzzles("easy")[0][1]
    lines = "\n".join(solution[9 * k : 9 * k + 9] for k in range(8)) + "\n" + "[MASK]" * 9
    assert filled_in(boards, [lines]) == [solution]
    assert re.fullmatch("[1-9]{81}", filled_in(boards, [""])[0])
    with pytest.raises(ValueError, match="`prompt` must be of signs that the tokenizer knows, got '53..7'"):
        boards("53..7", num_inference_steps=2)


def test_boards_that_obey_the_rules_are_likelier(boards):
    solution = puzzles("easy")[0][1]
    assert boards.nll(solution).item() + 10 < boards.nll(solution[::-1][1:] + "1").item() < math.inf


def test_the_rules_guide_boards(boards):
    rules, hard = AllDifferentReward("sudoku"), [puzzle.replace(".", "[MASK]") for puzzle, _ in puzzles("hard")[:16]]
    bare = filled_in(boards, hard)
    with guide(boards, rules):
        guided = filled_in(boards, hard)
    assert all(re.fullmatch("[1-9]{81}", text) for text in guided)
    assert rules.score(guided).mean() > rules.score(bare).mean()


def test_pipelines_of_the_other_kind_are_refused():
    with pytest.raises(ValueError, match="`builtin:mnist-masked` is for MaskedImagePipeline, which makes no texts"):
        TextPipeline.from_pretrained("builtin:mnist-masked")
    with pytest.raises(ValueError, match="`builtin:tatoeba-masked` is for MaskedTextPipeline, which makes no images"):
        MaskedImagePipeline.from_pretrained("builtin:tatoeba-masked")


def test_digits_are_reconstructed(digits):
    images = digits(list(range(10)), generator=torch.Generator().manual_seed(0), output_type="pt").images
    again = digits.decode(digits.encode(images))
    assert (images - again).square().mean().sqrt() < 0.12
    assert images.square().mean().sqrt() > 0.2


def test_all_checkpoints_are_there_with_cards_and_small():
    names = [
        "mnist-classifier",
        "mnist-judge",
        "mnist-masked",
        "sentiment",
        "sudoku-masked",
        "tatoeba-masked",
        "tatoeba-uniform",
    ]
    assert hub.builtin_names() == [f"builtin:{name}" for name in names]
    total = 0
    for name in hub.builtin_names():
        folder = hub.resolve(name)
        total += sum(os.path.getsize(os.path.join(root, f)) for root, _, files in os.walk(folder) for f in files)
        with open(os.path.join(folder, "README.md"), encoding="utf-8") as card:
            text = card.read()
        assert "license:" in text
        assert "## Data and licence" in text
    assert total < 50e6
