"""The walls between the rooms, read off the imports and the names in the source."""

import ast
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def source_files():
    for folder in ("redge_guidance", "pipelines", "rewards"):
        for place, _, names in os.walk(ROOT / folder):  # which does not follow links
            yield from (Path(place) / name for name in sorted(names) if name.endswith(".py"))


def module_of(file):
    """`pipelines/text/base.py` is imported as `redge_guidance.pipelines.text.base`."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "redge_guidance" else ("redge_guidance", *parts)
    return ".".join(part for part in parts if part != "__init__")


FILES = {module_of(file): file for file in source_files()}
TREES = {module: ast.parse(file.read_text(encoding="utf-8")) for module, file in FILES.items()}


def imports_of(module):
    """Modules of this package that are imported, and names out of them: `{(module, name or None)}`."""
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {(alias.name, None) for alias in node.names if alias.name.startswith("redge_guidance")}
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("redge_guidance"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add((inner, None) if inner in TREES else (node.module, alias.name))
    return found


def test_the_source_is_one_tree():
    assert len(FILES) > 60
    assert {"redge_guidance.attach", "redge_guidance.pipelines.text.masked", "redge_guidance.rewards.labels"} <= set(
        FILES
    )


def room(module):
    parts = module.split(".")
    if module == "redge_guidance.__main__":
        return "cli"
    rooms = ("pipelines", "rewards", "hosts", "cli", "estimators", "samples", "setups", "generation", "harness")
    rooms += ("constraints", "particles", "evaluate")
    return parts[1] if len(parts) > 1 and parts[1] in rooms else "core"


# which know nothing themselves
FOR_ALL = {f"redge_guidance.{name}" for name in ("positions", "checks", "chats", "logging", "recipe", "lazy")}
MAY_NOT = [  # (who, does not import)
    ("core", "hosts"),
    ("core", "cli"),
    ("core", "setups"),
    ("core", "generation"),
    ("setups", "hosts"),
    ("setups", "generation"),
    ("setups", "cli"),
    ("generation", "setups"),
    ("generation", "cli"),
    ("generation", "pipelines"),
    ("generation", "rewards"),
    ("hosts", "setups"),
    ("pipelines", "setups"),
    ("rewards", "setups"),
    ("core", "pipelines"),
    ("core", "rewards"),
    ("estimators", "core"),
    ("estimators", "samples"),
    ("samples", "estimators"),
    ("samples", "hosts"),
    ("samples", "pipelines"),
    ("samples", "rewards"),
    ("hosts", "rewards"),
    ("hosts", "cli"),
    ("pipelines", "rewards"),
    ("pipelines", "hosts"),
    ("pipelines", "estimators"),
    ("pipelines", "samples"),
    ("rewards", "pipelines"),
    ("rewards", "hosts"),
    ("rewards", "estimators"),
    ("core", "harness"),
    ("hosts", "harness"),
    ("pipelines", "harness"),
    ("rewards", "harness"),
    ("harness", "cli"),
    ("core", "particles"),
    ("hosts", "particles"),
    ("particles", "cli"),
    ("particles", "setups"),
    ("particles", "pipelines"),
    ("particles", "rewards"),
    *((who, "evaluate") for who in ("core", "hosts", "pipelines", "rewards", "setups", "generation", "particles")),
    ("evaluate", "cli"),
    ("evaluate", "hosts"),
    ("constraints", "pipelines"),
    ("constraints", "rewards"),
    ("constraints", "hosts"),
    ("constraints", "estimators"),
    ("constraints", "samples"),
]
ABOVE_HOSTS = {"redge_guidance", "redge_guidance.attach"}
PUBLIC = {"setups", "generation"}  # of which the package itself exports names


@pytest.mark.parametrize(("who", "what"), MAY_NOT)
def test_arrows_point_one_way(who, what):
    wrong = [
        (module, other)
        for module in TREES
        for other, _ in imports_of(module)
        if room(module) == who and room(other) == what and other not in FOR_ALL
        if not (what == "hosts" and module in ABOVE_HOSTS) and not (what in PUBLIC and module == "redge_guidance")
    ]
    assert not wrong


def test_pipelines_know_nothing_of_guidance():
    known = {"redge_guidance.text", "redge_guidance.hub", "redge_guidance.remote"} | FOR_ALL
    wrong = [
        (module, other)
        for module in TREES
        for other, _ in imports_of(module)
        if room(module) == "pipelines" and room(other) == "core" and other not in known
    ]
    assert not wrong


def test_there_are_no_circles():
    arrows = {module: {other for other, _ in imports_of(module)} for module in TREES}
    done, path = set(), []

    def visit(module):
        assert module not in path, f"{' -> '.join(path)} -> {module}"
        if module in done or module not in arrows:
            return
        path.append(module)
        for other in arrows[module]:
            visit(other)
        path.pop()
        done.add(module)

    for module in TREES:
        visit(module)


def test_no_private_name_crosses_a_file():
    wrong = [
        (module, other, name)
        for module in TREES
        for other, name in imports_of(module)
        if (name or other.rsplit(".", 1)[-1]).startswith("_") and name != "__version__"
    ]
    assert not wrong


THEIRS = {
    "_are_functorch_transforms_active",
    "_callback_tensor_inputs",
    "_execution_device",
    "_committed",
    "_attn_implementation",
    "_keys_to_ignore_on_load_unexpected",
    "_orig_mod",
    "_hf_hook",
    "_softmax_backward_data",
    "_replace",
}


def test_nobody_reads_a_private_attribute_of_somebody_else():
    """`self._x`, `cls._x` and those of other objects of the file's own classes; `THEIRS` are diffusers' and torch's."""
    wrong = []
    for module, tree in TREES.items():
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        own |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or not re.match(r"_[a-z]", node.attr) or node.attr in THEIRS:
                continue
            if node.attr not in own:
                wrong.append((module, node.lineno, node.attr))
    assert not wrong


def test_nobody_asks_an_estimator_what_it_has():
    for module in ("config", "gradients", "draws", "guidance", *(f"estimators.{n}" for n in ("base", "categorical"))):
        calls = [
            node.func.id
            for node in ast.walk(TREES[f"redge_guidance.{module}"])
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr")
        ]
        allowed = {"config": 10, "guidance": 1}.get(module, 0)  # fields of a dataclass; a reward that has a `score`
        assert len(calls) <= allowed, module


def test_types_are_ignored_for_third_parties_only():
    """Every `type: ignore` of the core stands in a file that talks to torch or Python itself, and says what for."""
    found = {
        module: [line for line in FILES[module].read_text().splitlines() if "type: ignore" in line]
        for module in TREES
        if room(module) in ("core", "estimators", "samples", "hosts")
    }
    found = {module: lines for module, lines in found.items() if lines}
    assert set(found) <= {"redge_guidance.hosts.attachment"}  # which makes a class
    assert sum(map(len, found.values())) <= 3


@pytest.mark.parametrize("module", sorted(FILES))
def test_files_and_functions_stay_small(module):
    """About 250 lines a file and 40 a body; these had their second look."""
    lines = len(FILES[module].read_text().splitlines())
    assert lines <= 300, f"{lines} lines"
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if isinstance(getattr(node.body[0], "value", None), ast.Constant) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert length <= 62, f"{node.name}: {length} lines"
