"""Kills, and several processes of one run: what is made in the end is what one process makes undisturbed."""

import os
import random
import signal
import sys
import time

import pytest
import torch

from redge_guidance.cli import main, terminal
from redge_guidance.generation.processes import Processes
from redge_guidance.generation.progress import Progress
from redge_guidance.setups.devices import own_device
from tests.generation.test_to_file import lines_of, write
from tests.helpers import processes
from tests.helpers.processes import launch
from tests.helpers.tiny import tiny_pipeline

MANY = [" ".join(random.Random(k).choices("abcde", k=1 + k % 4)) for k in range(60)]


def writing(output, prompts=MANY, **given):
    def work():
        write(output, prompts, **given)

    return work


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
@pytest.mark.parametrize("count", [1, 2])
def test_kills_change_nothing(count, name, tmp_path):
    write(tmp_path / f"whole{name}", MANY)
    seconds, taken = random.Random(count), 2.0
    for attempt in range(8):
        place = tmp_path / f"{attempt}"
        place.mkdir()
        ends = [launch(writing(place / name), count, taken * seconds.uniform(0.1, 0.6)) for _ in range(6)]
        if [-signal.SIGKILL] * count in ends:
            break
        taken /= 2  # each was done before it was killed
    else:
        pytest.fail(f"none of the runs was killed, however soon: {ends}")
    assert launch(writing(place / name), count) == [0] * count
    assert (place / name).read_bytes() == (tmp_path / f"whole{name}").read_bytes()
    assert sorted(os.listdir(place)) == [name, f"{name}.run.json"]


