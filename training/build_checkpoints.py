"""Assemble the embedded checkpoints, with their cards, from what the training scripts wrote.

    python training/build_checkpoints.py --data tatoeba-english.txt --output checkpoints \
        --masked-lm masked-lm --uniform-lm uniform-lm --sentiment sentiment
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import torch
from data import NUM_VALIDATION, load_sentences
from diffusers import DiscreteDDIMScheduler
from transformers import AutoTokenizer, ModernBertForMaskedLM

from redge_guidance.pipelines import MaskedDiffusionScheduler, MaskedTextPipeline, TextPipeline, UniformTextPipeline

CANVAS, FIRST_RUN_OF_UNIFORM = 19, 1800

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

MASKED_MODEL = """{header}
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

`training/train_tokenizer.py`, `training/train_language_model.py`, `training/build_checkpoints.py`, on 2 CPU cores in
about two and a half hours. The runs were resumed several times with another end of the schedule, as the table shows.
The first 4,000 steps had no `[BOS]` token; without one the model could not tell positions apart in a row of masks, and
samples were poor. A run of the scripts from the start has `[BOS]` throughout. The first run ended at step 6,800
(`--steps 6800 --cooldown 4534` at the last resumption); the second, of {second:,} steps, is
`--init` with the first, `--seed 2`, `--steps 5000 --cooldown 10000` at first, `--steps {second} --cooldown 5700` after
its step 500.

Sampling defaults: {sampling}.

{data}"""

UNIFORM_MODEL = """{header}
# tatoeba-uniform

A uniform diffusion language model of short everyday English sentences: the architecture and tokenizer of
`tatoeba-masked` ({parameters:.1f} M parameters, {vocabulary} tokens), a canvas of {canvas} positions. Tokens are
corrupted to any of the {vocabulary} with equal probability; the model predicts every token from all others
(`prediction_type="leave_one_out"`, as UDLM and Duo) and is not told the time.

## Figures

Held-out sentences: **{bits:.3f} bits per character** (continuous-time ELBO bound of UDLM over all positions of the
canvas, end of the sentence included; all {validation} validation sentences, {corruptions} corruptions each).

Validation (1,024 sentences, the same 2 corruptions each, in bfloat16) during training; few corruptions with large
weights make it a noisy figure, here one that lies too high throughout:

| step | share of the peak learning rate | bits per character |
|---|---|---|
{curve}

## How it was made

`training/train_language_model.py --corruption uniform`, steps of 256 sentences, in two runs on a CPU: `--init` with the
weights of `tatoeba-masked`, `--seed 3 --muon-lr 0.012 --adam-lr 0.0018 --steps {first} --cooldown {first_cooldown}`,
half an hour on two cores; then `--init` with the result, `--seed 5`, the same rates, `--steps {second} --cooldown
{second_cooldown}`, an hour and a half on one core. Then `training/build_checkpoints.py`.

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
    parser.add_argument("--output", required=True)
    parser.add_argument("--masked-lm", help="folder of train_language_model.py; a part without folder is left as it is")
    parser.add_argument("--uniform-lm", help="folder of train_language_model.py --corruption uniform")
    parser.add_argument("--sentiment", help="folder of train_sentiment.py")
    args = parser.parse_args()
    _, validation = load_sentences(args.data)
    if args.masked_lm:
        build_masked(Path(args.masked_lm), Path(args.output) / "tatoeba-masked", validation)
    if args.uniform_lm:
        build_uniform(Path(args.uniform_lm), Path(args.output) / "tatoeba-uniform", validation)
    if args.sentiment:
        build_sentiment(Path(args.sentiment), Path(args.output) / "sentiment")


def common() -> dict[str, str]:
    validation = f"{NUM_VALIDATION:,}"
    return {"header": HEADER, "data": DATA.format(validation=validation), "validation": validation}


def bits_per_character(pipe: TextPipeline, sentences: list[str], corruptions: int) -> float:
    return pipe.nll(sentences, corruptions).sum().item() / math.log(2) / sum(map(len, sentences))


def curve_table(curve: list[dict[str, float]]) -> str:
    return "\n".join(f"| {c['step']:,} | {c['rate']:.2f} | {c['bits_per_character']:.3f} |" for c in curve)


def build_masked(source: Path, output: Path, validation: list[str]) -> None:
    order, choice_temperature, temperature = "confidence", 6.0, 0.7
    model = ModernBertForMaskedLM.from_pretrained(source, dtype=torch.float16)
    scheduler = MaskedDiffusionScheduler(order, choice_temperature=choice_temperature)
    tokenizer = AutoTokenizer.from_pretrained(source)
    MaskedTextPipeline(model, tokenizer, scheduler, length=CANVAS, temperature=temperature).save_pretrained(output)
    pipe = MaskedTextPipeline.from_pretrained(output)
    bits = bits_per_character(pipe, validation, 16)
    print(f"{bits:.4f} bits a character")
    curve = json.loads((source / "curve.json").read_text())
    card = MASKED_MODEL.format(
        **common(),
        layers=model.config.num_hidden_layers,
        width=model.config.hidden_size,
        parameters=model.num_parameters() / 1e6,
        vocabulary=f"{len(tokenizer):,}",
        canvas=CANVAS,
        bits=bits,
        curve=curve_table(curve),
        second=curve[-1]["step"] - 6800,
        sampling=f"one token a step, `{order}` order with choice temperature {choice_temperature}, "
        f"temperature {temperature}",
    )
    (output / "README.md").write_text(card)


def build_uniform(source: Path, output: Path, validation: list[str]) -> None:
    steps, temperature, corruptions = 32, 0.5, 4
    model = ModernBertForMaskedLM.from_pretrained(source, dtype=torch.float16)
    tokenizer = AutoTokenizer.from_pretrained(source)
    UniformTextPipeline(
        model,
        tokenizer,
        DiscreteDDIMScheduler(),
        length=CANVAS,
        num_inference_steps=steps,
        temperature=temperature,
    ).save_pretrained(output)
    pipe = UniformTextPipeline.from_pretrained(output)
    bits = bits_per_character(pipe, validation, corruptions)
    print(f"{bits:.4f} bits a character")
    curve = json.loads((source / "curve.json").read_text())
    card = UNIFORM_MODEL.format(
        **common(),
        parameters=model.num_parameters() / 1e6,
        vocabulary=f"{len(tokenizer):,}",
        canvas=CANVAS,
        bits=bits,
        corruptions=corruptions,
        curve=curve_table(curve),
        first=FIRST_RUN_OF_UNIFORM,
        first_cooldown=FIRST_RUN_OF_UNIFORM - 100,
        second=curve[-1]["step"] - FIRST_RUN_OF_UNIFORM,
        second_cooldown=curve[-1]["step"] - FIRST_RUN_OF_UNIFORM - 100,
        sampling=f"{steps} steps without corrector, temperature {temperature}",
    )
    (output / "README.md").write_text(card)


def build_sentiment(source: Path, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, output / name)
    figures = json.loads((source / "figures.json").read_text())
    parameters = (output / "model.safetensors").stat().st_size / 2e6
    (output / "README.md").write_text(CLASSIFIER.format(**common(), parameters=parameters, **figures))


if __name__ == "__main__":
    main()
