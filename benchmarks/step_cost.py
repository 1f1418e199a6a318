"""What guidance itself costs in one denoising step, beside the model and the reward, on a large vocabulary.

One text of 128 hidden positions, 126,464 tokens, a masked language model and a classifier with random weights. The
reward's own time is that of its forward and backward from embeddings, as often and on as many draws as guidance calls
it; what is left of a guided step is guidance. Memory is the peak of resident memory above what stood before the call,
with a reward that is a look-up.

    python benchmarks/step_cost.py
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import torch
from report import environment, save
from settings import PLAIN
from torch import Tensor
from transformers import ModernBertConfig, ModernBertForMaskedLM, ModernBertForSequenceClassification

from redge_guidance import GuidanceConfig, RelaxedTokens
from redge_guidance.hosts import DenoisingStep
from redge_guidance.strength import update_of
from redge_guidance.tilting import guided_logits

LENGTH, VOCABULARY = 128, 126_464
CONFIGS = {
    "12 draws, support 128": GuidanceConfig(**PLAIN),
    "12 draws, support 64": GuidanceConfig(**PLAIN | {"support": 64}),
    "12 draws, full vocabulary": GuidanceConfig(**PLAIN | {"support": None}),
    "3 draws, full vocabulary": GuidanceConfig(**PLAIN | {"support": None, "num_draws": 1}),
    "default, first ask": GuidanceConfig(),
}


class Sizes(NamedTuple):
    width: int
    layers: int


MODEL, REWARD = Sizes(1024, 16), Sizes(384, 6)


def config(sizes: Sizes, **more: object) -> ModernBertConfig:
    return ModernBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=sizes.width,
        intermediate_size=4 * sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.width // 64,
        global_attn_every_n_layers=1,
        attn_implementation="sdpa",
        **more,
    )


def hidden_step(logits: Tensor) -> DenoisingStep:
    ids = torch.full((1, LENGTH), 5)
    free = torch.ones_like(ids, dtype=torch.bool)
    return DenoisingStep(logits[None], ids, free, free, 1.0, 0.0, None)


def seconds(function, repeats: int = 3) -> float:
    function()
    spent = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


def times() -> dict[str, dict[str, float]]:
    torch.manual_seed(0)
    model = ModernBertForMaskedLM(config(MODEL)).eval()
    classifier = ModernBertForSequenceClassification(config(REWARD, num_labels=2)).eval().requires_grad_(False)
    table = classifier.get_input_embeddings().weight
    ids = torch.full((1, LENGTH), 5)
    with torch.no_grad():
        model_seconds = seconds(lambda: model(input_ids=ids))
    step = hidden_step(8 * torch.randn(LENGTH, VOCABULARY))

    def reward(tokens: RelaxedTokens) -> Tensor:
        return classifier(inputs_embeds=tokens.embed(table)).logits[:, 0]

    rows = {}
    for name, settings in CONFIGS.items():
        embeddings = torch.randn(
            settings.draws_of(settings.estimator, first=True), LENGTH, REWARD.width, requires_grad=True
        )

        def reward_alone(embeddings: Tensor = embeddings) -> None:
            torch.autograd.grad(classifier(inputs_embeds=embeddings).logits[:, 0].sum(), embeddings)

        reward_seconds = update_of(reward, settings).num_updates * seconds(reward_alone)
        generator = torch.Generator().manual_seed(0)
        total = seconds(lambda s=settings, g=generator: guided_logits(step, reward, s, g))
        own = total - reward_seconds
        rows[name] = {
            "model": model_seconds,
            "reward": reward_seconds,
            "guidance": own,
            "share": own / (model_seconds + total),
        }
    return rows


def memory(name: str) -> float:
    """Peak of one guided step, in units of the logits of the free positions, the guided logits included."""
    settings, generator = CONFIGS[name], torch.Generator().manual_seed(0)
    table = torch.randn(VOCABULARY, 1)

    def reward(tokens: RelaxedTokens) -> Tensor:
        return tokens.embed(table)[..., 0].sum(-1)

    guided_logits(hidden_step(torch.randn(LENGTH, 300)), reward, settings, generator)
    step = hidden_step(torch.randn(LENGTH, VOCABULARY).mul_(8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    guided_logits(step, reward, settings, generator)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (4 * LENGTH * VOCABULARY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="benchmarks/results/step_cost.json")
    parser.add_argument("--one", choices=list(CONFIGS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(memory(args.one)))
        return
    peaks = {}  # first: a process begins with the peak of the one that started it
    for name in CONFIGS:
        command = [sys.executable, __file__, "--one", name]
        peaks[name] = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    rows = times()
    print("| settings | model, s | reward, s | guidance, s | share of the step | memory, logits |")
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        row["memory"] = peaks[name]
        print(
            f"| {name} | {row['model']:.2f} | {row['reward']:.2f} | {row['guidance']:.2f} | {row['share']:.0%} | "
            f"{row['memory']:.2f} |",
            flush=True,
        )
    settings = {"length": LENGTH, "vocabulary": VOCABULARY, "model": MODEL._asdict(), "reward": REWARD._asdict()}
    save(args.output, environment("transformers") | {"settings": settings, "results": rows})


if __name__ == "__main__":
    main()
