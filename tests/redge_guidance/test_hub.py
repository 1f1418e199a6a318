from ssl import SSLError
from urllib.error import URLError

import pytest
from huggingface_hub import constants

from redge_guidance import hub
from redge_guidance.cli import main
from redge_guidance.pipelines import MaskedImagePipeline, TextPipeline
from redge_guidance.rewards import ImageClassifierReward, TextClassifierReward


@pytest.mark.parametrize("name", ["gpt2", "bert-base-uncased", "organisation/model", "a.b_c-1/x.y-2.0"])
def test_an_id_of_the_hub_is_passed_on_as_it_is(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_out_of_reach", lambda: None)
    assert hub.resolve(name) == name
    (tmp_path / name).mkdir(parents=True)
    assert hub.resolve(name) == name  # a folder goes first
    assert hub.resolve(tmp_path / name) == str(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    [
        "./gpt2",
        "/gpt2",
        "~/gpt2",
        "~nobody",
        "a/b/c",
        "a b",
        "é",
        "-x",
        "x--y",
        "m.safetensors",
        "a/b.git",
        "file",
        "here/x",
    ],
)
def test_what_is_no_id_is_not_asked_for(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(hub, "_out_of_reach", None)
    with pytest.raises(FileNotFoundError, match=f"`{name}` is not a folder"):
        hub.resolve(name)


@pytest.mark.parametrize("name", ["", None, 3, b"gpt2", ["gpt2"]])
def test_no_name(name):
    for load in (hub.resolve, TextPipeline.from_pretrained, TextClassifierReward.from_pretrained):
        with pytest.raises(ValueError, match="`name` must name a checkpoint"):
            load(name)


@pytest.mark.parametrize("kind", [TextPipeline, MaskedImagePipeline, TextClassifierReward, ImageClassifierReward])
def test_without_a_hub_an_id_of_one_word_is_one_clear_line(kind, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="`gpt2` could not be loaded: HF_HUB_OFFLINE is set, and nothing of it is in"):
        kind.from_pretrained("gpt2", cache_dir=str(tmp_path))
    assert main(["generate", "--model", "gpt2-unheard-of", "--label", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("revision", [None, "old"])
def test_without_a_hub_the_cache_that_is_named_is_looked_at(revision, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "usual"))
    for branch, commit in (("main", "a" * 40), ("old", "b" * 40)):
        model = tmp_path / "named" / "models--organisation--model"
        (model / "snapshots" / commit).mkdir(parents=True)
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / branch).write_text(commit)
    found = hub.resolve("organisation/model", revision, str(tmp_path / "named"))
    assert found == str(model / "snapshots" / (("a" if revision is None else "b") * 40))


@pytest.mark.parametrize(
    ("reason", "trouble"),
    [(OSError("no route"), "no route"), (SSLError("a certificate of one's own"), None)],
    ids=["no route", "a certificate that only Python does not know"],
)
def test_a_hub_is_out_of_reach_where_nothing_answers(reason, trouble, monkeypatch):
    def fails(*args, **kwargs):
        raise URLError(reason)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "urlopen", fails)
    assert hub._out_of_reach() == (trouble and f"{constants.ENDPOINT} cannot be reached: {trouble}")
