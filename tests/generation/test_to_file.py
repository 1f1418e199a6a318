"""Runs into files: what is there stays valid, whatever a user or the machine does."""

import json
import os
import resource

import datasets
import pytest

from redge_guidance.generation import Input, generate_to
from redge_guidance.generation.journal import Journal
from redge_guidance.generation.place import Place
from tests.helpers.images import tiny_image_pipeline
from tests.helpers.processes import launch
from tests.helpers.tiny import tiny_pipeline

PROMPTS = ["a", "b c", "c", "d e a", "e"]


def write(output, prompts=PROMPTS, pipe=None, **given):
    given = {"num_inference_steps": 2, "batch_size": 2, "progress": False} | given
    return generate_to(output, pipe or tiny_pipeline(), prompts, **given)


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.txt", "out.parquet", "out"])
def test_a_finished_run_again_changes_nothing(name, tmp_path):
    first = write(tmp_path / name)
    before = content(tmp_path)
    again = write(tmp_path / name)
    assert content(tmp_path) == before
    assert (first.made, again.made, again.before) == (5, 0, 5)
    assert sorted(os.listdir(tmp_path)) == sorted([name, f"{name}.run.json"])


def lines_of(file):
    return file.read_text(encoding="utf-8").splitlines()


def content(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_table_of_other_prompts_is_refused(tmp_path):
    write(tmp_path / "out.csv")
    before = content(tmp_path)
    with pytest.raises(ValueError, match="is finished, and `prompts` were others"):
        write(tmp_path / "out.csv", [*PROMPTS, "a a"])
    assert content(tmp_path) == before
    (tmp_path / "out.csv").unlink()
    with pytest.raises(ValueError, match="was finished, and is not there any more"):
        write(tmp_path / "out.csv")


def test_a_table_that_a_kill_left_with_parts_is_whole(tmp_path):
    """After the settings say that it is finished, and before all parts are gone."""
    write(tmp_path / "out.csv")
    before = content(tmp_path)
    (tmp_path / "out.csv.part-1").write_text("")
    assert write(tmp_path / "out.csv").before == 5
    assert content(tmp_path) == before


def test_failed_entries_are_counted_again(tmp_path):
    prompts = [*PROMPTS, "b " * 30]
    assert write(tmp_path / "out.csv", prompts).failed == write(tmp_path / "out.csv", prompts).failed == 1


def test_images_are_a_folder_that_datasets_reads(tmp_path):
    entries = [
        {"prompt": 1, "text": "x", "n": {"a": 1}, "file_name": "mine", "image": "i"},
        {"prompt": 0, "n": None},
        {"prompt": 2},
    ]
    write(tmp_path / "images", entries, tiny_image_pipeline())
    found = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "images"), cache_dir=str(tmp_path / "cache"))
    rows = list(found["train"])
    assert [row["prompt"] for row in rows] == [1, 0, 2]
    assert (rows[0]["input_text"], rows[0]["input_filename"], rows[0]["input_image"]) == ("x", "mine", "i")
    assert rows[0]["image"].size == rows[1]["image"].size
    assert write(tmp_path / "images", entries, tiny_image_pipeline()).before == 3
    write(tmp_path / "images", entries[:1], tiny_image_pipeline(), overwrite=True)
    assert sorted(os.listdir(tmp_path / "images")) == ["000000-0.png", "metadata.jsonl"]


