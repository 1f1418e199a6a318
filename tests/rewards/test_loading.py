import json
import re
import shutil

import pytest
import torch
from diffusers import AmusedPipeline
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoTokenizer, BertForSequenceClassification

from redge_guidance.cli import main
from redge_guidance.pipelines import MaskedImagePipeline, TextPipeline
from redge_guidance.rewards import (
    AestheticReward,
    CLIPReward,
    FluencyReward,
    ImageClassifierReward,
    SentenceSimilarityReward,
    TextClassifierReward,
    TextPreferenceReward,
)
from redge_guidance.rewards.loading import LoadedReward
from tests.helpers.image_rewards import classifier as image_classifier
from tests.helpers.image_rewards import clip
from tests.helpers.images import tiny_amused, tiny_image_pipeline
from tests.helpers.reward_models import bert, classifier, encoder
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


def without(file, begin):
    weights = load_file(file)
    kept = {name: one for name, one in weights.items() if not name.startswith(begin)}
    assert len(kept) < len(weights)
    save_file(kept, file, {"format": "pt"})


def test_a_pooler_is_done_without_only_where_nothing_reads_it(tmp_path):
    words = word_tokenizer()
    for name, model in (("classifier", classifier(words)), ("encoder", encoder(words))):
        model.save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
    whole = SentenceSimilarityReward.from_pretrained(tmp_path / "encoder", "a b").score(["a", "b c"])
    without(tmp_path / "encoder/model.safetensors", "pooler.")
    again = SentenceSimilarityReward.from_pretrained(tmp_path / "encoder", "a b").score(["a", "b c"])
    assert torch.equal(whole, again)
    TextClassifierReward.from_pretrained(tmp_path / "classifier", label=0)
    without(tmp_path / "classifier/model.safetensors", "bert.pooler.")
    with pytest.raises(ValueError, match="lacks bert.pooler.dense.bias, .* would be random"):
        TextClassifierReward.from_pretrained(tmp_path / "classifier", label=0)


def test_a_head_of_another_size_is_none_even_where_that_is_asked_for(tmp_path):
    words = word_tokenizer()
    bert(BertForSequenceClassification, words, num_labels=3).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {str(i): f"L{i}" for i in range(5)}
    config["label2id"] = {f"L{i}": i for i in range(5)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="could not be loaded"):
        TextClassifierReward.from_pretrained(tmp_path, label=0)
    with pytest.raises(ValueError, match="has another shape of classifier.bias, classifier.weight .* would be random"):
        TextClassifierReward.from_pretrained(tmp_path, label=0, model_kwargs={"ignore_mismatched_sizes": True})


