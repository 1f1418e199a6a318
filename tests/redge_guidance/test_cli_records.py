"""`--output` of the command: standard output that does not take it, and settings that were saved."""

import json
import os

import pytest

from redge_guidance.cli import main
from tests.redge_guidance.test_cli_outputs import CAFE, FAST, FULL, ending, full, gone


@pytest.mark.parametrize(("opened", "code", "message"), [(gone, 141, None), (full, 2, FULL), (lambda: None, 0, None)])
def test_records_to_standard_output_that_does_not_take_them(opened, code, message, tmp_path):
    stdout = opened()
    with (tmp_path / "err").open("wb") as stderr:
        assert ending([*FAST, "--output", "-"], stdout, stderr.fileno()) == code
    if stdout is not None:
        os.close(stdout)
    err = (tmp_path / "err").read_text()
    assert err.count("\n") == (0 if message is None else 1), err
    assert message is None or message in err


def test_records_are_in_utf_8_on_any_terminal(tmp_path):
    with (tmp_path / "out").open("wb") as stdout:
        assert ending([*FAST, "--prompt", CAFE, "--output", "-"], stdout.fileno(), 2, "ascii") == 0
    assert json.loads((tmp_path / "out").read_text("utf-8").splitlines()[0])["prompt"] == CAFE


def test_settings_that_were_saved_overwrite_nothing_later_and_make_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text('prompt,id\n"Tom",1\nShe,2\nI,3\n')
    given = ["--input", "in.csv", "--output", "out.csv", "--limit", "2", "--overwrite", "--save-config", "run.yaml"]
    assert main([*FAST, *given]) == 0
    made = (tmp_path / "out.csv").read_bytes()
    (tmp_path / "out.csv").rename("before.csv")
    (tmp_path / "out.csv.run.json").unlink()
    assert main(["generate", "--config", "run.yaml"]) == 0
    assert (tmp_path / "out.csv").read_bytes() == made
    assert "overwrite" not in (tmp_path / "run.yaml").read_text()
