"""Files of prompts: every kind gives the same entries, and a bad one says where it is."""

import gzip
import io
import json
import os
import sys

import pytest

from redge_guidance.generation import Input

ENTRIES = [{"prompt": "Tom", "id": "x"}, {"prompt": 'é "q", Mary', "id": "y"}, {"prompt": "She", "id": "z"}]


def lines_of(name, **settings):
    return [(line.number, line.prompt, dict(line.fields), line.error) for line in Input(str(name), **settings)]


def write(path, entries):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), encoding="utf-8")
    elif path.suffix == ".csv":
        import pandas

        pandas.DataFrame(entries).to_csv(path, index=False)
    elif path.suffix == ".parquet":
        import pandas

        pandas.DataFrame(entries).to_parquet(path)
    else:
        import datasets

        datasets.Dataset.from_list(entries).save_to_disk(path)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "folder"])
def test_kinds_of_files(name, tmp_path):
    """Written by pandas and datasets."""
    path = write(tmp_path / name, ENTRIES)
    assert lines_of(path) == [(k, e["prompt"], {"id": e["id"]}, None) for k, e in enumerate(ENTRIES)]
    assert Input(str(path)).count() == 3
    assert lines_of(path, limit=1) == lines_of(path)[:1]
    assert lines_of(path, prompt_field="id")[0][1:3] == ("x", {"prompt": "Tom"})


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_a_text_has_a_prompt_a_line(start, end, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes((start + f"Tom{end}{end}She is{end}Mary").encode())
    assert lines_of(path) == [(0, "Tom", {}, None), (1, "She is", {}, None), (2, "Mary", {}, None)]


def test_messages_and_strings_as_lines(tmp_path):
    chat = [{"role": "user", "content": "How are you?"}]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": chat, "n": 1}) + '\n"Tom"\n')
    assert lines_of(path) == [(0, chat, {"n": 1}, None), (1, "Tom", {}, None)]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"{bad", "is no JSON"),
        (b"[1, 2]", "is list, expected an object or a text"),
        (b'{"promt": "a"}', "has no field 'prompt'; it has 'promt'"),
        (b'{"prompt": ""}', "has an empty 'prompt'"),
        (b'{"prompt": "  "}', "has an empty 'prompt'"),
        (b'{"prompt": null}', "has None as 'prompt'"),
        (b'{"prompt": [1]}', "no text and no list of messages"),
        (b'{"prompt": "b", "id": 1}', "has the id 1 of line 1 again"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"[" * 100_000, "is no JSON"),
    ],
)
def test_bad_lines_say_where_they_are_and_the_rest_is_read(line, told, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "a", "id": 1}\n\n' + line + b'\n{"prompt": "c", "id": 3}\n')
    found = list(Input(str(path)))
    assert [one.number for one in found] == [0, 1, 2]
    assert [one.place for one in found] == ["line 1", "line 3", "line 4"]
    assert told in found[1].error
    assert (found[0].error, found[2].error, found[2].prompt) == (None, None, "c")


def test_bad_rows_of_a_table(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'prompt,n\n"a\nb",1\nc\nd,2,3\n,4\n\xff,5\ng,6\n')
    found = [(line.place, line.prompt, line.error) for line in Input(str(path))]
    assert found[0] == ("line 3", "a\nb", None)
    assert [error for *_, error in found[1:3]] == ["has not 2 columns, as the header has"] * 2
    assert found[3][2].startswith("has an empty 'prompt'")
    assert found[4][2] == "is not UTF-8"
    assert found[5] == ("line 8", "g", None)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.doc", b"x", "`input` must be a file .txt, .jsonl, .csv, .parquet"),
        ("a.csv", b"text,n\na,1\n", "must have a column 'prompt', got text, n"),
        ("a.csv", b"", "must have a column 'prompt', got none"),
        ("a.parquet", b"no", "is no Parquet file"),
        ("a.jsonl", b"\n", "must have a prompt, got none"),
        ("a.txt", b"", "must have a prompt, got none"),
    ],
)
def test_what_is_no_input(name, content, told, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=told):
        list(Input(str(tmp_path / name)))


def test_what_is_not_there(tmp_path):
    with pytest.raises(OSError, match="`input` .*nothing.txt cannot be read: No such file"):
        Input(str(tmp_path / "nothing.txt"))
    with pytest.raises(ValueError, match="no folder of a dataset"):
        list(Input(str(tmp_path)))


def test_an_input_that_changes_while_it_is_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a\nb\nc\n")
    lines = iter(Input(str(path)))
    next(lines)
    with open(path, "a") as file:
        file.write("d\n")
    with pytest.raises(OSError, match="was changed while it was read"):
        list(lines)


@pytest.mark.parametrize(("sent", "prompts"), [(b'{"prompt": "a"}\n"b"\n', ["a", "b"]), (b"a\nb\n", ["a", "b"])])
def test_standard_input(sent, prompts, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(sent)))
    assert [line.prompt for line in Input("-")] == prompts


def test_reading_does_not_hold_the_file(tmp_path):
    """A hundred thousand lines are read one at a time."""
    import tracemalloc

    path = tmp_path / "a.jsonl"
    with open(path, "w") as file:
        file.writelines(json.dumps({"prompt": "word " * 20, "n": n}) + "\n" for n in range(20_000))
    tracemalloc.start()
    assert sum(1 for _ in Input(os.fspath(path))) == 20_000
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", "Tom\n".encode("utf-16"), "must be text in UTF-8, got UTF-16"),
        ("a.csv", "prompt\nTom\n".encode("utf-16"), "must be text in UTF-8, got UTF-16"),
        ("a.jsonl", gzip.compress(b'{"prompt": "a"}\n', mtime=0), "got gzip"),
        ("a.jsonl", b"PAR1....", "got Parquet"),
        ("a.csv", b'"prompt,x\na,b\n', "no header of CSV"),
        ("a.csv", b"prompt," + b"x" * 200_000 + b"\na,b\n", "no header of CSV"),
        ("a.csv", b"prompt,id,prompt\na,1,b\n", "got 'prompt' twice"),
    ],
)
def test_files_that_are_of_another_kind(name, content, told, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=told):
        list(Input(str(tmp_path / name)))


def test_nul_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("Tom\nMary\n".encode("utf-16-le"))
    assert ["NUL" in line.error for line in Input(str(tmp_path / "a.txt")) if line.error] == [True] * 3


def test_quotes_and_newlines_of_csv(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'prompt,x\r\n"Tom ""T"", Mary","one\r\ntwo"\r\nShe,\r\n')
    assert lines_of(tmp_path / "a.csv") == [
        (0, 'Tom "T", Mary', {"x": "one\r\ntwo"}, None),
        (1, "She", {"x": ""}, None),
    ]


def test_ids_of_other_types_are_others(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "".join(f'{{"prompt": "a", "id": {one}}}\n' for one in ("1", "true", '"1"', "[1]"))
    )
    assert [line.error for line in Input(str(tmp_path / "a.jsonl"))] == [None] * 4
