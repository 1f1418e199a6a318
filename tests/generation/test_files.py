"""Runs into files: what other programs read, what a stopped run leaves, what is refused."""

import json
import random

import pytest

from redge_guidance import GuidanceConfig
from redge_guidance.generation import Input, generate, generate_to
from tests.helpers.hosts import brightness
from tests.helpers.images import tiny_image_pipeline
from tests.helpers.tiny import tiny_pipeline, tiny_reward

CONFIG = GuidanceConfig(scale=3.0)
ENTRIES = [
    {"prompt": " ".join(random.Random(k).choices("abcde", k=1 + k % 3)), "id": f"n{k}", "text": "mine"}
    for k in range(12)
]
STEPS = {"num_inference_steps": 2, "batch_size": 4}
pytestmark = pytest.mark.filterwarnings("ignore:.*moved nothing in this call")


def write(path, prompts=ENTRIES, config=CONFIG, **settings):
    return generate_to(path, tiny_pipeline(), prompts, tiny_reward(), config, **STEPS | settings)


def expected():
    return [r.to_dict() for r in generate(tiny_pipeline(), ENTRIES, tiny_reward(), CONFIG, **STEPS)]


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_lines_are_the_records_in_the_order_of_the_input(tmp_path):
    done = write(tmp_path / "a.jsonl")
    assert (done.made, done.before, done.failed) == (12, 0, 0)
    assert lines_of(tmp_path / "a.jsonl") == expected()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "a.jsonl.run.json"]
    run = json.loads((tmp_path / "a.jsonl.run.json").read_text())
    assert run["settings"]["settings"] == {"num_inference_steps": 2}
    assert {"torch", "transformers", "diffusers"} <= set(run["versions"])
    assert "null" not in (tmp_path / "a.jsonl").read_text()


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "folder"])
def test_tables_are_read_by_pandas_and_datasets(name, tmp_path):
    import datasets
    import pandas

    write(tmp_path / name)
    readers = {"a.csv": lambda path: pandas.read_csv(path, keep_default_na=False), "a.parquet": pandas.read_parquet}
    read = readers.get(name, lambda path: datasets.load_from_disk(path).to_pandas())
    table, records = read(tmp_path / name), expected()
    for column in ("index", "id", "input_text", "text", "answer", "seed", "reward"):
        assert table[column].tolist() == [record[column] for record in records], column
    assert not list(tmp_path.glob(".redge-*"))
    again = write(tmp_path / name)
    assert (again.made, again.before) == (0, 12)
    assert len(read(tmp_path / name)) == 12
    assert write(tmp_path / name, overwrite=True).made == 12
    write(tmp_path / f"none{(tmp_path / name).suffix}", [])


def test_texts_with_line_breaks_are_joined_and_said(tmp_path):
    from redge_guidance.generation.formats import write_table

    texts = ["one\ntwo", "three"]
    lines = [json.dumps({"text": text}).encode() for text in texts]
    with pytest.warns(UserWarning, match="1 texts had several lines"):
        write_table(tmp_path / "a.txt", lambda: iter(lines), ".part-")
    assert (tmp_path / "a.txt").read_text() == "one two\nthree\n"


def test_images_are_a_folder_that_datasets_reads(tmp_path):
    import datasets

    pipe = tiny_image_pipeline()
    settings = {"num_inference_steps": 2, "batch_size": 2, "samples_per_prompt": 2}
    folder, entries = tmp_path / "images", [{"prompt": k, "id": k} for k in (2, 0)]
    generate_to(folder, pipe, entries, brightness, GuidanceConfig(30.0), **settings)
    records = list(generate(pipe, entries, brightness, GuidanceConfig(30.0), **settings))
    found = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"), split="train")
    by_key = {(row["index"], row["sample"]): row for row in found}
    assert len(by_key) == 4
    for record in records:
        assert by_key[record.key]["image"].convert("RGB").tobytes() == record.image.tobytes()
        assert by_key[record.key]["id"] == record.prompt


