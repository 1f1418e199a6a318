import importlib
import subprocess
import sys
from importlib.resources import files

import pytest

import redge_guidance
from redge_guidance import estimators


def test_public_names_are_sorted_and_there():
    assert redge_guidance.__all__ == sorted(redge_guidance.__all__)
    assert len(redge_guidance.__all__) <= 10
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
    code = "import sys, redge_guidance; print({'transformers', 'diffusers', 'accelerate'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_nothing_lands_outside_the_package():
    code = "import pipelines"
    process = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert "No module named 'pipelines'" in process.stderr


def test_package_is_typed():
    assert (files("redge_guidance") / "py.typed").is_file()
