"""Random command lines on tiny checkpoints that were tampered with: `python tests/fuzz.py [CASES] [--first SEED]`.

A case is a function of its number. Whatever comes, the command ends with 0, or with 2 and one line that says why, and
leaves nothing behind but what it was asked for. `--case N` runs one alone and shows where it fails. With `--library`
the checkpoints are loaded by `from_pretrained`, which raises ValueError or OSError and nothing else.
"""

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ["HF_HUB_OFFLINE"] = "1"

from diffusers import AmusedPipeline
from safetensors.torch import load_file, save_file

from redge_guidance.cli import main
from redge_guidance.pipelines import MaskedImagePipeline, TextPipeline
from redge_guidance.rewards import (
    CLIPReward,
    FluencyReward,
    ImageClassifierReward,
    ImagePreferenceReward,
    SentenceSimilarityReward,
    TextClassifierReward,
)
from tests.helpers.image_rewards import classifier, clip
from tests.helpers.images import tiny_amused, tiny_image_pipeline
from tests.helpers.tiny import tiny_pipeline, tiny_reward, tiny_uniform, word_tokenizer

PATIENCE = 120  # seconds for a case
JUNK = [None, True, False, 0, 1, -1, 3, 7, 2**70, 0.5, -0.0, 1e400, "", "x", "bert", "cpu", "[MASK]", [], {}, [None]]
JUNK += [["x", "y"], {"x": 1}, [[]], {"model_type": "bert"}, "\ud800", "a\0b", "../..", "None"]
KINDS = {"text": ["model", "pipeline", "uniform"], "image": ["masked", "told", "amused"]}
REWARDS = {"text": ["text-classifier"], "image": ["image-classifier", "clip"]}
LABELS = {"text-classifier": "good", "image-classifier": "cat", "clip": None}
VALUES = {
    "--label": ["good", "cat", "0", "1", "-1", "99", "", "GOOD", "\udcff", "x" * 300],
    "--reward-temperature": ["1", "0", "-1", "inf", "nan", "1e-300", "1e300", "x"],
    "--want": ["a", "b c", "", " ", "zzz", "[MASK]", "\udcff", "😀", "a\nb"],
    "--ban": ["a", "", "[EOS]", "\ud800"],
    "--min-words": ["0", "1", "9", "1000000", "99999999999999999999", "x"],
    "--max-words": ["0", "1", "9", "1000000"],
    "--regex": ["a( [b-e])*", "", "(", r"(a)\\1", "a{99}", "[MASK]", ".*", "(?=a)", "\udcff", "\n", "x{999999}"],
    "--choices": ["a b", "", "zzz", "\ud800", "a\0b"],
    "--json-schema": ["FILE", ".", "no/such", "", "/dev/null"],
    "--prefix": ["a", "", "zzz"],
    "--constraint": ["{kind: length, maximum: 3, unit: tokens}", "{kind: x}", "{", "a", "{kind: regex, pattern: 3}"],
    "--most-states": ["0", "1", "50", "x"],
    "--prompt": ["a b", "", "[MASK]", "a [MASK] b", "[PAD]", "a " * 500, "\udcff", "é", "a\0b", "\n"],
    "--class-label": ["0", "2", "3", "-1", "99999999999999999999", "x"],
    "--samples-per-prompt": ["1", "2", "0", "-1", "1e3", "9" * 30],
    "--num-inference-steps": ["1", "2", "0", "1000001", "x"],
    "--seed": ["0", "-1", "1.5", "x", str(2**63), str(2**64 - 1), str(2**64), str(-(2**63)), "9" * 100],
    "--scale": ["0", "2", "-1", "inf", "nan", "1e30", "1e-30", "x", "9" * 400],
    "--estimator": ["redge", "reindge", "reinforce_loo", "soft", "nope", ""],
    "--update": ["adam", "natural", "nope"],
    "--device": ["cpu", "cpu:0", "cuda", "cuda:99", "mps", "meta", "xla", "xpu", "hpu", "", "x", "cpu:-1", "\udcff"],
    "--dtype": ["float32", "bfloat16", "float16", "int8"],
    "--family": ["masked-lm", "dream", "nope", ""],
    "--mask-token-id": ["2", "0", "-1", "99", "9" * 30],
    "--tokenizer": ["FOLDER", "builtin:sentiment", "nope", "gpt2", ""],
    "--model": ["builtin:nope", "nope", "./nope", "", "a/b/c", "FILE", "\udcff", "~", "TOKENIZER", "x" * 300, "/"],
    "--reward": ["builtin:nope", "nope", "", "FILE", "TOKENIZER", "OTHER", "/", "a\0b"],
    "--json": ["", ".", "no/such", "/dev/null", "/dev/full", "FILE/x", "out.jsonl", "\udcff", "x" * 300],
    "--out": ["", "s.png", "s.gif", ".png", "/dev/null", "no/such.png", "s.webp", "out.jsonl", "\udcff.png"],
}
LOADED = {
    "model": [(TextPipeline, {}), (FluencyReward, {}), (SentenceSimilarityReward, {"targets": "a"})],
    "pipeline": [(TextPipeline, {})],
    "uniform": [(TextPipeline, {})],
    "masked": [(MaskedImagePipeline, {})],
    "told": [(MaskedImagePipeline, {})],
    "text-classifier": [(TextClassifierReward, {"label": "good"}), (SentenceSimilarityReward, {"targets": "a b"})],
    "image-classifier": [(ImageClassifierReward, {"label": "cat"})],
    "clip": [(CLIPReward, {"target": "a"}), (ImagePreferenceReward, {"prompt": "a"})],
}
FLAGS = ["--baseline", "--trust-remote-code", "--soft", "--answer-only"]


