"""Assemble the embedded checkpoints of digits, with their cards, from what the training scripts wrote.

The reward is trained on what the model draws, so the model comes first.

    python training/build_digit_checkpoints.py --vq digit-vq --transformer digit-transformer \
        --classifier digit-classifier --judge digit-judge
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import VQModel
from transformers import AutoModelForImageClassification

from redge_guidance.pipelines import MaskedDiffusionScheduler, MaskedImagePipeline, MaskedImageTransformer

ROOT = Path(__file__).parent.parent
SAMPLING = {"num_inference_steps": 16, "temperature": 1.0, "guidance_scale": 1.0}
ORDER = {"unmasking_order": "confidence", "schedule": "cosine", "choice_temperature": 4.0}

HEADER = """---
license: cc-by-sa-3.0
library_name: redge-guidance
---
"""

DATA = """## Data and licence

8,500 of the MNIST test digits, by Yann LeCun and Corinna Cortes, CC BY-SA 3.0; 500 of them, drawn at random, were held
out for validation. The weights are published under the same licence.
"""

MODEL = """{header}
# mnist-masked

A masked diffusion model of handwritten digits, 28 x 28 pixels, the default image model of redge-guidance: diffusers'
`VQModel` ({vq_parameters:.2f} M parameters) makes them 7 x 7 tokens of {codes} codes, and a `MaskedImageTransformer`
({layers} layers, {width} wide, {parameters:.1f} M parameters) draws these, given a class or none.

## Figures

On the held-out digits: root mean square error of the reconstructed pixels **{rmse:.3f}** (of 1), perplexity of the
codes {perplexity:.0f}. The transformer, by the ELBO bound in nats a token, 4 corruptions of each digit, during training
(bfloat16; moving average of the weights):

| step | given the class | no class |
|---|---|---|
{curve}

`benchmarks/mnist.py` judges its samples.

## How it was made

`training/train_digit_vq.py` ({vq_steps:,} steps of 128 images), `training/train_digit_transformer.py` ({steps:,} steps
of 128 images in four runs: 4,000 with labels left out of 30 %, then `--init` with the result, `--seed 1 --lr 1e-3
--steps 2400 --dropped-labels 0.65`, then again with `--seed 2 --lr 1e-3 --steps 6000 --dropped-labels 0.8
--variants 24`, and once more with `--seed 3 --lr 8e-4 --steps 5000` and the last two the same),
`training/build_digit_checkpoints.py`; on one CPU core in three and a half hours.
Images are moved by up to a pixel and turned a little in training, and digits come out so.

Sampling defaults: {sampling_steps} steps, `{order}` order with choice temperature {choice:g}, `{schedule}` schedule.

{data}"""

CLASSIFIER = """{header}
# mnist-classifier

A classifier of handwritten digits, ConvNeXT with {parameters:.2f} M parameters, the default image reward of
redge-guidance. Its classes are the ten digits and `none`. Trained on 4,000 digits
(`training/train_digit_classifier.py --role reward --generator builtin:mnist-masked`; one CPU core, 40 minutes):

1. {steps:,} steps of 128 images: half of every batch digits, their strokes made thicker or thinner, half of these mixed
   with another and labelled so; half digits as guidance shows them, some of their tokens hidden, predicted by the
   generator and decoded. It sees the worst images within an L2 distance of 0.22 times their norm, four steps of
   projected gradient descent.
2. {rounds} rounds of {steps_a_round:,} steps more: guidance draws 128 images toward each digit with the classifier as
   it is. A quarter of every batch are images drawn in this or an earlier round, labelled `none`, a quarter real digits,
   both encoded, few of their tokens hidden, and decoded; the distance is at most 0.03 for both. So the reward also asks
   that an image look like a digit and not like what guidance draws.

The first costs accuracy on clean digits and gives the gradient that guidance lives on: with a classifier of 99.0 %
trained without it, guidance found images that this classifier liked and the judge did not. Accuracy on 500 held-out
digits: **{accuracy:.1%}**; on the 4,000 that the judge of `benchmarks/mnist.py` was trained on:
{accuracy_on_the_other_half:.1%}. Take a temperature of 8 and a scale of 500 or so.

{data}"""

JUDGE = """# Judge of digits

A ResNet with {parameters:.2f} M parameters, which says in `benchmarks/mnist.py` what generated digits are, and whose
features the Frechet distance is of. Trained on the 4,000 digits that the reward has not seen, by
`training/train_digit_classifier.py --role judge`, {steps:,} steps of 128. Accuracy on 500 held-out digits:
{accuracy:.1%}; on the reward's 4,000: {accuracy_on_the_other_half:.1%}.

{data}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vq", help="folder of train_digit_vq.py")
    parser.add_argument("--transformer", help="folder of train_digit_transformer.py")
    parser.add_argument("--classifier", help="folder of train_digit_classifier.py --role reward")
    parser.add_argument("--judge", help="folder of train_digit_classifier.py --role judge")
    parser.add_argument("--output", default=ROOT / "checkpoints", type=Path)
    parser.add_argument("--judge-output", default=ROOT / "checkpoints" / "mnist-judge", type=Path)
    args = parser.parse_args()
    if args.vq and args.transformer:
        build_model(Path(args.vq), Path(args.transformer), args.output / "mnist-masked")
    if args.classifier:
        build_classifier(Path(args.classifier), args.output / "mnist-classifier", CLASSIFIER)
    if args.judge:
        build_classifier(Path(args.judge), args.judge_output, JUDGE)


def build_model(vq_source: Path, source: Path, output: Path) -> None:
    vq = VQModel.from_pretrained(vq_source, dtype=torch.float16)
    transformer = MaskedImageTransformer.from_pretrained(source, dtype=torch.float16)
    MaskedImagePipeline(transformer, vq, MaskedDiffusionScheduler(**ORDER), **SAMPLING).save_pretrained(output)
    for part in ("transformer", "vqvae"):  # without the folder it was read from
        file = output / part / "config.json"
        config = {key: value for key, value in json.loads(file.read_text()).items() if key != "_name_or_path"}
        file.write_text(json.dumps(config, indent=2) + "\n")
    curve = json.loads((source / "curve.json").read_text())
    figures = json.loads((vq_source / "figures.json").read_text())
    shown = [*curve[3:-1:8], curve[-1]]
    card = MODEL.format(
        header=HEADER,
        data=DATA,
        codes=vq.config.num_vq_embeddings,
        vq_parameters=vq.num_parameters() / 1e6,
        layers=transformer.config.num_hidden_layers,
        width=transformer.config.hidden_size,
        parameters=transformer.num_parameters() / 1e6,
        rmse=figures["rmse"],
        perplexity=figures["perplexity"],
        vq_steps=figures["steps"],
        steps=curve[-1]["step"],
        curve="\n".join(f"| {c['step']:,} | {c['given_label']:.3f} | {c['no_label']:.3f} |" for c in shown),
        sampling_steps=SAMPLING["num_inference_steps"],
        order=ORDER["unmasking_order"],
        schedule=ORDER["schedule"],
        choice=ORDER["choice_temperature"],
    )
    (output / "README.md").write_text(card)


def build_classifier(source: Path, output: Path, card: str) -> None:
    model = AutoModelForImageClassification.from_pretrained(source, dtype=torch.float16)
    model.save_pretrained(output)
    shutil.copyfile(source / "preprocessor_config.json", output / "preprocessor_config.json")
    figures = json.loads((source / "figures.json").read_text())
    text = card.format(header=HEADER, data=DATA, parameters=model.num_parameters() / 1e6, **figures)
    (output / "README.md").write_text(text)


if __name__ == "__main__":
    main()