def test_other_numbers_of_processes_and_other_signals(tmp_path):
    write(tmp_path / "whole.jsonl", MANY)
    out = tmp_path / "out.jsonl"
    for count, number in ((3, signal.SIGKILL), (2, signal.SIGINT), (1, signal.SIGINT)):
        launch(writing(out), count, 0.4, tmp_path / "errors", number)
    assert launch(writing(out)) == [0]
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("how", ["dies", "raises"])
def test_a_worker_that_dies_ends_the_run_and_it_goes_on(how, tmp_path):
    out = tmp_path / "out.jsonl"

    def work():
        prompts = [{"prompt": prompt} for prompt in MANY]
        pipe = tiny_pipeline()
        if os.environ["RANK"] == "1":
            calls, real = [], pipe.model.forward

            def forward(*args, **kwargs):
                calls.append(1)
                if len(calls) > 20:
                    if how == "dies":
                        os._exit(7)
                    raise RuntimeError("of the second process")
                return real(*args, **kwargs)

            pipe.model.forward = forward
        write(out, prompts, pipe)

    codes = launch(work, 2, errors=tmp_path / "errors")
    assert codes[1] == (7 if how == "dies" else 99)
    assert codes[0] != 0
    assert ("of the second process" in (tmp_path / "errors").read_text()) is (how == "raises")
    assert launch(writing(out), 2) == [0, 0]
    write(tmp_path / "whole.jsonl", MANY)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def command(*arguments):
    def work():
        return main(["generate", "--num-inference-steps", "2", "--scale", "0", *arguments])

    return work


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--label"], "expected one argument"),
        (["--model", "./nowhere"], "nowhere"),
        (["--num-draws", "0", "--label", "positive", "--scale", "1", "--output", "a.jsonl"], "--num-draws: must be"),
        ([], "`--output` must say where several processes write"),
        (["--output", "-"], "must be a file for several processes"),
        (["--input", "-", "--output", "a.jsonl"], "`input` must be a file for several processes"),
        (["--output", "no/where.jsonl"], "must be in an existing folder"),
        (["--output", "there.jsonl"], "is there and not from such a run"),
    ],
)
def test_an_error_of_all_is_said_once(arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.jsonl").write_text("{}\n")
    assert all(launch(command(*arguments), 2, errors=tmp_path / "errors"))
    lines = lines_of(tmp_path / "errors")
    assert len(lines) == 1
    assert lines[0].startswith("redge-guidance")
    assert told in lines[0]


def test_an_error_of_one_is_said_by_it(tmp_path, monkeypatch):
    monkeypatch.setattr(terminal, "_PATIENCE", 0.1)
    monkeypatch.chdir(tmp_path)

    def work():
        device = ["--device", "nowhere"] if os.environ["RANK"] == "1" else []
        return command("--output", "a.jsonl", *device)()

    assert launch(work, 2, errors=tmp_path / "errors")[1] == 2
    first = lines_of(tmp_path / "errors")[0]
    assert first.startswith("redge-guidance: process 1: error: `--device` must be a device")


def test_one_that_waits_for_another_that_never_comes_hears_the_launcher(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "LIMIT", 30.0)
    monkeypatch.chdir(tmp_path)

    def work():
        if os.environ["RANK"] == "1":
            time.sleep(2.0)  # the other one waits by then
            return 2
        return command("--output", "a.jsonl")()

    assert launch(work, 2, errors=tmp_path / "errors") == [143, 2]
    assert lines_of(tmp_path / "errors")[-1].startswith("redge-guidance: terminated, ")


def test_what_was_done_and_what_failed_are_said_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompts = ["Tom"] * 20
    prompts[3] = prompts[18] = "Tom " * 100
    (tmp_path / "in.txt").write_text("\n".join(prompts))
    run = command("--input", "in.txt", "--output", "out.jsonl", "--batch-size", "2")
    assert launch(run, 2, errors=tmp_path / "errors") == [3, 3]
    lines = lines_of(tmp_path / "errors")
    assert len(lines) == 3
    assert [sum(f"line {number} " in line for line in lines) for number in (4, 19)] == [1, 1]
    assert lines[-1] == "redge-guidance: 18 samples in out.jsonl, 2 failed"


def test_one_bar_counts_all(tmp_path):
    run = writing(tmp_path / "out.jsonl", ["a"] * 8, progress=True)

    def work():
        os.dup2(os.open(tmp_path / f"errors of {os.environ['RANK']}", os.O_WRONLY | os.O_CREAT), 2)
        return run()

    assert launch(work, 2, errors=tmp_path / "errors") == [0, 0]
    bars = [(tmp_path / f"errors of {rank}").read_text() for rank in range(2)]
    assert "8/8" in bars[0]
    assert bars[1] == ""


def test_the_bar_counts_lines_of_others(tmp_path):
    part = tmp_path / "part"
    part.write_text("before\n")
    with open(os.devnull, "w") as quiet, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", quiet)
        with Progress(10, True) as bar:
            bar.watch([part, tmp_path / "not yet"])
            bar.update(2)
            with part.open("a") as file:
                file.write("one\ntwo\nthr")
            bar.update(1)
            assert bar.done == 5
        assert bar.done == 10


@pytest.mark.parametrize(
    ("name", "variables", "own"),
    [
        ("cuda", {}, "cuda"),
        ("cuda", {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "cuda:1"),
        ("cuda", {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "cuda"),
        ("cuda:0", {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "cuda:0"),
        ("cpu", {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "cpu"),
    ],
)
def test_every_process_has_its_own_device(name, variables, own, monkeypatch):
    for key in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(key, raising=False)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    assert own_device(name) == own


def test_a_group_that_somebody_made_stays_theirs(tmp_path):
    def work():
        torch.distributed.init_process_group("gloo")
        for _ in range(2):
            processes = Processes()
            if processes.gathered(processes.rank) != [0, 1]:
                return 5
        write(tmp_path / "out.jsonl")
        torch.distributed.barrier()
        return None

    assert launch(work, 2) == [0, 0]


def test_a_forked_process_is_not_held_up_by_the_threads_of_this_one(monkeypatch):
    """Of the helper: GNU's OpenMP has none of its threads after a fork, and waits for them."""
    monkeypatch.setattr(processes, "LIMIT", 20.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.ones(2**22).exp()
        assert launch(lambda: int(torch.ones(2**22).exp().isnan().any())) == [0]
    finally:
        torch.set_num_threads(threads)
