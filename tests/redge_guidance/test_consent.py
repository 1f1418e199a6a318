"""Code of a checkpoint runs where its user said so, and nobody is asked on the terminal."""

import io
import json
import sys
from contextlib import nullcontext

import pytest
from diffusers import AmusedPipeline
from transformers import AutoConfig, dynamic_module_utils

from redge_guidance.cli import main
from redge_guidance.hub import loading
from redge_guidance.pipelines import MaskedImagePipeline, TextPipeline
from redge_guidance.rewards import (
    CLIPReward,
    FluencyReward,
    ImageClassifierReward,
    SentenceSimilarityReward,
    TextClassifierReward,
)
from tests.helpers.image_rewards import classifier, clip
from tests.helpers.images import tiny_amused, tiny_image_pipeline
from tests.helpers.tiny import tiny_pipeline, tiny_reward, word_tokenizer

FAST = ["--samples-per-prompt", "1", "--num-inference-steps", "2"]
AUTO = ("AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM")
AUTO += ("AutoModelForSequenceClassification", "AutoModelForImageClassification", "AutoImageProcessor", "AutoTokenizer")


def with_code(folder, name, more):
    """A JSON file of the checkpoint that says more, beside Python code that tells when it was run."""
    told = folder.parent / "ran"
    (folder / "evil.py").write_text(f"open({str(told)!r}, 'w').close()\nclass Evil:\n    pass\n")
    file = folder / name
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | more))
    return told


def auto_map():
    return {"auto_map": {key: ["evil.Evil", None] if key == "AutoTokenizer" else "evil.Evil" for key in AUTO}}


@pytest.fixture
def yes(monkeypatch):
    """Somebody, or a script, that says y to everything."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))


def tiny_pipeline_model():
    return FluencyReward(tiny_pipeline().model, word_tokenizer())


def saved(reward, folder):
    for part in (
        reward.model,
        reward.processor if hasattr(reward, "processor") else None,
        reward.__dict__.get("tokenizer"),
    ):
        if part is not None:
            part.save_pretrained(folder)
    return folder


REWARDS = [
    (TextClassifierReward, tiny_reward, {"label": 0}),
    (FluencyReward, tiny_pipeline_model, {}),
    (SentenceSimilarityReward, tiny_reward, {"targets": "a"}),
    (ImageClassifierReward, classifier, {"label": 0}),
    (CLIPReward, clip, {"target": "a"}),
]
PLACES = [
    ("config.json", {"model_type": "unheard-of"}),
    ("tokenizer_config.json", {"tokenizer_class": "Evil"}),  # its tokenizer.json is enough without the code
    ("preprocessor_config.json", {"image_processor_type": "Evil"}),
]


@pytest.mark.parametrize(("file", "more"), PLACES)
@pytest.mark.parametrize(("kind", "make", "settings"), REWARDS)
def test_code_of_a_reward(kind, make, settings, file, more, tmp_path, yes, capsys):
    folder = saved(make(), tmp_path / "model")
    if not (folder / file).exists():
        pytest.skip("the reward has no such file")
    ran = with_code(folder, file, more | auto_map())
    capsys.readouterr()
    with (
        nullcontext()
        if file.startswith("tok")
        else pytest.raises(ValueError, match="comes with Python code of its own")
    ):
        kind.from_pretrained(folder, **settings)
    assert not ran.exists()
    assert capsys.readouterr().out == ""
    with pytest.raises(Exception):  # noqa: B017, PT011  # such code is no model, but it was run
        kind.from_pretrained(folder, **settings, trust_remote_code=True)
    assert ran.exists()


def pipeline_folder(which, root):
    made = {"masked": tiny_image_pipeline, "told": lambda: tiny_image_pipeline(takes_text=True), "text": tiny_pipeline}
    made["amused"] = lambda: tiny_amused(AmusedPipeline)
    made[which]().save_pretrained(root / "model")
    return root / "model"


def load_in(which, folder, trust):
    """As a user does it: by the class, or on the command line."""
    if which == "amused":
        more = ["--trust-remote-code"] if trust else []
        reward = ["--reward", "builtin:mnist-classifier", "--label", "7", "--json", str(folder.parent / "out")]
        return main(["generate", "--model", str(folder), *reward, *FAST, *more])
    kind = TextPipeline if which == "text" else MaskedImagePipeline
    return kind.from_pretrained(folder, **{"trust_remote_code": True} if trust else {})


def refused(which, folder, capsys):
    if which == "amused":
        assert load_in(which, folder, False) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "comes with Python code of its own" in error
        assert "--trust-remote-code" in error
    else:
        with pytest.raises(ValueError, match="comes with Python code of its own.*`trust_remote_code=True`"):
            load_in(which, folder, False)


@pytest.mark.parametrize(
    ("which", "part"), [("masked", "transformer"), ("text", "model"), ("amused", "transformer"), ("told", "vqvae")]
)
def test_code_of_a_part_of_a_pipeline(which, part, tmp_path, yes, capsys):
    folder = pipeline_folder(which, tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    ran = with_code(folder / part, "unused.json", {})
    (folder / "model_index.json").write_text(json.dumps(index | {part: ["evil", "Evil"]}))
    capsys.readouterr()
    refused(which, folder, capsys)
    assert not ran.exists()
    try:
        load_in(which, folder, True)
    except Exception:  # such code is no model, but it was run
        assert ran.exists()
    assert ran.exists()


@pytest.mark.parametrize("option", ["--reward", "--model", "--tokenizer"])
@pytest.mark.parametrize("kind", ["text", "image"])
def test_code_on_the_command_line(kind, option, tmp_path, yes, capsys):
    """An image reward's config was read without a word about trust, and transformers asked."""
    image = kind == "image" and option == "--reward"
    if option == "--model":
        tiny_pipeline().model.save_pretrained(tmp_path / "model")
        word_tokenizer().save_pretrained(tmp_path / "model")
    elif option == "--tokenizer":
        word_tokenizer().save_pretrained(tmp_path / "model")
    else:
        saved(classifier() if image else tiny_reward(), tmp_path / "model")
    file, more = PLACES[1] if option == "--tokenizer" else PLACES[0]
    ran = with_code(tmp_path / "model", file, more | auto_map())
    asked = ["--label", "0", option, str(tmp_path / "model"), *FAST]
    if image:
        asked += ["--model", "builtin:mnist-masked", "--json", str(tmp_path / "out")]
    if option == "--tokenizer":
        tiny_pipeline().model.save_pretrained(tmp_path / "bare")
        asked += ["--model", str(tmp_path / "bare")]
    capsys.readouterr()
    assert main(["generate", *asked]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n"), ran.exists()) == ("", 1, False)
    assert "comes with Python code of its own" in captured.err
    assert main(["generate", *asked, "--trust-remote-code"]) in (1, 2)
    assert ran.exists()
    assert capsys.readouterr().err.count("\n") == 1


def test_a_library_that_is_told_nothing_does_not_ask_either(tmp_path, yes, capsys):
    """As inside a concrete class that loads another: no argument of ours arrives there."""
    folder = saved(tiny_reward(), tmp_path / "model")
    ran = with_code(folder, "config.json", {"model_type": "unheard-of"} | auto_map())
    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    capsys.readouterr()
    with pytest.raises(ValueError, match="comes with Python code of its own"), loading("x"), loading("y"):
        AutoConfig.from_pretrained(folder)
    assert not ran.exists()
    assert capsys.readouterr().out == ""
    assert before == dynamic_module_utils.TIME_OUT_REMOTE_CODE > 0
