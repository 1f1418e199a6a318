"""For tests and doctests alike: no hub, and this checkout's own code."""

import atexit
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
# On tiny models a second thread waits more than it works; beside other work it took three times the time of one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What is kept on the disk was built by this code, not by that of another day; workers share it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["REDGE_GUIDANCE_CACHE"] = tempfile.mkdtemp(prefix="redge-guidance-")
    atexit.register(shutil.rmtree, os.environ["REDGE_GUIDANCE_CACHE"], ignore_errors=True)

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

import redge_guidance
from redge_guidance import estimators, hosts, pipelines, rewards, samples

# The same examples in every run, and as long as they take; a longer search: `--hypothesis-profile=long`.
ONE_SHOT = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("short", derandomize=True, max_examples=50, **ONE_SHOT)
settings.register_profile("long", max_examples=2000, **ONE_SHOT)
settings.load_profile("short")

# Code that imports what is not a requirement, on a machine that lacks it.
collect_ignore = [] if find_spec("triton") else ["redge_guidance/estimators/kernels.py"]

ROOT = Path(__file__).parent.resolve()


def pytest_configure() -> None:
    for package in (redge_guidance, estimators, hosts, pipelines, rewards, samples):
        found = Path(package.__file__ or "").resolve()
        if ROOT not in found.parents:
            raise pytest.UsageError(
                f"{package.__name__} is imported from {found}, which is not in {ROOT}: these tests would test another "
                "checkout. Run `python -m pytest` in this one, or install it with `pip install -e .`."
            )


@pytest.fixture(autouse=True)
def names_in_examples(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace["torch"] = torch
    torch.manual_seed(0)


SLOW = ("test_notebooks", "test_wheel", "test_contributing", "test_embedded", "test_cli")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes a minute comes first, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: not item.path.stem.startswith(SLOW))
