"""Every documented example and command runs from a wheel that is installed elsewhere, where no checkout is seen."""

import ast
import re
import zipfile
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest

from tests.helpers.started import run
from tests.helpers.wheel import ROOT, Installed, build

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = {"redge_guidance/": "redge_guidance", "redge_guidance/pipelines/": "pipelines"}
ROOMS |= {"redge_guidance/rewards/": "rewards", "redge_guidance/checkpoints/": "checkpoints"}
BLOCKS = [
    (f"{page.name} {number}", language, code)
    for page in PAGES
    for number, (language, code) in enumerate(
        re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    )
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("wheel")


@pytest.fixture(scope="module")
def wheel(folder):
    return build(folder / "wheel")


@pytest.fixture(scope="module")
def installed(folder, wheel):
    return Installed(folder, wheel)


def test_a_wheel_has_all_that_the_checkout_has(wheel):
    with zipfile.ZipFile(wheel) as file:
        found = {name for name in file.namelist() if ".dist-info/" not in name}
        told = next(name for name in file.namelist() if name.endswith("/METADATA"))
        assert b"License-Expression: Apache-2.0" in file.read(told)
        assert any(name.endswith("/licenses/LICENSE") for name in file.namelist())
    expected = {
        prefix + path.relative_to(ROOT / room).as_posix()
        for prefix, room in ROOMS.items()
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert found == expected


def test_its_script_and_its_module_are_the_command(installed, tmp_path):
    """Started as people start them."""
    script = run([installed.bin / "redge-guidance", "--version"], cwd=tmp_path)
    module = [installed.bin / "python", "-I", "-m", "redge_guidance", "--version"]
    assert script.stdout == run(module, cwd=tmp_path).stdout
    assert script.stdout.startswith("redge-guidance ")
    where = "from importlib.util import find_spec as find\n"
    where += "for room in ('', '.rewards'): print(find('redge_guidance' + room).origin)"
    done = run([installed.bin / "python", "-I", "-c", where], cwd=tmp_path)
    assert all(installed.bin.parent in Path(file).parents for file in done.stdout.splitlines()), (
        done.stdout + done.stderr
    )
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.timeout(900)  # some forty of them, of which none has more than two minutes
def test_documented_examples_and_commands_run(installed, tmp_path):
    """All blocks of a page that are Python or for a shell, each in an empty folder, with few steps (`warm.py`)."""

    def trouble(block):
        name, language, code = block
        here = tmp_path / name.replace(" ", "-")
        here.mkdir()
        script = here.with_name(f"{here.name}.{language}")  # of this block alone
        script.write_text(code, encoding="utf-8")
        command = ["python", str(script)] if language == "python" else ["bash", "-eu", str(script)]
        done = run(command, cwd=here, env=environment)
        return f"{name}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}" if done.returncode else None

    blocks = [block for block in BLOCKS if block[1] != "py" and "make demo" not in block[2]]
    with installed.warm() as environment, ThreadPool(2) as pool:
        found = [told for told in pool.map(trouble, blocks, chunksize=1) if told is not None]
    assert not found, "\n".join(found)


def test_what_is_not_run_is_sound():
    """`py` needs weights that are nowhere here: its imports are there. The Makefile has its targets."""
    assert {language for _, language, _ in BLOCKS} == {"python", "bash", "py"}
    others = [code for _, language, code in BLOCKS if language == "py"]
    assert len(others) == 1  # no more than that
    for line in compile(others[0], "block", "exec", ast.PyCF_ONLY_AST).body:
        if isinstance(line, ast.Import | ast.ImportFrom):
            exec(ast.unparse(line), {})
    targets = [line.split()[1] for _, _, code in BLOCKS for line in code.splitlines() if line.startswith("make ")]
    assert targets
    assert run(["make", "-n", *targets], cwd=ROOT).returncode == 0
