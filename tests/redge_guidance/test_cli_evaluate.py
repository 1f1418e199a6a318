import json

import pytest

from redge_guidance.cli import main
from redge_guidance.evaluate import TASKS

TASK = """model: builtin:tatoeba-masked
reward: [TextClassifierReward: {name: builtin:sentiment, label: negative}]
gold: [LexicalReward: {wanted: sad}]
num_inference_steps: 3
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")  # without the grammar judge, which is told of once
    (tmp_path / "mine.yaml").write_text(TASK)
    return "mine.yaml"


@pytest.mark.filterwarnings("default")
def test_a_table_and_files(file, tmp_path, capsys):
    command = ["evaluate", file, "--methods", "unguided", "guided", "fk-2", "--samples", "2", "--seeds", "0", "1"]
    command += ["--output", "out.jsonl", "--table", "table.md", "--plot", "plot.png", "--threads", "1"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out.startswith("### mine\n\nGold: LexicalReward. 4 samples a method, seeds [0, 1].")
    assert (tmp_path / "table.md").read_text() == out
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 6
    assert err.count("grammar is not judged") == 1
    assert main(command) == 0
    again = capsys.readouterr()
    assert again.out == out
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 6
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["threads"] == 1


def test_the_list_names_every_task(capsys):
    assert main(["evaluate", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in TASKS)
    assert "guided-fk-4" in out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "TASK must be one of sentiment"),
        (["sentimnt"], "there is no task `sentimnt`, and it is no file in YAML; did you mean `sentiment`?"),
        (["sentiment", "--methods", "gided"], "there is no method `gided`; did you mean `guided`?"),
        (["sentiment", "--samples", "0"], "`samples` must be"),
        (["sentiment", "--samples", "many"], "must be an integer"),
        (["sentiment", "--seeds", "1", "1"], "`seeds` must be integers"),
        (["sentiment", "--threads", "0"], "`--threads` must be >= 1 and <= 1024, got 0."),
        (["sentiment", "--threads", "9" * 20], "`--threads` must be >= 1 and <= 1024"),
        (["sentiment", "--num-inference-steps", "9" * 20], "`--num-inference-steps` must be from 1 to 1,000,000"),
        (["mine.yaml", "./mine.yaml"], "TASK must be tasks of different names, got mine, mine"),
        (["sentiment", "--plot", "plot.txt"], "`--plot` must end with .png, .pdf, .svg, got plot.txt."),
        (["sentiment", "--table", "no/table.md"], "`--table` must name a file in an existing folder"),
        (["sentiment", "--table", "a.md", "--plot", "a.png", "--output", "a.md"], "must name different files"),
        (["sentiment", "--sample", "3"], "unrecognized arguments: --sample"),
        (["none.yaml"], "none.yaml cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_code_2(more, message, file, capsys):
    try:
        code = main(["evaluate", *more])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert message in err


def test_a_picture_that_cannot_be_drawn_is_said_before_anything_is(file, monkeypatch, capsys):
    monkeypatch.setattr("redge_guidance.cli.evaluating.find_spec", lambda name: None)
    assert main(["evaluate", file, "--plot", "plot.png"]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "`matplotlib` is not installed" in err
