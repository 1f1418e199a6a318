"""The scripts of `examples/` run, and say what they are to say."""

import re
import runpy
import sys
from pathlib import Path

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
    found = [re.fullmatch(r"(.*): \d of 4 solved, \d+\.\d violations, \d+\.\d s", line) for line in lines[:3]]
    assert [match and match[1] for match in found] == ["bare", "guided", "best of 2 particles"]
    assert [len(line) for line in lines[3:]] == [9] * 9
