"""The script that makes what is published of methods runs, in small."""

import sys
from pathlib import Path

import pytest

from tests.helpers import started

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "frontier" / "run.py"


@pytest.mark.filterwarnings("default")
def test_every_part_runs_in_small(tmp_path):
    process = started.run([sys.executable, str(SCRIPT), "--smoke"], cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert [line.split("  ")[-1] for line in process.stdout.splitlines()] == [
        "methods, sentiment: 8 cells",
        "estimators, sentiment: 1 cells",
        "sudoku, sudoku-easy: 1 cells",
        "ancestral, sudoku-medium: 1 cells",
        "hacking, sentiment: 1 cells",
        "fooled, digits-plain: 1 cells",
        "fluent, sentiment-fluent: 1 cells",
    ]
