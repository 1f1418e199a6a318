import json
import math
import os
import signal
import sys

import pytest

from redge_guidance.cli import main
from redge_guidance.estimators import ESTIMATORS
from redge_guidance.pipelines import MaskedTextPipeline
from tests.helpers import started
from tests.helpers.processes import launch
from tests.helpers.tiny import word_tokenizer
from tests.published.checkpoints import WORDS, write

FAST = ["--samples-per-prompt", "2", "--num-inference-steps", "3", "--label", "negative"]


def run(*arguments, **kwargs):
    """The command in a process of its own: `(exit code, stdout, stderr)`."""
    process = started.run([sys.executable, "-m", "redge_guidance.cli", *arguments], **kwargs)
    return process.returncode, process.stdout, process.stderr


def test_texts_on_stdout_nothing_on_stderr_in_a_pipe():
    code, out, err = run("generate", *FAST)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 2


def test_a_uniform_model_by_its_name(capsys):
    assert main(["generate", *FAST, "--model", "builtin:tatoeba-uniform", "--prompt", "My [MASK] is here."]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("My ") and line.endswith(" is here.") for line in lines)


def is_as_asked(text):
    return "music" in text and "Tom" not in text and len(text.split()) <= 5


@pytest.mark.parametrize(("more", "texts", "column", "least"), [([], 4, 2, 4), (["--soft"], 8, 2, 6)])
def test_words_and_lengths(more, texts, column, least, capsys):
    goals = ["--want", "music", "--ban", "Tom", "--max-words", "5", *more]
    assert main(["generate", "--samples-per-prompt", str(texts), "--baseline", *goals]) == 0
    lines = capsys.readouterr().out.splitlines()
    guided = [line.strip() for line in lines[lines.index("guided:") + 1 :][:texts]]
    assert sum(map(is_as_asked, guided)) >= least
    shares = [line.split()[column + (not more)] for line in lines if line.startswith(("unguided ", "guided "))]
    assert shares[0] == "0%"
    assert int(shares[1].rstrip("%")) >= (75 if more else 100)


