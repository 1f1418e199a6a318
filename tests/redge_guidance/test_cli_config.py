"""`--config`, `--save-config`, and every setting by its name on the command line."""

import importlib.util
import sys
import time

import pytest
import torch

from redge_guidance import load
from redge_guidance.cli import main
from redge_guidance.cli.given import settings_of
from redge_guidance.cli.parser import build_parser
from redge_guidance.recipe import recipe_of
from redge_guidance.setups.documents import read
from redge_guidance.setups.options import Options
from redge_guidance.setups.schema import OPTIONS
from redge_guidance.setups.setup import assemble, config_of
from tests.helpers.started import run
from tests.helpers.tiny import tiny_pipeline, word_tokenizer
from tests.published.checkpoints import WORDS, write

FAST = ["--samples-per-prompt", "2", "--num-inference-steps", "3"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A masked language model with its tokenizer, as a pipeline and as a model alone."""
    root = tmp_path_factory.mktemp("models")
    pipe = tiny_pipeline()
    pipe.save_pretrained(root / "pipe")
    pipe.model.save_pretrained(root / "model")
    word_tokenizer().save_pretrained(root / "model")
    return root


def settings(*arguments):
    return settings_of(build_parser().parse_args(["generate", *arguments]))[0]


def texts(capsys, *arguments):
    assert main(["generate", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["--version"]])
def test_help_answers_at_once(arguments):
    started = time.perf_counter()
    assert run([sys.executable, "-m", "redge_guidance", *arguments]).returncode == 0
    seconds = time.perf_counter() - started
    modules = f"import sys; from redge_guidance.cli import main\ntry: main({arguments})\nexcept SystemExit: pass\n"
    modules += "sys.exit(bool({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    assert run([sys.executable, "-c", modules]).returncode == 0
    assert seconds < 5  # 0.3 alone on a machine; this one may be busy


HARD = {"constraints": [{"kind": "words", "wanted": ["music"]}, {"kind": "length", "maximum": 6}]}
SOFT = [{"LexicalReward": {"wanted": ["music"], "weight": 15.0}}, {"LengthReward": {"maximum": 6, "weight": 8.0}}]


@pytest.mark.parametrize(("how", "rewards", "rest"), [([], [], HARD), (["--soft"], SOFT, {})])
def test_what_was_saved_is_run_again(how, rewards, rest, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    goals = ["--label", "negative", "--want", "music", "--max-words", "6", "--scale", "3", *how]
    more = ["--estimator", "redge: {num_steps: 2}", "--support", "none", "--temperature", "0.9", "--prompt", "Tom"]
    first = texts(capsys, *FAST, *goals, *more, "--seed", "4", "--save-config", str(file))
    assert texts(capsys, "--config", str(file)) == first
    values = read(file.read_text(), "file").values
    assert values == rest | {
        "reward": [*rewards, {"TextClassifierReward": {"name": "builtin:sentiment", "label": "negative"}}],
        "scale": 3.0,
        "estimator": {"redge": {"num_steps": 2}},
        "support": None,
        "num_inference_steps": 3,
        "temperature": 0.9,
        "prompt": ["Tom"],
        "samples_per_prompt": 2,
        "seed": 4,
    }
    setup = load(file)
    assert (setup.config.scale, setup.run["seed"], setup.settings["temperature"]) == (3.0, 4, 0.9)
    again = tmp_path / "again.yaml"
    texts(capsys, "--config", str(file), "--save-config", str(again))
    assert again.read_text() == file.read_text()


def test_what_is_said_on_the_command_line_wins(tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 1\nprompt: a\nreward: [LengthReward: {maximum: 3}]\nuse_cache: false\n")
    found = settings("--config", str(tmp_path / "run.yaml"), "--seed", "2", "--use-cache")
    assert (found.get("seed"), found.get("prompt"), found.get("use_cache")) == (2, ["a"], True)
    assert [entry.kind for entry in found.get("reward")] == ["LengthReward"]
    found = settings("--config", str(tmp_path / "run.yaml"), "--label", "positive")  # instead of the file's
    assert "reward" not in found


VALUES = {"text": "a", "texts": "a", "label": "a", "integer": "2", "number": "0.5", "numbers": "0.5", "integers": "1,2"}
VALUES |= {"value": "{a: 1}", "rewards": "builtin:sentiment", "constraints": "{kind: regex, pattern: a}"}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_setting_has_one_name(name, tmp_path):
    """On the command line, and the same value from a file."""
    option = OPTIONS[name]
    if option.kind == "flag":
        assert settings("--scale", "0", option.flag).get(name) is True
        assert settings("--scale", "0", option.flag.replace("--", "--no-")).get(name) is False
        return
    text = option.choices[0] if option.choices else VALUES[option.kind]
    rest = [] if name == "scale" else ["--scale", "0"]
    told = settings(*rest, option.flag, text).get(name)
    file = tmp_path / "run.yaml"
    file.write_text(f"{name}: {f'[{text}]' if option.kind in ('integers', 'texts') else text}\n")
    found = settings(*rest, "--config", str(file)).get(name)
    if name in ("reward", "constraints"):
        told, found = ([(entry.kind, entry.arguments) for entry in one] for one in (told, found))
    assert found == told
    assert told is not None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--estimator", "redge"], "redge"),
        (["--estimator", "redge: {num_steps: 8}"], {"redge": {"num_steps": 8}}),
        (["--estimator", "{name: redge, num_steps: 8}"], {"name": "redge", "num_steps": 8}),
    ],
)
def test_names_with_settings(arguments, expected):
    found = settings("--label", "a", *arguments)
    assert found.get("estimator") == expected
    assert config_of(found).estimator.num_steps in (4, 8)


def test_rewards_with_arguments():
    found = settings("--reward", "LengthReward: {maximum: 8, weight: 2}", "--reward", "builtin:sentiment")
    assert [(e.kind, e.arguments, e.weight) for e in found.get("reward")] == [
        ("LengthReward", {"maximum": 8}, 2.0),
        (None, {"name": "builtin:sentiment"}, 1.0),
    ]
    assert settings("--reward", r"C:\models\one").get("reward")[0].arguments == {"name": r"C:\models\one"}
    setup = assemble(
        settings("--reward", "LengthReward: {maximum: 8, weight: 2}", "--reward", "LengthReward: {minimum: 1}"), False
    )
    assert repr(setup.reward) == "2 * LengthReward + 1 * LengthReward_2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reward", "LenghtReward: {maximum: 8}"], "--reward: there is no ready-made reward `LenghtReward`; did you"),
        (["--reward", "LengthReward: {maximum: 8"], "--reward, line 1: this is no YAML"),
        (["--reward", "LengthReward: {most: 8}"], "--reward: `LengthReward` has no argument `most`"),
        (["--reward", "builtin:sentiment", "--reward", "builtin:nope"], "`--reward` must name one checkpoint at most"),
        (["--estimator", "redge: {steps: 8}"], "`estimator` has settings that ReDGE does not"),
        (["--config", "no.yaml"], "no.yaml cannot be read: No such file"),
        (["--config", "bad.yaml"], "bad.yaml, line 2: there is no setting `temprature`; did you mean `temperature`?"),
        (
            ["--save-config", "no/run.yaml", "--label", "positive"],
            "`--save-config` must name a file in an existing folder",
        ),
        (
            ["--label", "positive", "--negative-prompt", "a"],
            "`--negative-prompt` cannot be used with builtin:tatoeba-mas",
        ),
        (
            ["--label", "positive", "--device-map", "auto", "--device", "cpu"],
            "`--device-map` cannot be used with `--devi",
        ),
        (["--label", "positive", "--cpu-offload", "model", "--device", "cpu"], "`--cpu-offload` is for an accelerator"),
        (["--label", "positive", "--compile", "warp"], "`--compile` must be true or one of default, reduce-overhead"),
        (["--label", "positive", "--adapter", "./nope"], "`./nope` is not a folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("seed: 1\ntemprature: 1\n")
    assert main(["generate", *FAST, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_without_options_the_embedded_example_runs(capsys):
    assert main(["generate", *FAST]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert "nothing was said to steer toward: toward `--label positive`, as an example" in captured.err


def test_scale_0_needs_no_goal(tiny, capsys):
    assert main(["generate", *FAST, "--scale", "0", "--model", str(tiny / "pipe")]) == 0
    captured = capsys.readouterr()
    assert (len(captured.out.splitlines()), captured.err) == (2, "")


def test_some_prompts_failed(tiny, capsys):
    prompts = ["--prompt", "a", "--prompt", "a b c d " * 40]
    assert main(["generate", *FAST, "--scale", "0", "--model", str(tiny / "pipe"), *prompts]) == 3
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert "redge-guidance: entry 1: " in captured.err
    assert "shorten `prompt`" in captured.err


def test_code_of_a_checkpoint_wants_the_file_and_the_flag(tmp_path, capsys):
    model = write(tmp_path / "model", "timed", tokenizer=False, model_type="unheard-of")
    words = word_tokenizer(WORDS)
    words.mask_token = None
    words.save_pretrained(tmp_path / "words")
    named = f"model: {model}\nfamily: mdlm\ntokenizer: {tmp_path / 'words'}\nwant: c\n"
    file, asked = tmp_path / "run.yaml", ["generate", *FAST, "--config", str(tmp_path / "run.yaml")]
    for more, flags, message in (
        ("", [], "comes with Python code of its own"),
        ("", ["--trust-remote-code"], "comes with Python code of its own"),
        ("trust_remote_code: true\n", [], "line 5: `trust_remote_code` asks to run code that comes with"),
    ):
        file.write_text(named + more)
        assert main([*asked, *flags]) == 2
        assert message in capsys.readouterr().err
    assert main([*asked, "--trust-remote-code"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    with pytest.raises(ValueError, match="line 5: `trust_remote_code` asks to run code"):
        load(file)
    assert load(file, trust_remote_code=True).pipe.model is not None


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft and newer transformers
@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
def test_an_adapter_on_the_generator(tiny, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = tiny_pipeline().model
    names = [name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)][:2]
    adapted = get_peft_model(base, LoraConfig(target_modules=names, init_lora_weights=False)).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[3, 4, 5]])
    for model in ("pipe", "model"):
        plain = assemble(Options({"model": str(tiny / model)}), False).pipe
        pipe = assemble(Options({"model": str(tiny / model), "adapter": str(tmp_path / "adapter")}), False).pipe
        assert type(pipe.model) is type(base)
        torch.testing.assert_close(pipe.model(ids).logits, adapted(ids).logits.detach())
        assert not torch.allclose(plain.model(ids).logits, pipe.model(ids).logits)
        assert not any(parameter.requires_grad for parameter in pipe.model.parameters())


def test_a_compiled_generator(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: asked.append((type(self).__name__, how)))
    for how in (True, False, "reduce-overhead"):
        pipe = assemble(Options({"model": str(tiny / "pipe"), "compile": how}), False).pipe
    kind = type(pipe.model).__name__
    assert asked == [(kind, {}), (kind, {"mode": "reduce-overhead"})]


def test_a_model_on_a_map_of_devices(tiny):
    pipe = assemble(Options({"model": str(tiny / "model"), "device_map": {"": "cpu"}}), False).pipe
    assert recipe_of(pipe).arguments["device_map"] == {"": "cpu"}
    assert pipe.device == torch.device("cpu")


def test_a_generator_of_lower_precision(tiny, capsys):
    assert main(["generate", *FAST, "--scale", "0", "--model", str(tiny / "pipe"), "--dtype", "bfloat16"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_into_a_file_and_on_with_it(tiny, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "id": 1}\n{"prompt":\n{"prompt": "b c", "id": 3}\n')
    asked = ["generate", "--model", str(tiny / "pipe"), "--scale", "0", "--num-inference-steps", "2"]
    asked += ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert main(asked) == 3
    error = capsys.readouterr().err
    assert "redge-guidance: line 2 is no JSON" in error
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert ['"id": 1' in lines[0], '"id": 3' in lines[1], len(lines)] == [True, True, 2]
    assert main(asked) == 3
    assert (tmp_path / "out.jsonl").read_text().splitlines() == lines
    assert "0 samples" in capsys.readouterr().err
    assert main([*asked, "--seed", "1"]) == 2
    assert main([*asked, "--seed", "1", "--overwrite"]) == 3
    assert main([*asked, "--prompt", "a"]) == 2
    assert "`--prompt` cannot be used with `--input`" in capsys.readouterr().err
    assert main([*asked[:-2]]) == 2
    assert "`--output` must say where" in capsys.readouterr().err


def test_control_c_says_how_to_go_on(tiny, tmp_path, capsys, monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("redge_guidance.cli.into_file.generate_to", stopped)
    output = str(tmp_path / "out.jsonl")
    assert main(["generate", "--model", str(tiny / "pipe"), "--scale", "0", "--output", output]) == 130
    assert f"interrupted, what is done is in {output}, and the same command goes on there" in capsys.readouterr().err