def build(root: Path) -> None:
    """The checkpoints that cases begin with."""
    made = {"pipeline": tiny_pipeline, "uniform": tiny_uniform, "masked": tiny_image_pipeline}
    made |= {"told": lambda: tiny_image_pipeline(takes_text=True), "amused": lambda: tiny_amused(AmusedPipeline)}
    for name, make in made.items():
        make().save_pretrained(root / name)
    tiny_pipeline().model.save_pretrained(root / "model")
    word_tokenizer().save_pretrained(root / "model")
    word_tokenizer().save_pretrained(root / "TOKENIZER")
    for name, reward in (
        ("text-classifier", tiny_reward()),
        ("image-classifier", classifier()),
        ("clip", clip(target="a")),
    ):
        for part in (reward.model, vars(reward).get("processor"), vars(reward).get("tokenizer")):
            if part is not None:
                part.save_pretrained(root / name)
    (root / "FILE").write_text("a file")


def paths_of(content, path=()):
    """All places in a JSON document."""
    yield path
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield from paths_of(value, (*path, key))


def tamper_json(file: Path, draw: random.Random) -> str:
    content = json.loads(file.read_text(encoding="utf-8"))
    path = draw.choice(list(paths_of(content)))
    value, how = draw.choice(JUNK), draw.choice(["set", "set", "drop", "other"])
    if not path:
        file.write_text(json.dumps(value))
        return f"{file.name} is {value!r}"
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if how == "drop":
        del inner[path[-1]]
    elif how == "other" and isinstance(inner[path[-1]], int | float):
        value = inner[path[-1]] = inner[path[-1]] + draw.choice([-1, 1, 8, 0.5])
    else:
        inner[path[-1]] = value
    file.write_text(json.dumps(content))
    return f"{file.name}: {path} {how} {value!r}"