def test_same_seed_same_texts(capsys):
    outputs = []
    for seed in ("1", "1", "2"):
        assert main(["generate", *FAST, "--seed", seed]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


def test_a_reward_temperature_levels_the_labels(tmp_path):
    file = tmp_path / "out.jsonl"
    assert main(["generate", *FAST, "--scale", "0", "--reward-temperature", "1e6", "--json", str(file)]) == 0
    rewards = [json.loads(line)["reward"] for line in file.read_text().splitlines()]
    assert rewards == pytest.approx([-math.log(3)] * 2, abs=1e-4)


def test_json_has_one_object_a_text(tmp_path, capsys):
    file = tmp_path / "out.jsonl"
    arguments = ["generate", *FAST, "--prompt", "Tom", "--prompt", "I [MASK] it.", "--json", str(file), "--baseline"]
    assert main([*arguments, "--scale", "3", "--estimator", "redge"]) == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 8
    assert [line["strength"] for line in lines] == [0.0] * 4 + [3.0] * 4
    known = {"index", "sample", "prompt", "text", "answer", "reward", "rewards", "reached", "nats", "strength", "seed"}
    assert set(lines[0]) == known
    assert set(lines[-1]) == known | {"kl"}
    assert all(line["text"].startswith("Tom") for line in lines if line["prompt"] == "Tom")
    assert all(line["reward"] <= 0 < line["nats"] for line in lines)
    out = capsys.readouterr().out
    assert all(line["text"] in out for line in lines)
    assert "unguided" in out
    assert "nats/token" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "angry"], "`label` must be one of negative (0), neutral (1), positive (2), got 'angry'"),
        (["--estimator", "gumbel"], "straight_through or an Estimator, got 'gumbel'"),
        (["--update", "sgd"], "`update` must be one of adam, natural"),
        (["--scale", "-1"], "`scale` must be a finite number >= 0, got -1.0"),
        (["--model", "builtin:nope"], "`builtin:nope` is not an embedded checkpoint; choose one of builtin:"),
        (["--model", "./nope"], "`./nope` is not a folder"),
        (["--reward", "/no/such/folder"], "`/no/such/folder` is not a folder"),
        (["--reward", ""], "`--reward` must name a checkpoint"),
        (["--tokenizer", "builtin:sentiment"], "`tokenizer` cannot be used with the pipeline `builtin:tatoeba-masked`"),
        (["--model", "organisation/unknown"], "organisation/unknown"),
        (["--json", "no/such/folder/out.jsonl"], "`--json` must name a file in an existing folder"),
        (["--prompt", "a [EOS]"], "`prompt` must not contain reserved tokens, got '[EOS]'"),
        (["--prompt", "word " * 80], "shorten `prompt`"),
        (["--want", " "], "must be words or phrases, got ' '"),
        (["--min-words", "5", "--max-words", "4"], "`--min-words` must be <= `--max-words`, got 5 and 4"),
        (["--device", "meta"], "`--device` must be a device of this machine, got 'meta'"),
        (["--device", "xla"], "`--device` must be a device of this machine, got 'xla'"),
        (["--device", "mps"], "`--device` must be a device of this machine, got 'mps'"),
        (["--device", "cuda:99"], "`--device` must be a device of this machine, got 'cuda:99'"),
        (["--reward-temperature", "inf"], "`--reward-temperature` must be a finite number > 0, got inf"),
        (["--reward-temperature", "nan"], "`--reward-temperature` must be a finite number > 0, got nan"),
        (["--device", "abacus"], "`--device` must be a device of this machine, got 'abacus'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, message):
    assert main(["generate", *FAST, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("redge-guidance: error: ")
    assert message in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--want", "music", "--reward", "builtin:sentiment"], "`label` must be one of negative (0), neutral (1), po"),
        (["--want", "music", "--reward-temperature", "2"], "`--reward-temperature` needs `--label`, got none"),
        (
            ["--model", "builtin:tatoeba-masked"],
            "`--label` or `--reward` must say what to steer toward, or `--want`, `--ban`, `--min-words`, `--max",
        ),
    ],
)
def test_a_goal_that_is_not_named(capsys, arguments, message):
    assert main(["generate", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["generate", "--samples-per-prompt", "0"], "argument --samples-per-prompt: must be >= 1, got 0"),
        (["generate", "--samples-per-prompt", "9" * 30], "argument --samples-per-prompt: must be <= 1000000, got 999"),
        (["generate", "--mask-token-id", "9" * 20], "argument --mask-token-id: must be an integer of 64 bits, got 999"),
        (["generate", "--class-label", "1e3"], "argument --class-labels/--class-label: must be an integer, got '1e3'"),
        (["generate", "--seed", str(2**64)], "argument --seed: must be an integer from -2**63 to 2**64 - 1"),
        (["generate", "--nope"], "unrecognized arguments: --nope"),
        (["generate", "--seed", "x"], "argument --seed: must be an integer, got 'x'"),
        (["generate", "--dtype", "int8"], "argument --dtype: invalid choice"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_missing_folder_is_found_before_any_work(tmp_path, capsys):
    assert main(["generate", "--label", "a", "--model", "builtin:nope", "--json", str(tmp_path / "no" / "out")]) == 2
    assert "`--json` must name a file in an existing folder" in capsys.readouterr().err


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "out.jsonl"
    file.write_text("old\n")

    def full(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("redge_guidance.cli.files.os.replace", full)
    assert main(["generate", *FAST, "--json", str(file)]) == 2
    assert file.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_control_c_is_one_line_exit_code_130_and_no_file(tmp_path):
    """While texts are drawn, in a process forked from this one."""
    file, out, err = (tmp_path / name for name in ("out.jsonl", "stdout", "stderr"))
    plan = MaskedTextPipeline._plan

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return plan(*args)

    def work():
        MaskedTextPipeline._plan = interrupted
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT), 1)
        return main(["generate", *FAST, "--samples-per-prompt", "100000", "--json", str(file)])

    assert launch(work, errors=err) == [130]
    assert out.read_text() == ""
    assert err.read_text().strip().endswith("interrupted, nothing was written")
    assert err.read_text().count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["stderr", "stdout"]


def test_a_model_with_code_of_its_own_and_the_tokenizer_of_another(tmp_path, capsys):
    model = write(tmp_path / "model", "timed", tokenizer=False, model_type="unheard-of")
    words = word_tokenizer(WORDS)
    words.mask_token = None
    words.save_pretrained(tmp_path / "words")
    asked = [
        "generate",
        "--model",
        str(model),
        "--want",
        "c",
        "--samples-per-prompt",
        "2",
        "--num-inference-steps",
        "4",
    ]
    for more, message in (
        ([], "pass `--trust-remote-code` to run it"),
        (["--trust-remote-code"], "a model of type 'unheard-of' is not known"),
        (["--trust-remote-code", "--family", "mdlm"], "`tokenizer` must be given"),
    ):
        assert main([*asked, *more]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert main([*asked, "--trust-remote-code", "--family", "mdlm", "--tokenizer", str(tmp_path / "words")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_version_and_help():
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("redge-guidance 0.")
    code, out, _ = run("generate", "--help")
    assert code == 0
    for option in ("--model", "--reward", "--label", "--scale", "--json", "--baseline", "--trust-remote-code"):
        assert option in out
    assert set(ESTIMATORS) <= set(out.replace(",", " ").replace(";", " ").split())