@pytest.mark.parametrize("kind", ["masked", "told", "amused", "text"])
def test_no_part_of_a_pipeline_is_random(kind, tmp_path, capsys):
    made = {"masked": tiny_image_pipeline, "told": lambda: tiny_image_pipeline(takes_text=True), "text": tiny_pipeline}
    made["amused"] = lambda: tiny_amused(AmusedPipeline)
    pipe = made[kind]()
    for name in [name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)]:
        folder = tmp_path / name
        pipe.save_pretrained(folder)
        (file,) = (folder / name).glob("*.safetensors")
        first = sorted(load_file(file))[0]
        without(file, first)
        message = f"lacks {first} of .*would be random"
        if kind == "amused":
            capsys.readouterr()
            more = ["--reward", "builtin:mnist-classifier", "--label", "7", "--json", "/dev/null"]
            assert main(["generate", "--model", str(folder), *more]) == 2
            assert re.search(message, capsys.readouterr().err)
            continue
        with pytest.raises(ValueError, match=message):
            (TextPipeline if kind == "text" else MaskedImagePipeline).from_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What may be mistaken for a classifier."""
    root, words = tmp_path_factory.mktemp("folders"), word_tokenizer()
    words.save_pretrained(root / "tokenizer")
    tiny_pipeline().save_pretrained(root / "pipeline")
    (root / "empty").mkdir()
    for name, reward in (("clip", clip(target="a")), ("images", image_classifier())):
        for part in (reward.model, reward.processor, vars(reward).get("tokenizer")):
            if part is not None:
                part.save_pretrained(root / name)
    encoder(words).save_pretrained(root / "encoder")
    words.save_pretrained(root / "encoder")
    return root


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("tokenizer", "a tokenizer alone"),
        ("pipeline", "a pipeline of diffusers"),
        ("empty", "a folder without config.json"),
        ("clip", "a model of another kind"),
        ("images", "one without a tokenizer"),
        ("encoder", "would be random"),
    ],
)
@pytest.mark.parametrize(
    ("kind", "settings"), [(TextClassifierReward, {"label": 0}), (TextPreferenceReward, {}), (FluencyReward, {})]
)
def test_a_wrong_folder_for_a_reward_of_texts(kind, settings, folder, message, folders, capsys):
    if kind is FluencyReward and folder == "pipeline":
        pytest.skip("which it can be made of")
    start = "lacks" if folder == "encoder" else f"`name` must be a checkpoint that {kind.__name__} can read, got"
    with pytest.raises(ValueError, match=f"{start}.*{message}") as error:
        kind.from_pretrained(folders / folder, **settings)
    assert len(str(error.value)) < 350
    assert str(folders / folder) in str(error.value)
    if kind is TextClassifierReward:
        capsys.readouterr()
        assert main(["generate", "--reward", str(folders / folder), "--label", "0"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert message in said
        assert folder == "encoder" or "`--reward` must be a checkpoint" in said


def test_fluency_by_the_model_of_a_pipeline():
    name = "builtin:tatoeba-masked"
    pipe, texts = TextPipeline.from_pretrained(name), ["I hate you.", "You hate. I"]
    reward, made = FluencyReward.from_pretrained(name), FluencyReward(pipe.model, pipe.tokenizer)
    torch.testing.assert_close(reward.score(texts), made.score(texts))
    assert reward.score(texts).diff() < 0
    for other in ("mnist-masked", "tatoeba-uniform"):  # which knows no masks
        with pytest.raises(ValueError, match="FluencyReward can read, got .*a pipeline of diffusers"):
            FluencyReward.from_pretrained(f"builtin:{other}")


@pytest.mark.parametrize("setting", [{"shift_logits": True}, {"time_input": "sigma"}])
def test_fluency_takes_no_pipeline_that_calls_its_model_in_another_way(setting, folders, tmp_path):
    folder = shutil.copytree(folders / "pipeline", tmp_path / "pipeline")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | setting))
    with pytest.raises(ValueError, match="FluencyReward can read, got .*a pipeline of diffusers"):
        FluencyReward.from_pretrained(folder)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("model/model.safetensors", "could not be loaded: .*no file named model.safetensors"),
        ("model/config.json", "FluencyReward can read, got .*, a folder without config.json"),
        ("tokenizer/tokenizer.json", "FluencyReward can read, got .*, one without a tokenizer"),
        ("tokenizer", "FluencyReward can read, got .*, a pipeline of diffusers"),
        ("model_index.json", "FluencyReward can read, got .*, a folder without config.json"),
    ],
)
def test_what_a_pipeline_lacks_for_fluency(missing, message, folders, tmp_path):
    folder = shutil.copytree(folders / "pipeline", tmp_path / "pipeline")
    wrong = folder / missing
    shutil.rmtree(wrong) if wrong.is_dir() else wrong.unlink()
    with pytest.raises((ValueError, OSError), match=message) as error:
        FluencyReward.from_pretrained(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("folder", "message"), [("tokenizer", "a tokenizer alone"), ("encoder", "one without an image processor")]
)
@pytest.mark.parametrize(("kind", "settings"), [(ImageClassifierReward, {"label": 0}), (CLIPReward, {"target": "a"})])
def test_a_wrong_folder_for_a_reward_of_images(kind, settings, folder, message, folders):
    with pytest.raises(ValueError, match=f"`name` must be a checkpoint that {kind.__name__} can read, got.*{message}"):
        kind.from_pretrained(folders / folder, **settings)


@pytest.mark.parametrize("content", ["[", "{}", "[1]", "null", '[{"type": 3}]', '{"a": 1}'])
def test_modules_of_a_sentence_encoder_that_are_none(content, tmp_path):
    encoder(word_tokenizer()).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "modules.json").write_text(content)
    if content in ("{}", "null"):
        SentenceSimilarityReward.from_pretrained(tmp_path, "a")
        return
    with pytest.raises(ValueError, match="could not be loaded"):
        SentenceSimilarityReward.from_pretrained(tmp_path, "a")


@pytest.mark.parametrize("content", [b"", b"x" * 20, None])
def test_a_head_that_is_no_head(content, tmp_path):
    file = tmp_path / "head.safetensors"
    save_file({"0.weight": torch.zeros(3)}, file)
    if content is not None:
        file.write_bytes(content)
    made = clip(target="a")
    with pytest.raises(ValueError, match="`head`"):
        AestheticReward(made.model, made.processor, file)
