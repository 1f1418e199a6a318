"""The judges against answers that are not theirs."""

import math
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from redge_guidance.evaluate.costs import Clock, Meter
from redge_guidance.evaluate.judges import Grammar, image_nats_a_token, line_of
from redge_guidance.evaluate.statistics import bootstrap, interval

GOOD = ["The dog runs.", "She likes her new car.", "Who is he?", "Tom isn't here!", "I gave him the book yesterday."]
BAD = ["the the dog", "Dog the the runs a.", "He are of the to go.", "I the book him gave of.", "Want the of is."]
installed = pytest.mark.skipif(shutil.which("link-parser") is None, reason="needs Debian's link-grammar")


@installed
def test_grammar_knows_good_from_bad_sentences_in_any_order():
    texts = [text for pair in zip(GOOD, BAD, strict=True) for text in pair]
    assert Grammar()(texts) == [True, False] * len(GOOD)
    assert Grammar()(texts[::-1]) == [False, True] * len(GOOD)


ODD = ["", "   ", "!panic", "!!dog", "!exit", "%", "% The dog runs.", "*", ":", "\n", "\0", "\x1a", "\ud800", "+++++"]
ODD += ["width set to 1000003", "a" * 3000, "a " * 900, "é" * 1500, "that the dog saw and " * 60, "(", '"', "\u2028"]


@installed
@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_an_odd_text_shifts_no_answer(odd):
    found = Grammar()([GOOD[0], odd, BAD[0], GOOD[1], odd, GOOD[2], BAD[1]])
    assert [found[k] for k in (0, 2, 3, 5, 6)] == [True, False, True, True, False]
    assert found[1] == found[4] == Grammar()([odd])[0]
    assert found[1] is False or line_of(odd)


@installed
def test_lines_and_spaces_are_one_sentence():
    assert Grammar()(["The dog\nruns.", " The  dog\truns. ", "The dog\nthe the"]) == [True, True, False]


@installed
def test_grammar_agrees_with_the_batch_mode_of_the_parser():
    sentences = [*GOOD, *BAD, "Colorless green ideas sleep furiously.", "It was to be rained.", "She seems asleep man."]
    command = ["link-parser", "en", "--quiet", "-batch", "-echo"]
    output = subprocess.run(command, input="\n".join(sentences).encode(), capture_output=True, check=True).stdout
    lines = output.decode().splitlines()
    wrong, last = set(), ""
    for line in lines:
        if line.startswith("+++++ error"):
            wrong.add(last)
        last = line if line in sentences else last
    assert Grammar()(sentences) == [sentence not in wrong for sentence in sentences]


def test_a_missing_parser_names_its_package():
    with pytest.raises(RuntimeError, match="`no-such-parser` is not installed.*apt-get install link-grammar"):
        Grammar("no-such-parser")


@pytest.mark.parametrize("body", ["exit 3", "kill -SEGV $$", "echo Found 1 linkage", "echo width set to 1000001"])
def test_a_parser_that_fails_is_an_error(tmp_path, body):
    program = tmp_path / "parser"
    program.write_text(f"#!/bin/sh\ncat >/dev/null\n{body}\n")
    program.chmod(0o755)
    with pytest.raises(RuntimeError, match="package link-grammar failed"):
        Grammar(str(program))(["The dog runs."])


def test_interval_and_bootstrap_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for hits, count in ((0, 7), (3, 7), (90, 96), (96, 96)):
        other = stats.binomtest(hits, count).proportion_ci(method="wilson")
        assert interval(hits / count, count) == pytest.approx((other.low, other.high), abs=1e-6)
    values = torch.randn(200, generator=torch.Generator().manual_seed(0)).tolist()
    low, high = bootstrap(lambda mean: mean, values)
    other = stats.bootstrap((values,), np.mean)
    assert (low, high) == pytest.approx(tuple(other.confidence_interval), abs=0.03)


def test_nats_of_images_are_the_entropy_where_positions_are_independent():
    torch.manual_seed(0)
    table = torch.randn(6, 5).log_softmax(-1)
    pipe = SimpleNamespace(mask_token_id=5, transformer=lambda ids: table.expand(len(ids), 6, 5))
    tokens = torch.distributions.Categorical(logits=table).sample((4000,))
    exact = -table[torch.arange(6), tokens].mean().item()
    assert image_nats_a_token(pipe, tokens) == pytest.approx(exact, rel=0.02)


def test_nats_of_images_hide_what_they_predict():
    def transformer(ids):  # sure of what it sees, and of nothing else
        return torch.nn.functional.one_hot(ids, 6)[..., :5] * 50.0

    tokens = torch.randint(5, (64, 6), generator=torch.Generator().manual_seed(0))
    pipe = SimpleNamespace(mask_token_id=5, transformer=transformer)
    assert image_nats_a_token(pipe, tokens) == pytest.approx(math.log(5), rel=1e-4)


def test_a_clock_adds_its_blocks_up():
    clock = Clock()
    for _ in range(2):
        with clock:
            sum(range(10**6))
    assert 0 < clock.process <= clock.wall * 1.5


def test_a_meter_counts_sequences_and_backwards_when_they_happen():
    pipe = SimpleNamespace(model=torch.nn.Linear(3, 2))
    reward = SimpleNamespace(net=torch.nn.Linear(3, 1), score=None)
    with Meter(pipe, [reward]) as meter:
        pipe.model(torch.zeros(5, 3))
        reward.net(torch.zeros(4, 3)).sum()  # is never differentiated
        assert (meter.model_calls, meter.model_sequences) == (1, 5)
        assert (meter.reward_forwards, meter.reward_backwards) == (4, 0)
        reward.net(torch.zeros(7, 3)).sum().backward()
    reward.net(torch.zeros(9, 3)).sum().backward()  # after it
    assert (meter.reward_forwards, meter.reward_backwards) == (11, 7)
