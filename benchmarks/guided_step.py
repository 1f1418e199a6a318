"""What a guided denoising step costs beside a language model of 8 billion parameters, on one accelerator in bfloat16.

All positions of the canvas are hidden. The model, bidirectional, and the reward, a classifier of some 150 million
parameters with a table of its own over the same 151,936 tokens, have random weights; those of the model's last layer
are scaled until logits deviate by 8 nats. Times are medians of 10 after 3 that do not count, the clock being read when
the device is done:

- `model`: its forward, as in every step;
- `first`, `asked`: the whole step, forward and guidance, where the reward is asked for the first time, and later;
- `between`: the whole step that only carries the tilts over, with `every=2`;
- `reward`: its forward and backward from embeddings, on as many texts and as often as the step `asked` calls it;
- `guidance`: what is left of `asked`, and `share`, which part of that step it is;
- `steps`: the mean step, `asked` and `between` in turn, in forwards of the model;
- `memory`: the most that the step `first` has allocated above the weights, and `forward_memory` the forward alone.

    python benchmarks/guided_step.py
    python benchmarks/guided_step.py --device cpu --layers 2 --width 64 --length 16 --vocabulary 500 \
        --reward-layers 1 --reward-width 64 --output guided_step.json
"""

import argparse
import statistics
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from report import environment, save
from torch import Tensor
from transformers import ModernBertConfig, ModernBertForMaskedLM, ModernBertForSequenceClassification

from redge_guidance import GuidanceConfig, RelaxedTokens
from redge_guidance.guidance import Guidance
from redge_guidance.hosts import DenoisingStep

WARM_UPS, REPEATS, MASK = 3, 10, 5
CONFIGS = {
    "defaults": GuidanceConfig(),
    "soft, one draw": GuidanceConfig(estimator="soft", num_draws=1),
    "redge": GuidanceConfig(estimator="redge"),
    "scale 2, 4 draws, every step, full vocabulary": GuidanceConfig(scale=2.0, num_draws=4, every=1, support=None),
}
TIMES = ("model", "first", "asked", "between", "reward", "guidance")


class Device:
    """Where is measured: its clock and its memory."""

    def __init__(self, name: str):
        self.name, self.has_memory = name, torch.device(name).type == "cuda"

    def now(self) -> float:
        if self.has_memory:
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, call: Callable[[], object]) -> float:
        spent = []
        for _ in range(WARM_UPS + REPEATS):
            started = self.now()
            call()
            spent.append(self.now() - started)
        return statistics.median(spent[WARM_UPS:])

    def peak(self, call: Callable[[], object]) -> float | None:
        """GiB that a call has allocated at most, above what stood before; None where nobody counts."""
        if not self.has_memory:
            call()
            return None
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**30


def config(vocabulary: int, width: int, layers: int, **more: Any) -> ModernBertConfig:
    return ModernBertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        global_attn_every_n_layers=1,
        attn_implementation="sdpa",
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
        reference_compile=False,
        **more,
    )


