"""Assemble the embedded checkpoints from what the training scripts wrote.

python training/build_checkpoints.py --masked-lm masked-lm --sentiment sentiment --output checkpoints
"""

import argparse
import shutil
from pathlib import Path

import torch
from transformers import AutoTokenizer, ModernBertForMaskedLM

from redge_guidance.pipelines import MaskedDiffusionScheduler, MaskedTextPipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masked-lm", required=True, help="folder of train_masked_lm.py")
    parser.add_argument("--sentiment", required=True, help="folder of train_sentiment.py")
    parser.add_argument("--output", required=True)
    parser.add_argument("--temperature", type=float, default=0.7)
    args = parser.parse_args()
    output = Path(args.output)
    model = ModernBertForMaskedLM.from_pretrained(args.masked_lm, dtype=torch.float16)
    pipe = MaskedTextPipeline(
        model,
        AutoTokenizer.from_pretrained(args.masked_lm),
        MaskedDiffusionScheduler(unmasking_order="random"),
        length=19,
        temperature=args.temperature,
    )
    pipe.save_pretrained(output / "tatoeba-masked")
    sentiment = output / "sentiment"
    sentiment.mkdir(parents=True, exist_ok=True)
    for file in Path(args.sentiment).iterdir():
        if file.suffix in (".json", ".safetensors") and file.name != "figures.json":
            shutil.copyfile(file, sentiment / file.name)


if __name__ == "__main__":
    main()