def test_the_output_is_not_the_input(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "a"}\n')
    (tmp_path / "link.jsonl").symlink_to(file)
    for output in (file, tmp_path / "link.jsonl"):
        with pytest.raises(ValueError, match="must be another file than `input`"):
            write(output, Input(file), overwrite=True)
    assert file.read_text() == '{"prompt": "a"}\n'


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_image_pipeline])
def test_a_folder_of_other_things_is_not_overwritten(make, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letters").write_text("x")
    with pytest.raises(ValueError, match="a folder with other things in it"):
        write(tmp_path / "mine", [1], make(), overwrite=True)
    assert os.listdir(tmp_path / "mine") == ["letters"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link.jsonl").symlink_to("there/real.jsonl")
    write(tmp_path / "link.jsonl", ["a b c", "b", "a"], batch_size=1)  # which are not in their order
    assert (tmp_path / "link.jsonl").is_symlink()
    assert [json.loads(line)["index"] for line in lines_of(tmp_path / "there/real.jsonl")] == [0, 1, 2]


def test_nothing_is_lost_where_the_output_is_removed_meanwhile(tmp_path):
    def prompts():
        yield from "ab" * 8
        (tmp_path / "out.jsonl").unlink()
        yield from "cd" * 8

    with pytest.raises(OSError, match="was removed, replaced or written to"):
        write(tmp_path / "out.jsonl", prompts())


def test_numbers_that_json_lacks_are_null(tmp_path):
    entry = {"prompt": "a", "x": float("nan"), "y": {"z": [float("inf"), 1]}, "m": {1: 2, "b": 3}}
    write(tmp_path / "out.jsonl", [entry])
    found = json.loads((tmp_path / "out.jsonl").read_text(), parse_constant=pytest.fail)
    assert (found["x"], found["y"], found["m"]) == (None, {"z": [None, 1]}, {"1": 2, "b": 3})
    assert write(tmp_path / "out.jsonl", [entry]).before == 1


def test_fields_of_the_input_that_are_called_as_ours(tmp_path):
    entry = {"prompt": "a", "text": 1, "input_text": 2, "index": 3, "sample": 4, "reward": 5, "source_file_name": 6}
    write(tmp_path / "out.jsonl", [entry])
    found = json.loads((tmp_path / "out.jsonl").read_text())
    assert {v: k for k, v in found.items() if k.startswith("input_")} == {
        1: "input_input_text",
        2: "input_text",
        3: "input_index",
        4: "input_sample",
        5: "input_reward",
        6: "input_source_filename",
    }
    assert write(tmp_path / "out.jsonl", [entry]).before == 1


def test_what_a_kill_left_unfinished_is_removed(tmp_path):
    for name in (".out.jsonl.redge-1.jsonl", ".other.jsonl.redge-2"):
        (tmp_path / name).write_text("half")
    write(tmp_path / "out.jsonl", ["a"])
    assert sorted(os.listdir(tmp_path)) == [".other.jsonl.redge-2", "out.jsonl", "out.jsonl.run.json"]


def test_records_that_a_table_cannot_hold_are_kept(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyError("n")

    monkeypatch.setattr(datasets.Dataset, "from_json", fail)
    with pytest.raises(ValueError, match=r"cannot hold these records.*out\.parquet\.part-0"):
        write(tmp_path / "out.parquet", ["a", "b"])
    assert len((tmp_path / "out.parquet.part-0").read_text().splitlines()) == 2


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.txt", "out.parquet", "out"])
def test_no_prompts_give_an_empty_file(name, tmp_path):
    assert write(tmp_path / name, []).made == write(tmp_path / name, []).made == 0
    assert (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["", ".", "a\0b.jsonl"])
def test_what_names_no_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="`output` must name a file or a folder"):
        Place(name, False)


def test_a_full_disk_leaves_whole_lines_and_is_gone_on_with(tmp_path):
    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
        try:
            write(tmp_path / "out.jsonl", ["a", "b", "c", "d"] * 5, batch_size=1)
        except OSError as error:
            (tmp_path / "told").write_text(str(error))
            return 1

    assert launch(full) == [1]
    assert "out.jsonl cannot be written: File too large." in (tmp_path / "told").read_text()
    lines = (tmp_path / "out.jsonl").read_text()
    assert lines.endswith("\n")
    assert 1 < len([json.loads(line) for line in lines.splitlines()]) < 20
    write(tmp_path / "out.jsonl", ["a", "b", "c", "d"] * 5, batch_size=1)
    write(tmp_path / "whole.jsonl", ["a", "b", "c", "d"] * 5, batch_size=1)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_two_runs_on_one_output(tmp_path):
    def prompts():
        yield from "ab"
        with pytest.raises(ValueError, match="is being written by another run"):
            write(tmp_path / "out.jsonl", ["a", "b"])

    write(tmp_path / "out.jsonl", prompts())
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "out.jsonl.run.json"]


def test_a_lock_that_was_left_behind_is_none(tmp_path):
    (tmp_path / "out.jsonl.lock").write_text("")
    assert write(tmp_path / "out.jsonl").made == 5


def test_a_process_of_an_earlier_run_that_still_writes(tmp_path):
    """As where a launcher was killed, and the first process."""
    journal = Journal(tmp_path / "out.jsonl.part-0")
    with pytest.raises(ValueError, match="is being written by a process of another run"):
        Journal(journal.path)
    journal.close()
    Journal(journal.path).close()
