import ast
import importlib
import inspect
import sys
from importlib.resources import files

import pytest

import redge_guidance
from redge_guidance import estimators
from tests.helpers import started


def test_public_names_are_sorted_and_there():
    assert redge_guidance.__all__ == sorted(redge_guidance.__all__)
    assert len(redge_guidance.__all__) <= 14
    for name in redge_guidance.__all__:
        assert getattr(redge_guidance, name).__doc__, name


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("redge_guidance.pipelines", ["MaskedDiffusionScheduler", "MaskedImagePipeline", "MaskedTextPipeline"]),
        ("redge_guidance.rewards", ["CLIPReward", "ImageClassifierReward", "TextClassifierReward"]),
        ("redge_guidance.estimators", [*estimators.ESTIMATORS, "ESTIMATORS", "OneHotCategoricalReDGE"]),
    ],
)
def test_names_of_the_rooms(module, names):
    for name in names:
        assert hasattr(importlib.import_module(module), name)


def test_import_is_lean():
    for first in ("import redge_guidance", "from redge_guidance.cli.parser import build_parser; build_parser()"):
        code = f"import sys; {first}; print({{'torch', 'transformers', 'diffusers', 'accelerate'}} & set(sys.modules))"
        assert started.run([sys.executable, "-c", code]).stdout.strip() == "set()"


def test_names_are_there_before_they_are_imported():
    code = "import redge_guidance as r; print(set(r.__all__) <= set(dir(r)), r.guide.__name__, hasattr(r, 'nothing'))"
    assert started.run([sys.executable, "-c", code]).stdout.split() == ["True", "guide", "False"]


def test_what_type_checkers_see_is_what_there_is():
    source = inspect.getsource(redge_guidance)
    told = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in told.body for alias in node.names}
    assert sorted(seen) == redge_guidance.__all__
    for name, module in seen.items():
        assert getattr(importlib.import_module(module), name) is getattr(redge_guidance, name)


def test_nothing_lands_outside_the_package():
    code = "import pipelines"
    process = started.run([sys.executable, "-I", "-c", code])
    assert "No module named 'pipelines'" in process.stderr


def test_package_is_typed():
    assert (files("redge_guidance") / "py.typed").is_file()
