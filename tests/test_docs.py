"""The Python in README.md and docs/ runs as it stands there, the links lead somewhere, and README stays short."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from redge_guidance.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    (page.name, number, code)
    for page in PAGES
    if page.name != "CONTRIBUTING.md"  # which has a test of its own
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.parametrize(("page", "number", "code"), BLOCKS, ids=[f"{page} {number}" for page, number, _ in BLOCKS])
def test_examples_run(page, number, code):
    torch.manual_seed(0)
    exec(code, {"__name__": "example"})


COMMANDS = [
    (page.name, number, code)
    for page in PAGES
    for number, code in enumerate(re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
    if "redge-guidance generate" in code and "pip install" not in code
]


@pytest.mark.parametrize(("page", "number", "code"), COMMANDS, ids=[f"{page} {number}" for page, number, _ in COMMANDS])
def test_commands_run(page, number, code, tmp_path, monkeypatch, capsys):
    """Each in this process, which has loaded everything; what is no command of ours is the shell's."""
    monkeypatch.chdir(tmp_path)
    for line in code.strip().splitlines():
        if line.startswith("redge-guidance "):
            assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
        else:
            subprocess.run(["bash", "-c", line], check=True)
    assert capsys.readouterr().out or list(tmp_path.iterdir())


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert any(line.startswith("![") for line in lines[:15])  # one figure
    assert "```python" in lines[:20]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "benchmarks" / "README.md"], ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_notebooks_are_numbered_once_each():
    numbers = [path.name[:2] for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    assert numbers == [f"{n:02}" for n in range(1, len(numbers) + 1)]