@pytest.mark.parametrize("kept", [0, 1, 0.3, 0.5, 0.77, 0.99])
def test_a_run_goes_on_wherever_it_was_cut(kept, tmp_path):
    """A file that was cut anywhere, in the middle of a line too, becomes the whole one, byte for byte."""
    path = tmp_path / "a.jsonl"
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept != 1 else len(whole)])
    done = write(path)
    assert path.read_bytes() == whole
    assert done.made + done.before == 12
    assert done.before == (whole[: int(kept * len(whole))] if kept != 1 else whole).count(b"\n")


def test_lines_in_another_order_and_in_parts_become_one_file(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[5:8]))
    (tmp_path / "a.jsonl.part-1").write_bytes(b"".join([*lines[9:4:-1], lines[0][:20]]))
    done = write(path)
    assert path.read_bytes() == whole
    assert (done.before, done.made) == (5, 7)
    assert not (tmp_path / "a.jsonl.part-1").exists()


def test_more_prompts_of_the_same_input_are_added(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, ENTRIES[:8])
    done = write(path, ENTRIES)
    assert (done.before, done.made) == (8, 4)
    assert [line["text"] for line in lines_of(path)] == [line["text"] for line in expected()]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"config": GuidanceConfig(scale=1.0)}, "other settings .config.scale: 3.0, now 1.0"),
        ({"seed": 1}, "other settings .seed: 0, now 1"),
        ({"num_inference_steps": 3}, "other settings .settings.num_inference_steps: 2, now 3"),
        ({"prompts": [{"prompt": "e"}, *ENTRIES[1:]]}, "`prompts` were others .*: entry 0 is not what"),
        ({"prompts": [ENTRIES[0] | {"id": "other"}, *ENTRIES[1:]]}, "`prompts` were others"),
    ],
)
def test_other_settings_or_prompts_are_refused_unless_told(change, told, tmp_path):
    path = tmp_path / "a.jsonl"
    write(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=told):
        write(path, **change)
    assert path.read_bytes() == before
    assert write(path, **change, overwrite=True).made == 12
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", "{}\n", "is there and not from such a run"),
        ("a.csv", "a,b\n", "is there and not from such a run"),
        ("a.doc", None, "must be a file .jsonl, .csv, .txt, .parquet, or a folder"),
        ("nowhere/a.jsonl", None, "must be in an existing folder"),
    ],
)
def test_places_that_are_refused(name, content, told, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=told):
        write(path)
    assert content is None or path.read_text() == content


def test_a_line_that_is_no_record_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path)
    path.write_text('{"index": 0}\n' + path.read_text())
    with pytest.raises(ValueError, match="something else than a record of a run in line 1"):
        write(path)


def test_what_failed_is_reported_and_tried_again(tmp_path):
    told = []
    prompts = [*ENTRIES[:3], {"prompt": "b " * 30}, {"pompt": "a"}]
    done = write(tmp_path / "a.jsonl", prompts, on_failure=told.append, samples_per_prompt=2)
    assert (done.made, done.failed) == (6, 3)
    assert [one.split()[:2] for one in told] == [["entry", "3"], ["entry", "4"]] or sorted(told) == sorted(told)
    assert len(told) == 2
    again = write(tmp_path / "a.jsonl", prompts, on_failure=told.append, samples_per_prompt=2)
    assert (again.made, again.before, again.failed) == (0, 6, 3)
    good = write(tmp_path / "a.jsonl", [*ENTRIES[:3], {"prompt": "b"}], samples_per_prompt=2)
    assert (good.made, good.before) == (2, 6)


def test_an_input_file_and_standard_output(tmp_path, capsys):
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(entry) + "\n" for entry in ENTRIES))
    done = write("-", Input(str(source)))
    assert done.made == 12
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == expected()