def built(kind: Any, settings: ModernBertConfig, device: str) -> Any:
    """With random weights in bfloat16, made where they are to be."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = kind(settings)
    finally:
        torch.set_default_dtype(torch.float32)
    model = model.eval().requires_grad_(False)
    print(f"{kind.__name__}: {parameters(model) / 1e9:.3f} billion parameters", flush=True)
    return model


def parameters(model: Any) -> int:
    return sum(one.numel() for one in model.parameters())


class Measured:
    """A model, a reward that notes how it is called, and a canvas of hidden positions."""

    def __init__(self, model: Any, classifier: Any, device: Device, batch: int, length: int):
        self.model, self.classifier, self.device, self.length = model, classifier, device, length
        self.ids = torch.full((batch, length), MASK, device=device.name)
        self.free = torch.ones_like(self.ids, dtype=torch.bool)
        self.generator = torch.Generator(device.name).manual_seed(0)
        self.asked_for: list[int] = []  # texts of every call of the reward

    def forward(self) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.model(input_ids=self.ids).logits
        return logits

    def reward(self, tokens: RelaxedTokens) -> Tensor:
        self.asked_for.append(len(tokens))
        table = self.classifier.get_input_embeddings().weight
        found: Tensor = self.classifier(inputs_embeds=tokens.embed(table)).logits[:, 0]
        return found.float()

    def step(self, guidance: Guidance, index: int) -> None:
        step = DenoisingStep(
            self.forward(), self.ids, self.free, self.free, 1.0, index / 64, None, generator=self.generator
        )
        if guidance(step) is None:
            raise RuntimeError("the step was not guided")

    def reward_alone(self, texts: int) -> float:
        width = self.classifier.config.hidden_size
        shape, dtype = (texts, self.length, width), next(self.classifier.parameters()).dtype
        embeddings = torch.randn(shape, device=self.device.name).to(dtype).requires_grad_()

        def once() -> None:
            values = self.classifier(inputs_embeds=embeddings).logits[:, 0]
            torch.autograd.grad(values.sum(), embeddings)

        return self.device.seconds(once)

    def row(self, settings: GuidanceConfig) -> dict[str, Any]:
        model, guidance = self.device.seconds(self.forward), Guidance(self.reward, settings)
        names = ["first", "between", "asked"] if settings.every > 1 else ["first", "asked"]
        spent: dict[str, list[float]] = {name: [] for name in names}
        calls: dict[str, list[int]] = {}
        for _ in range(WARM_UPS + REPEATS):
            guidance.begin()
            for index, name in enumerate(names):
                self.asked_for = []
                started = self.device.now()
                self.step(guidance, index)
                spent[name].append(self.device.now() - started)
                calls[name] = list(self.asked_for)
        if calls.get("between"):
            raise RuntimeError("the reward was asked in a step between")
        found: dict[str, Any] = {name: statistics.median(times[WARM_UPS:]) for name, times in spent.items()}
        reward = sum(count * self.reward_alone(texts) for texts, count in Counter(calls["asked"]).items())
        guidance_alone = found["asked"] - model - reward
        mean = statistics.mean(found[name] for name in names[1:])
        guidance.begin()
        return (
            {"model": model, "between": None}
            | found
            | {
                "reward": reward,
                "reward_calls": calls["asked"],
                "guidance": guidance_alone,
                "share": guidance_alone / found["asked"],
                "steps": mean / model,
                "memory": self.device.peak(lambda: self.step(guidance, 0)),
                "forward_memory": self.device.peak(self.forward),
            }
        )


def line(batch: int, name: str, row: dict[str, Any]) -> str:
    if "error" in row:
        return f"| {batch} | {name} | {row['error']} {'| - ' * 9}|"
    cells = ["-" if row[key] is None else f"{1000 * row[key]:.1f}" for key in TIMES]
    cells += [f"{row['share']:.0%}", f"{row['steps']:.2f}"]
    cells += ["-" if row[key] is None else f"{row[key]:.2f}" for key in ("memory", "forward_memory")]
    return f"| {batch} | {name} | {' | '.join(cells)} |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--reward-layers", type=int, default=4)
    parser.add_argument("--reward-width", type=int, default=768)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--output", default="benchmarks/results/guided_step.json")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.manual_seed(0)
    device = Device(args.device)
    model = built(ModernBertForMaskedLM, config(args.vocabulary, args.width, args.layers), args.device)
    of_reward = config(args.vocabulary, args.reward_width, args.reward_layers, num_labels=2)
    classifier = built(ModernBertForSequenceClassification, of_reward, args.device)
    with torch.no_grad():  # the table of the inputs too, behind which there is a norm
        logits = model(input_ids=torch.full((1, args.length), MASK, device=args.device)).logits
        model.decoder.weight.mul_(8 / logits.float().std())
    sizes = {"model_parameters": parameters(model), "reward_parameters": parameters(classifier)}
    about = environment("transformers", device=args.device) | {"settings": vars(args) | sizes}
    print(
        f"| batch | settings | {', ms | '.join(TIMES)}, ms | share | steps, forwards | memory, GiB | of the forward |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    rows = []
    for batch in args.batches:
        for name, settings in CONFIGS.items():
            try:
                row = Measured(model, classifier, device, batch, args.length).row(settings)
            except Exception as error:  # memory above all; the others go on
                traceback.print_exc()
                row = {"error": f"{type(error).__name__}: {error}".splitlines()[0].replace("|", "/")[:200]}
            rows.append({"batch": batch, "name": name} | row)
            print(line(batch, name, row), flush=True)
            save(args.output, about | {"results": rows})


if __name__ == "__main__":
    main()
