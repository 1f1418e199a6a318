import pytest
import torch
from transformers import AutoImageProcessor, AutoTokenizer

from redge_guidance.rewards import CLIPReward, ImageClassifierReward, TextClassifierReward
from redge_guidance.rewards.loading import LoadedReward
from tests.helpers.tiny import tiny_pipeline, word_tokenizer


class Loader:
    """A class of models that keeps what it was asked for."""

    asked = None

    @classmethod
    def from_pretrained(cls, path, **kwargs):
        assert kwargs.pop("output_loading_info")
        cls.asked = kwargs
        return torch.nn.Linear(1, 1), {"missing_keys": []}


class Made(LoadedReward):
    auto_class = Loader

    def __init__(self, model, *rest, **kwargs):
        self.model, self.rest, self.kwargs = model, rest, kwargs

    @classmethod
    def processors(cls, path, hub):
        return [hub]


@pytest.mark.parametrize("trusted", [True, False])
def test_hub_arguments_go_to_model_and_processors_and_the_rest_to_the_reward(trusted, tmp_path):
    hub = {"revision": "main", "token": "x", "cache_dir": "here"}
    settings = {"trust_remote_code": True} if trusted else {}
    made = Made.from_pretrained(tmp_path, 1, **hub, **settings, model_kwargs={"variant": "fp16"}, label=2)
    hub["trust_remote_code"] = trusted
    assert Loader.asked == {"dtype": torch.float32, "variant": "fp16", **hub}
    assert made.rest == (hub, 1)
    assert made.kwargs == {"label": 2}


def test_a_device_map_takes_the_place_of_the_device(tmp_path):
    made = Made.from_pretrained(tmp_path, device="meta", device_map={"": "cpu"})
    assert Loader.asked["device_map"] == {"": "cpu"}
    assert made.model.weight.device.type == "cpu"
    assert Made.from_pretrained(tmp_path, device="meta").model.weight.device.type == "meta"
    assert "device_map" not in Loader.asked


@pytest.mark.parametrize(
    ("kind", "loaders"),
    [
        (TextClassifierReward, [AutoTokenizer]),
        (ImageClassifierReward, [AutoImageProcessor]),
        (CLIPReward, [AutoImageProcessor, AutoTokenizer]),
    ],
)
def test_every_processor_is_told_whether_code_is_trusted(kind, loaders, monkeypatch):
    asked = []
    for loader in (AutoTokenizer, AutoImageProcessor):
        monkeypatch.setattr(loader, "from_pretrained", lambda path, loader=loader, **hub: asked.append((loader, hub)))
    kind.processors("org/model", {"trust_remote_code": False, "revision": "r"})
    assert asked == [(loader, {"trust_remote_code": False, "revision": "r"}) for loader in loaders]


def test_a_head_that_would_be_random_is_none(tmp_path):
    """A generator in the place of a classifier: transformers would draw the head at random."""
    model = tiny_pipeline().model
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="lacks .*classifier.*of ModernBertForSequenceClassification, which would be random"
    ):
        TextClassifierReward.from_pretrained(tmp_path, label=0)
