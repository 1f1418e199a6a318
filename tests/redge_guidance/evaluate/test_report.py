"""Tables and pictures of figures that are known."""

import math

import numpy as np
import pytest

from redge_guidance.evaluate import plot, table
from redge_guidance.evaluate.report import as_long, difference, rows_of


def cell(method, seed, gold, seconds, **more):
    count = len(gold)
    told = {"task": "sad", "method": method, "seed": seed, "gold": gold, "seconds": seconds, "process_seconds": seconds}
    told |= {
        "reward": [-1.0] * count,
        "optimised": [None] * count,
        "nats": [6.0, 4.0] * (count // 2),
        "tokens": [2] * count,
    }
    told |= {"model_calls": 3, "model_sequences": 4 * count, "reward_forwards": 0, "reward_backwards": 0}
    told |= {"peak_memory": 2**20, "distinct": 0.5, "distinct_2": None, "words": 3.0, "grammatical": [True] * count}
    return told | {"date": "2026-01-01", "hardware": "here", "threads": 1, "versions": {"torch": "9"}} | more


CELLS = [
    cell("unguided", 0, [0, 0, 0, 1], 4.0),
    cell("best-of-4", 0, [0, 1, 0, 1], 17.0),
    cell("best-of-8", 0, [1, 1, 0, 1], 33.0),
    cell("guided", 0, [1, 1, 1, 1], 6.0),
    cell("guided", 1, [1, 1, 0, 1], 10.0),
]


def test_rows_take_all_seeds_together():
    rows = {row.method: row for row in rows_of(CELLS)}
    guided = rows["guided"]
    assert (guided.count, guided.gold, guided.seconds) == (8, 7 / 8, 2.0)
    assert guided.golds == {0: [1, 1, 1, 1], 1: [1, 1, 0, 1]}
    assert guided.nats == 2.5  # all nats by all tokens
    assert math.isnan(guided.optimised)
    assert guided.peak_memory == 2**20


def test_beside_a_method_stands_the_cheapest_best_of_n_that_takes_as_long():
    rows = rows_of(CELLS)
    found = {row.method: as_long(row, rows) for row in rows}
    assert found["guided"].method == "best-of-4"
    assert found["unguided"] is found["best-of-8"] is None
    slow = rows_of([*CELLS, cell("fk-64", 0, [1, 1, 1, 1], 99.0)])
    assert as_long(slow[-1], slow) is None


def test_as_long_is_by_the_wall():
    cells = [
        cell("best-of-2", 0, [0, 1], 4.0, process_seconds=9.0),
        cell("best-of-4", 0, [0, 1], 8.0, process_seconds=9.0),
        cell("guided", 0, [1, 1], 6.0, process_seconds=1.0),
    ]
    rows = rows_of(cells)
    assert as_long(rows[2], rows).method == "best-of-4"


def test_means_are_of_samples_and_not_of_seeds():
    (row,) = rows_of([cell("guided", 0, [1, 1, 1, 1], 1.0), cell("guided", 1, [0, 0], 1.0)])
    assert row.gold == pytest.approx(4 / 6)


def test_nats_by_the_token_have_the_interval_of_all_nats_by_all_tokens():
    nats, tokens = [1.0, 2.0, 60.0, 90.0] * 8, [2, 2, 20, 20] * 8
    (row,) = rows_of([cell("guided", 0, [1.0] * 32, 1.0, nats=nats, tokens=tokens)])
    assert row.nats == sum(nats) / sum(tokens)
    source = np.random.default_rng(5)
    drawn = source.integers(32, size=(4000, 32))
    values = np.array(nats)[drawn].sum(1) / np.array(tokens)[drawn].sum(1)
    assert row.nats_interval == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.1)


def test_the_interval_of_a_difference_of_values_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    source = np.random.default_rng(1)
    golds = [source.random(60).tolist(), (source.random(80) ** 2).tolist()]
    one, other = rows_of([cell("a", 0, golds[0], 1.0), cell("b", 0, golds[1], 1.0)])
    by, interval = difference(one, other)
    expected = stats.bootstrap(golds, lambda a, b, axis: a.mean(axis) - b.mean(axis), method="percentile", axis=-1)
    assert by == pytest.approx(np.mean(golds[0]) - np.mean(golds[1]))
    assert interval == pytest.approx(tuple(expected.confidence_interval), abs=0.02)


@pytest.mark.parametrize(  # the examples of Newcombe (1998), Table II, method 10
    ("counts", "expected"),
    [
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((10, 10, 0, 20), (0.6791, 1.0)),
    ],
)
def test_the_interval_of_a_difference_of_shares_is_newcombes(counts, expected):
    golds = [[1] * hits + [0] * (of - hits) for hits, of in (counts[:2], counts[2:])]
    one, other = rows_of([cell("a", 0, golds[0], 1.0), cell("b", 0, golds[1], 1.0)])
    by, interval = difference(one, other)
    assert by == pytest.approx(counts[0] / counts[1] - counts[2] / counts[3])
    assert interval == pytest.approx(expected, abs=1e-4)


def test_the_table_says_what_was_measured():
    first, *others = CELLS  # as a file has them that an earlier version began
    lines = table([first, *(one | {"judged": "the judge is sad"} for one in others)]).splitlines()
    assert lines[:3] == ["### sad", "", "Gold: the judge is sad. 4 samples a method, seeds [0, 1]."]
    head, *rows = [[one.strip() for one in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert {len(row) for row in rows} == {len(head)}
    guided = dict(zip(head, rows[-1], strict=True))
    assert guided["method"] == "guided"
    assert guided["gold"].startswith("87.5% (")
    assert (guided["wall-clock"], guided["model calls"], guided["optimised"]) == ("2.00x", "4.0", "")
    assert (guided["nats/token"][:4], guided["other model"], guided["grammatical"]) == ("2.50", "", "100.0%")
    assert guided["best-of at least as long"] == "best-of-4"
    assert guided["gold above it"].startswith("37.5% (")
    assert lines[-1] == "2026-01-01; here, 1 threads, torch 9."


def test_every_task_has_what_its_own_judge_says():
    said = {"sad": "it is sad", "glad": "it is glad"}
    shown = table([one | {"task": task, "judged": judged} for task, judged in said.items() for one in CELLS])
    assert [line.split(". ")[0] for line in shown.splitlines() if line.startswith("Gold")] == [
        "Gold: it is sad",
        "Gold: it is glad",
    ]


def test_values_that_are_no_shares_are_shown_as_they_are():
    (line,) = [one for one in table([cell("unguided", 0, [0.25, 0.5], 1.0)]).splitlines() if "unguided" in one]
    assert "| 0.375 (0.250 to 0.500) |" in line


def test_a_name_with_a_bar_stays_in_its_cell():
    assert r"guided[label: a\|b]" in table([cell("guided[label: a|b]", 0, [1.0, 0.0], 1.0)])


@pytest.mark.parametrize(("kind", "first"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_pictures(kind, first):
    unknown = cell("fk-2", 0, [1.0, 0.0], 1.0, nats=[])  # as of images without a bound
    assert plot([*CELLS, unknown], kind).startswith(first)
