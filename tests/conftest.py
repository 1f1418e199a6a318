import pytest
import torch

from redge_guidance.pipelines import MaskedTextPipeline
from tests.helpers.tiny import tiny_pipeline, tiny_reward


@pytest.fixture
def pipe():
    return tiny_pipeline()


@pytest.fixture
def reward():
    return tiny_reward()


@pytest.fixture(scope="session")
def embedded():
    """The embedded pipeline; tests leave it as they found it."""
    pipe = MaskedTextPipeline.from_pretrained("builtin:tatoeba-masked")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
