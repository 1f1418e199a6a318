"""Assemble the embedded checkpoints, with their cards, from what the training scripts wrote.

    python training/build_checkpoints.py --data tatoeba-english.txt --masked-lm masked-lm --sentiment sentiment \
        --output checkpoints
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import torch
from data import NUM_VALIDATION, load_sentences
from transformers import AutoTokenizer, ModernBertForMaskedLM

from redge_guidance.pipelines import MaskedDiffusionScheduler, MaskedTextPipeline

HEADER = """---
license: cc-by-2.0
language: en
library_name: redge-guidance
---
"""

DATA = """## Data and licence

206,951 English sentences of [tatoeba.org](https://tatoeba.org), by way of manythings.org/anki, CC BY 2.0. Tatoeba's
contributors are the authors of the sentences. {validation} of them, drawn at random, were held out for validation.
The weights are published under the same licence.
"""

LANGUAGE_MODEL = """{header}
# tatoeba-masked

A masked diffusion language model (MDLM) of short everyday English sentences, the default model of redge-guidance:
ModernBERT, {layers} layers, {width} wide, {parameters:.1f} M parameters, byte-level BPE of {vocabulary} tokens, three
quarters of them with a leading space; a canvas of {canvas} positions, trained on up to 32.

## Figures

Held-out sentences: **{bits:.3f} bits per character** (ELBO bound over all positions of the canvas, end of the sentence
included; all {validation} validation sentences, 16 maskings each).

Validation (1,024 sentences, 4 maskings each) during training, 808 steps of 256 sentences an epoch:

| step | share of the peak learning rate | bits per character |
|---|---|---|
{curve}

The rate falls to zero twice: a second run started from the result of the first, with fresh optimizers and half the
peak rate. The curve flattens with the learning rate, not with the data; a third run would still gain. The model knows
sentences of up to some 20 words about Tom, Mary and daily life, and nothing else.

## How it was made

`training/train_tokenizer.py`, `training/train_masked_lm.py`, `training/build_checkpoints.py`, on 2 CPU cores in about
two and a half hours. The runs were resumed several times with another end of the schedule, as the table shows. The
first 4,000 steps had no `[BOS]` token; without one the model could not tell positions apart in a row of masks, and
samples were poor. A run of the scripts from the start has `[BOS]` throughout. The first run ended at step 6,800
(`--steps 6800 --cooldown 4534` at the last resumption); the second, of {second:,} steps, is
`--init` with the first, `--seed 2`, `--steps 5000 --cooldown 10000` at first, `--steps {second} --cooldown 5700` after
its step 500.

Sampling defaults: {sampling}.

{data}"""

CLASSIFIER = """{header}
# sentiment

A text classifier (negative, neutral, positive) distilled from [VADER](https://github.com/cjhutto/vaderSentiment) (MIT
licence), the default reward of redge-guidance: ModernBERT, 2 layers, 128 wide, {parameters:.1f} M parameters, the
tokenizer of `tatoeba-masked`. Labels: compound score below -0.2, between, above 0.2.

Agreement with VADER on {validation} held-out sentences: **{accuracy:.1%}**; on the same sentences with words replaced
at random: {accuracy_corrupted:.1%}.

VADER adds up the valences of words to a sum s. The logits are trained on `8 s / sqrt(s^2 + 1)` for positive, its
negative for negative and a constant for neutral, so that one mild word counts nearly as much as two strong ones, and
not on the logits alone: the change that the gradient predicts for an exchange of one word is trained on the change in
VADER's sum. Guidance reads that gradient. Trained for {steps:,} steps of {batch_size} texts with {exchanges} exchanges
each, a third of the texts sentences, a third sentences with words replaced, a third random words
(`training/train_sentiment.py`, half an hour on 2 CPU cores). It copies VADER's faults: it judges by words, and is
easily misled by irony, names and negation at a distance.

{data}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="text file, one sentence a line")
    parser.add_argument("--masked-lm", required=True, help="folder of train_masked_lm.py")
    parser.add_argument("--sentiment", required=True, help="folder of train_sentiment.py")
    parser.add_argument("--output", required=True)
    parser.add_argument("--unmasking-order", default="confidence")
    parser.add_argument("--choice-temperature", type=float, default=6.0)
    parser.add_argument("--temperature", type=float, default=0.7)
    args = parser.parse_args()
    output, source = Path(args.output), Path(args.masked_lm)
    common = {
        "header": HEADER,
        "data": DATA.format(validation=f"{NUM_VALIDATION:,}"),
        "validation": f"{NUM_VALIDATION:,}",
    }

    model = ModernBertForMaskedLM.from_pretrained(source, dtype=torch.float16)
    scheduler = MaskedDiffusionScheduler(args.unmasking_order, choice_temperature=args.choice_temperature)
    tokenizer = AutoTokenizer.from_pretrained(source)
    MaskedTextPipeline(model, tokenizer, scheduler, length=19, temperature=args.temperature).save_pretrained(
        output / "tatoeba-masked"
    )
    pipe = MaskedTextPipeline.from_pretrained(output / "tatoeba-masked")
    _, validation = load_sentences(args.data)
    bits = pipe.nll(validation).sum().item() / math.log(2) / sum(map(len, validation))
    print(f"{bits:.4f} bits a character")
    curve = json.loads((source / "curve.json").read_text())
    rows = "\n".join(f"| {c['step']:,} | {c['rate']:.2f} | {c['bits_per_character']:.3f} |" for c in curve)
    sampling = f"one token a step, `{args.unmasking_order}` order"
    if args.unmasking_order == "confidence":
        sampling += f" with choice temperature {args.choice_temperature}"
    card = LANGUAGE_MODEL.format(
        **common,
        layers=model.config.num_hidden_layers,
        width=model.config.hidden_size,
        parameters=model.num_parameters() / 1e6,
        vocabulary=f"{len(tokenizer):,}",
        canvas=pipe.config.length,
        bits=bits,
        curve=rows,
        second=curve[-1]["step"] - 6800,
        sampling=f"{sampling}, temperature {args.temperature}",
    )
    (output / "tatoeba-masked" / "README.md").write_text(card)

    sentiment = output / "sentiment"
    sentiment.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(Path(args.sentiment) / name, sentiment / name)
    figures = json.loads((Path(args.sentiment) / "figures.json").read_text())
    parameters = (sentiment / "model.safetensors").stat().st_size / 2e6
    (sentiment / "README.md").write_text(CLASSIFIER.format(**common, parameters=parameters, **figures))


if __name__ == "__main__":
    main()