def tamper_weights(file: Path, draw: random.Random) -> str:
    how = draw.choice(["empty", "half", "byte", "drop", "shape", "dtype", "nan", "pickle", "one"])
    content = file.read_bytes()
    if how in ("empty", "half", "byte"):
        place = draw.randrange(len(content))
        kept = content[: {"empty": 0, "half": place, "byte": place}[how]]
        file.write_bytes(kept + (bytes([draw.randrange(256)]) + content[place + 1 :] if how == "byte" else b""))
        return f"{file.name}: {how} at {place}"
    weights = load_file(file)
    name = draw.choice(sorted(weights))
    if how == "drop":
        del weights[name]
    elif how == "one":
        weights = {"weight": weights[name].clone()}
    elif how == "shape":
        weights[name] = weights[name].flatten()[: max(1, weights[name].numel() // 2)].clone()
    elif how == "dtype":
        weights[name] = weights[name].long()
    elif how == "nan":
        weights[name] = weights[name] * float("nan")
    else:
        file.unlink()
        file.with_name("pytorch_model.bin").write_bytes(pickle.dumps(Path("x")))
        return f"{file.name} is a pickle"
    save_file(weights, file, {"format": "pt"})
    return f"{file.name}: {name} {how}"


def tamper(folder: Path, draw: random.Random) -> str:
    file = draw.choice(sorted(one for one in folder.rglob("*") if one.is_file()))
    how = draw.random()
    if how < 0.08:
        file.unlink()
        return f"without {file.name}"
    if how < 0.12:
        file.unlink()
        file.mkdir()
        return f"{file.name} is a folder"
    if how < 0.18:
        content = draw.choice([b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"[]", b"{}", b'"x"', b"\0" * 50])
        file.write_bytes(content)
        return f"{file.name} is {content[:9]!r}"
    if file.suffix == ".json":
        return tamper_json(file, draw)
    return tamper_weights(file, draw) if file.suffix == ".safetensors" else "nothing"


def case(number: int, root: Path, folder: Path) -> tuple[list[str], str]:
    """Arguments of the command, and in words what was done to the checkpoints that they name."""
    draw, told = random.Random(number), []
    kind = draw.choice(["text", "image"])
    names = {"--model": draw.choice(KINDS[kind]), "--reward": draw.choice(REWARDS[kind])}
    arguments = ["generate", "--samples-per-prompt", "1", "--num-inference-steps", "2"]
    broken = draw.choice(["--model", "--reward", None])
    for option, name in names.items():
        place = root / name
        if option == broken:
            place = Path(shutil.copytree(place, folder / name))
            told += [tamper(place, draw) for _ in range(draw.choice([1, 1, 2]))]
        arguments += [option, str(place)]
    if LABELS[names["--reward"]] is not None:
        arguments += ["--label", LABELS[names["--reward"]]]
    else:
        arguments += ["--prompt", "a b"]
    arguments += ["--out", "sheet.png"] if kind == "image" and draw.random() < 0.3 else ["--json", "out.jsonl"]
    for _ in range(draw.choice([0, 1, 2, 3]) if broken is None else draw.choice([0, 0, 1])):
        option = draw.choice([*VALUES, *FLAGS])
        arguments.append(option)
        if option in VALUES:
            value = draw.choice(VALUES[option])
            special = {"FOLDER": root / "model", "OTHER": root / draw.choice([*KINDS["text"], *KINDS["image"]])}
            special |= {name: root / name for name in ("FILE", "TOKENIZER")}
            head, _, rest = value.partition("/")
            arguments.append(value if head not in special else str(special[head] / rest))
    return arguments, "; ".join(told)


def load_case(number: int, root: Path) -> str | None:
    """What is wrong with how the library fails on a checkpoint that was tampered with; None: nothing."""
    draw = random.Random(number)
    name = draw.choice(sorted(LOADED))
    with tempfile.TemporaryDirectory() as there, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place = Path(shutil.copytree(root / name, Path(there) / name))
        told = [tamper(place, draw) for _ in range(draw.choice([1, 1, 2]))]
        kind, settings = draw.choice(LOADED[name])
        signal.signal(signal.SIGALRM, _late)
        signal.alarm(PATIENCE)
        try:
            kind.from_pretrained(place, **settings)
        except (ValueError, OSError) as error:
            if len(str(error)) < 1200:
                return None
            return f"{number}: a message of {len(str(error))} characters\n   {kind.__name__} {name}\n   {told}"
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            return f"{number}: {type(error).__name__}: {error} {where}\n   {kind.__name__} {name}\n   {told}"
        finally:
            signal.alarm(0)
    return None


def run_case(number: int, root: Path, show: bool = False) -> str | None:
    """What is wrong with how the command ends; None: nothing."""
    with tempfile.TemporaryDirectory() as there, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments, told = case(number, root, Path(there))
        work = Path(there) / "work"
        work.mkdir()
        out, err = io.StringIO(), io.StringIO()
        before, wrong = os.getcwd(), None
        os.chdir(work)
        signal.signal(signal.SIGALRM, _late)
        signal.alarm(PATIENCE)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(arguments)
        except SystemExit as stop:
            code = stop.code
        except BaseException as error:
            code, wrong = None, f"{type(error).__name__}: {error}"
            if show:
                traceback.print_exc()
            if isinstance(error, KeyboardInterrupt):
                raise
        finally:
            signal.alarm(0)
            os.chdir(before)
        lines = [line for line in err.getvalue().splitlines() if line.startswith("redge")]
        if wrong is None and code == 2 and len(lines) != 1:
            wrong = f"{len(lines)} lines: {err.getvalue()[:300]}"
        if wrong is None and code not in (0, 2):
            wrong = f"code {code}: {err.getvalue()[-400:]}"
        if wrong is None and code == 2 and out.getvalue() + "".join(os.listdir(work)):
            wrong = f"2, and {os.listdir(work)} and {out.getvalue()[:100]!r}"
        if any(name.startswith(".redge") for name in os.listdir(work)):
            wrong = "something is left behind"
        if show:
            print(code, arguments, told, err.getvalue())
    return None if wrong is None else f"{number}: {wrong}\n   {' '.join(map(ascii, arguments))}\n   {told}"


def _late(*args):
    raise TimeoutError("the case takes too long")


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=int, nargs="?", default=500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--case", type=int)
    parser.add_argument(
        "--library", action="store_true", help="load by `from_pretrained` rather than on a command line"
    )
    args = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        if args.case is not None:
            print(run_case(args.case, Path(folder), show=True))
            return 0
        for number in range(args.first, args.first + args.cases):
            found = (load_case if args.library else run_case)(number, Path(folder))
            if found:
                wrong += 1
                print(found, flush=True)
    print(f"{args.cases} cases, {wrong} end as they should not")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(run())
