"""The scripts of `examples/` run, and say what they are to say."""

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_every_example_is_tried_here():
    assert [file.name for file in EXAMPLES.glob("*.py")] == ["sudoku.py"]


def test_sudoku(monkeypatch, capsys):
    short = ["--number", "4", "--steps", "6", "--particles", "2", "--difficulty", "easy"]
    lines = run("sudoku.py", monkeypatch, capsys, *short).splitlines()
    found = [re.fullmatch(r"(.*): \d of 4 solved, \d+\.\d violations a board, \d+\.\d s", line) for line in lines[:3]]
    assert [match and match[1] for match in found] == ["bare", "guided", "best of 2 particles"]
    assert re.fullmatch(r"a guided board with \d+ violations:", lines[4])
    assert [len(line) for line in lines[5:]] == [9] * 9


@pytest.mark.parametrize(
    "wrong", [["--number", "0"], ["--number", "65"], ["--steps", "0"], ["--particles", "0"], ["--scale", "-1"]]
)
def test_sudoku_refuses_what_it_cannot_do(monkeypatch, capsys, wrong):
    with pytest.raises(SystemExit) as end:
        run("sudoku.py", monkeypatch, capsys, *wrong)
    assert end.value.code == 2
    assert wrong[0].strip("-").replace("particles", "num_particles") in capsys.readouterr().err.splitlines()[-1]
