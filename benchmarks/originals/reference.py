"""What the authors' code gives on fixed inputs: logits, greedy tokens, laws of one step, bounds.

Run in the reference interpreter (transformers 4, where the authors' classes load as they are). One file a checkpoint, a
list of cases that `benchmarks/published.py` reads:

    kind      "logits", "greedy", "law" or "bound"
    what      the authors' name for it
    settings  of the authors' sampler, in their words
    inputs    prompts, or ids with their attention mask and noise level
    expected  what came out

    python benchmarks/originals/reference.py --public PUBLIC --checkpoints FOLDER --to FOLDER
"""

import argparse
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import stand_ins
import torch
from block_cases import bd3lm, fast_dllm_v2, llada2, sdar
from cases import Case
from masked_cases import dream, llada, mdlm, sedd
from uniform_cases import duo, udlm

FAMILIES: dict[str, Callable[[Path, Path], list[Case]]] = {
    "llada": llada, "llada-moe": llada, "dream": dream, "mdlm": mdlm, "mdlm-time": mdlm, "udlm": udlm,
    "udlm-no-time": udlm, "udlm-classes": udlm, "duo": duo, "bd3lm": bd3lm, "bd3lm-var-min": bd3lm, "sdar": sdar,
    "llada2": llada2, "fast-dllm-v2": fast_dllm_v2, "sedd": sedd,
}  # fmt: skip


@torch.no_grad()
def compute(public: Path, checkpoints: Path, to: Path, names: list[str]) -> None:
    stand_ins.install()
    to.mkdir(parents=True, exist_ok=True)
    for name in names or FAMILIES:
        torch.manual_seed(0)
        try:
            cases: Any = FAMILIES[name](public, checkpoints / name)
            print(f"{name}: {len(cases)} cases", flush=True)
        except Exception as error:  # one family must not hide the others
            traceback.print_exc()
            cases = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        torch.save(cases, to / f"{name}.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("names", nargs="*", help="families; default: all")
    arguments = parser.parse_args()
    compute(arguments.public.resolve(), arguments.checkpoints.resolve(), arguments.to, arguments.names)
