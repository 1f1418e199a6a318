"""Do published models load, and are they read as their authors read them? The pipelines beside the authors' own code.

`--public` is a folder with clones or exports of the public repositories that `COMMITS` names, of which only code is
needed; Fast_dLLM_v2_7B is a folder of the hub, of which a public copy served. Around their code tiny random checkpoints
in the layout of the hub are written, and what the authors' classes and samplers give is computed in `--reference`, the
Python of another environment with transformers 4, where that code loads as it is (pip install "transformers<5" torch
einops omegaconf). The environment of this script needs einops, which some of that code imports, and for SEDD omegaconf.
No line of that code is part of this repository.

    python benchmarks/published.py --public PUBLIC --reference PYTHON
    python benchmarks/published.py --public PUBLIC --reference PYTHON --build FOLDER    # only write the checkpoints
"""

import argparse
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from report import environment, save

HERE = Path(__file__).parent / "originals"
sys.path.insert(0, str(HERE))
import authors  # noqa: E402
import stand_ins  # noqa: E402
from comparison import Row, compare, from_memory, load_pipeline  # noqa: E402

COMMITS = {
    "LLaDA": "b7e6c3565f", "dllm": "ca176752fb", "Dream": "fac0a7f266", "mdlm": "c112c526d1",
    "discrete-diffusion-guidance": "edb0f8c28b", "duo": "7c9b498f5b", "bd3lms": "1c3e8f43d8", "SDAR": "c2041a8333",
    "Fast-dLLM": "24cc59e75f", "Fast_dLLM_v2_7B": "Satgoy152/DualDiffusion 189fa7a",
    "Score-Entropy-Discrete-Diffusion": "0605786da5",
}  # fmt: skip
CHECKS = ("plain transformers", "loads", "logits", "greedy", "law", "bound", "guided")


def run(python: str, script: str, *arguments: str, cache: str) -> None:
    """A script in the reference interpreter, one thread, with no hub and no modules of others."""
    surroundings = os.environ | {"HF_HOME": cache, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    subprocess.run([python, "-W", "ignore", str(HERE / script), *arguments], check=True, env=surroundings)


def loader(name: str, folder: Path, public: Path) -> Any:
    """The pipeline of a checkpoint; SEDD's class is not on the hub, so its own repository loads it."""
    if name != "sedd":
        return lambda: load_pipeline(name, folder)

    def load() -> Any:
        with stand_ins.installed():
            (model,) = authors.load(public / "Score-Entropy-Discrete-Diffusion", "model")
        return from_memory(model.SEDD.from_pretrained(folder), folder, "sedd")

    return load


def digest(folder: Path) -> str:
    """Of the code in a checkpoint."""
    files = sorted(folder.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16] if files else ""


def table(rows: list[Row]) -> str:
    """Markdown, one line a checkpoint: how many comparisons agree, of those that could be made."""
    lines = ["| checkpoint | " + " | ".join(CHECKS) + " |", "|---" * (len(CHECKS) + 1) + "|"]
    for name in dict.fromkeys(row.checkpoint for row in rows):
        cells = [_cell([row for row in rows if (row.checkpoint, row.check) == (name, check)]) for check in CHECKS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(rows: list[Row]) -> str:
    if not rows:
        return ""
    if rows[0].check == "plain transformers":
        return str(rows[0].value or rows[0].why).replace("|", "/")[:60]
    made = [row for row in rows if row.agrees is not None]
    cell = f"{sum(bool(row.agrees) for row in made)} of {len(made)}" if made else ""
    left = len(rows) - len(made)
    return cell + (f" ({left} not compared)" if left else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public", type=Path, required=True)
    parser.add_argument("--reference", required=True, help="Python of an environment with transformers 4")
    parser.add_argument("--build", type=Path, help="only write the checkpoints to this folder")
    parser.add_argument("--keep", type=Path, help="folder for checkpoints and reference, used again where it has them")
    parser.add_argument("--output", default="benchmarks/results/published.json")
    parser.add_argument("names", nargs="*", help="checkpoints; default: all")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    public = args.public.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        work = args.keep or Path(scratch)
        checkpoints, reference = args.build or work / "checkpoints", work / "reference"
        os.environ["HF_HOME"] = f"{scratch}/home"
        if not (checkpoints / "NOTES.md").is_file():
            run(args.reference, "checkpoints.py", "--public", str(public), "--to", str(checkpoints), cache=scratch)
        if args.build:
            return
        if not reference.is_dir():
            paths = ("--public", str(public), "--checkpoints", str(checkpoints), "--to", str(reference))
            run(args.reference, "reference.py", *paths, cache=scratch)
        rows: list[Row] = []
        for file in sorted(reference.glob("*.pt")):
            if not args.names or file.stem in args.names:
                folder = checkpoints / file.stem
                rows += compare(file.stem, folder, torch.load(file), loader(file.stem, folder, public))
                print(table([row for row in rows if row.checkpoint == file.stem]).splitlines()[-1], flush=True)
        notes = (checkpoints / "NOTES.md").read_text()
        codes = {row.checkpoint: digest(checkpoints / row.checkpoint) for row in rows}
    report = environment("transformers", "diffusers") | {
        "seed": 0,
        "reference": subprocess.run(
            [args.reference, "-c", "import torch, transformers as t; print(t.__version__, torch.__version__)"],
            capture_output=True, text=True, check=True,
        ).stdout.split(),
        "einops": _version("einops"),
        "public": COMMITS,
        "checkpoints": {name: code for name, code in codes.items() if code},
        "notes": [line for line in notes.splitlines() if line.startswith("- **")],
        "rows": [row.as_dict() for row in rows],
    }  # fmt: skip
    save(args.output, report)
    print("\n" + table(rows) + "\n")
    for row in rows:
        if row.agrees is False or (row.agrees is None and row.check != "plain transformers"):
            verdict = "DIFFERS" if row.agrees is False else "not compared"
            print(f"- {row.checkpoint}, {row.check}, {row.what} {row.settings}: {verdict}. {row.why} {row.value or ''}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    with torch.no_grad():
        main()
