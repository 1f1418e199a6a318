"""Whole evaluations by lm-evaluation-harness, on tasks of a folder."""

import runpy
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import lm_eval
import pytest
from lm_eval.api.registry import get_model, model_registry
from lm_eval.tasks import TaskManager

from redge_guidance.harness.model import RedgeLM
from tests.helpers.tiny import tiny_pipeline, tiny_reward
from tests.redge_guidance.harness.tasks import LINES, write

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:log-probabilities are those of the model")
def test_an_evaluation_by_the_library(folder):
    names = write(folder)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    lm = RedgeLM(
        pipe=tiny_pipeline(length=12), guided_by=tiny_reward(), scale=3.0, every=1, num_corruptions=8, batch_size=2
    )
    found = lm_eval.simple_evaluate(lm, tasks=names, task_manager=manager, bootstrap_iters=0, log_samples=True)
    assert found["results"]["tiny_choice"]["acc,none"] in (0.0, 1 / 3, 2 / 3, 1.0)
    assert found["results"]["tiny_rolling"]["word_perplexity,none"] > 1
    for sample, line in zip(found["samples"]["tiny_choice"], LINES, strict=True):
        scores = [float(one[0][0]) for one in sample["resps"]]
        prompt = lm.pipe.nll(["a b", "c", "d e d"], 2000, prompts=line["text"])
        assert scores == pytest.approx([-float(nll) for nll in prompt], rel=0.5)
    for sample in found["samples"]["tiny_until"]:
        assert "d" not in sample["resps"][0][0]


def test_the_entry_point_is_what_plugins_name():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("redge = "))
    point = EntryPoint("redge", line.partition('"')[2].rstrip('"'), "lm_eval.models")
    model_registry.register("redge-by-entry-point", target=point)
    assert get_model("redge-by-entry-point") is RedgeLM
    assert get_model("redge") is RedgeLM
    assert '[project.entry-points."lm_eval.models"]\nredge = ' in text


@pytest.mark.filterwarnings("default")  # as in a process of its own
def test_the_command(folder, monkeypatch, capsys):
    write(folder)
    told = "pretrained=builtin:tatoeba-masked,reward=builtin:sentiment,label=positive,scale=2,gen_length=4"
    command = ["redge_guidance.harness", "run", "--model", "redge", "--model_args", told]
    command += ["--tasks", "tiny_until", "--include_path", str(folder), "--device", "cpu", "--batch_size", "3"]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_module("redge_guidance.harness", run_name="__main__")
    out = capsys.readouterr().out
    assert "|tiny_until|" in out
    assert "exact_match" in out
