import json
import math
import os

import pytest
from diffusers import AmusedPipeline
from PIL import Image

from redge_guidance.cli import main
from tests.helpers.image_rewards import classifier, clip
from tests.helpers.images import tiny_amused, tiny_image_pipeline

FAST = ["--samples-per-prompt", "3", "--num-inference-steps", "2"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A pipeline with classes, one of aMUSEd, a classifier and a CLIP model, by name."""
    root = tmp_path_factory.mktemp("models")
    tiny_image_pipeline().save_pretrained(root / "masked")
    tiny_amused(AmusedPipeline).save_pretrained(root / "amused")
    for name, reward in (("classifier", classifier()), ("clip", clip(target="a"))):
        for part in (reward.model, reward.processor, getattr(reward, "tokenizer", None)):
            if part is not None:
                part.save_pretrained(root / name)
    return {name: str(root / name) for name in ("masked", "amused", "classifier", "clip")}


def test_digits_in_a_contact_sheet(tmp_path, capsys):
    file = tmp_path / "sheet.png"
    models = ["--model", "builtin:mnist-masked", "--reward", "builtin:mnist-classifier", "--label", "7"]
    settings = ["--samples-per-prompt", "17", "--num-inference-steps", "8", "--kl-budget", "2"]
    assert main(["generate", *models, *settings, "--out", str(file)]) == 0
    with Image.open(file) as sheet:
        assert sheet.size == (16 * 56, 4 * 56)  # 16 in a row, unguided above guided, and the remaining one
        assert sheet.getpixel((16 * 56 - 1, 4 * 56 - 1)) == (255, 255, 255)  # beyond the last
    assert sorted(os.listdir(tmp_path)) == ["sheet-trace.png", "sheet.png"]
    with Image.open(tmp_path / "sheet-trace.png") as trace:
        assert trace.width > 500
    captured = capsys.readouterr()
    assert captured.err == ""
    shares = {line.split()[0]: int(line.split()[2].rstrip("%")) for line in captured.out.splitlines()[3:]}
    assert shares["unguided"] <= 40
    assert shares["guided"] >= 90


def test_records_of_images(folders, tmp_path, capsys):
    file = tmp_path / "out.jsonl"
    models = ["--model", folders["masked"], "--reward", folders["classifier"], "--label", "dog"]
    assert main(["generate", *models, *FAST, "--class-label", "1", "--json", str(file), "--baseline"]) == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["strength"] for line in lines[:3]] == [0.0] * 3
    assert all(line["strength"] > 0 for line in lines[3:])
    known = {"index", "sample", "prompt", "reward", "rewards", "reached", "strength", "seed"}
    assert set(lines[0]) == known
    assert set(lines[-1]) == known | {"kl", "target_reached"}
    assert {line["prompt"] for line in lines} == {1}
    assert "unguided" in capsys.readouterr().out


def test_a_reward_temperature_levels_the_classes(folders, tmp_path):
    file = tmp_path / "out.jsonl"
    models = ["--model", folders["masked"], "--reward", folders["classifier"], "--label", "dog"]
    assert main(["generate", *models, *FAST, "--reward-temperature", "1e6", "--json", str(file)]) == 0
    rewards = [json.loads(line)["reward"] for line in file.read_text().splitlines()]
    assert rewards == pytest.approx([-math.log(3)] * 3, abs=1e-4)


@pytest.mark.parametrize(("reward", "goal"), [("classifier", ["--label", "dog"]), ("clip", ["--prompt", "a b"])])
def test_the_strength_is_found_for_every_image_unless_a_scale_is_given(reward, goal, folders, tmp_path):
    file = tmp_path / "out.jsonl"
    models = ["--model", folders["masked"], "--reward", folders[reward], *goal]

    def strengths(*given):
        drawn = ["--estimator", "straight_through"]  # whose noise is one of every image
        assert main(["generate", *models, *FAST, *drawn, *given, "--json", str(file)]) == 0
        return [json.loads(line)["strength"] for line in file.read_text().splitlines()]

    found = strengths()
    assert len(set(found)) == len(found) == 3
    assert min(found) > 0
    assert strengths("--target", "-50", "--kl-budget", "0.1") == [0.0] * 3  # which every image has by itself
    assert strengths("--scale", "3") == [3.0] * 3


@pytest.mark.parametrize("model", ["masked", "amused"])
def test_toward_a_text_by_clip(model, folders, tmp_path, capsys):
    prompts = ["--prompt", "a b", "--prompt", "c"] if model == "amused" else ["--prompt", "a b"]
    models = ["--model", folders[model], "--reward", folders["clip"]]
    assert main(["generate", *models, *FAST, *prompts, "--scale", "50", "--out", str(tmp_path / "s.jpg")]) == 0
    lines = capsys.readouterr().out.splitlines()
    rewards = {line.split()[0]: float(line.split()[1]) for line in lines[3:]}
    assert rewards["guided"] > rewards["unguided"]
    assert lines[3].split()[2] == "-"  # no classes to hit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "7"], "`--out` must name an image file for images, got none"),
        (["--label", "7", "--out", "sheet.gif"], "`--out` must be a .png, .jpg or .webp file, got sheet.gif"),
        (["--label", "7", "--out", "no/such/folder/s.png"], "`--out` must name a file in an existing folder"),
        (["--label", "7", "--want", "music"], "`--want` cannot be used with {masked}, which makes images"),
        (["--label", "bird"], "`label` must be one of cat (0), dog (1), cow (2), got 'bird'"),
        (
            ["--label", "cat", "--reward-temperature", "0"],
            "`--reward-temperature` must be a finite number > 0, got 0.0",
        ),
        (["--reward", "{clip}", "--reward-temperature", "2", "--prompt", "a"], "`--reward-temperature` is for a class"),
        (["--label", "cat", "--class-label", "5"], "`class_labels` must lie in [0, 3), got 5"),
        (["--reward", "builtin:sentiment"], "`--reward` must be an image classifier or a CLIP model"),
        (["--reward", ""], "`--reward` must name a checkpoint"),
        (["--reward", "{clip}"], "`--prompt` must say what images are to show"),
        (["--reward", "{clip}", "--prompt", "a", "--prompt", "b"], "`--prompt` must be one text for {masked}"),
        (
            ["--label", "cat", "--prompt", "a"],
            "`--prompt` has no use: {masked} is given no text, and {classifier} is a",
        ),
        (["--reward", "{clip}", "--label", "7", "--prompt", "a"], "`--label` is for a classifier"),
        (
            ["--model", "{amused}", "--label", "cat", "--class-label", "1"],
            "`--class-labels` is for a model with classes",
        ),
        (["--model", "builtin:tatoeba-masked", "--out", "s.png"], "`--out` cannot be used with builtin:tatoeba-masked"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    defaults = ["--model", folders["masked"]]
    if "--reward" not in arguments:
        defaults += ["--reward", folders["classifier"]]
    if not {"--out", "--want"} & set(arguments) and message[:7] != "`--out`":
        defaults += ["--out", "sheet.png"]
    assert main(["generate", *defaults, *FAST, *(a.format(**folders) for a in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message.format(**folders) in captured.err
    assert os.listdir(tmp_path) == []


def test_the_same_seed_gives_the_same_sheet(folders, tmp_path):
    models = ["--model", folders["masked"], "--reward", folders["classifier"], "--label", "cat"]
    for name, seed in (("a.png", "1"), ("b.png", "1"), ("c.png", "2")):
        assert main(["generate", *models, *FAST, "--seed", seed, "--out", str(tmp_path / name)]) == 0
    sheets = []
    for name in "abc":
        with Image.open(tmp_path / f"{name}.png") as sheet:
            sheets.append(sheet.tobytes())
    assert sheets[0] == sheets[1] != sheets[2]
