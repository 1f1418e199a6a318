"""How often guided texts have a wanted word or phrase of several tokens, by scale, beside unguided ones.

The reward was written with seven of these words at hand (music, café, in front of, a lot of, look forward to, good
morning, as soon as possible); the other six were tried here for the first time.

    python benchmarks/phrases.py
"""

import argparse

from report import environment, save
from settings import PLAIN

from redge_guidance import GuidanceConfig, generate
from redge_guidance.pipelines import MaskedTextPipeline
from redge_guidance.rewards import LexicalReward

WORDS = [
    "music", "tomorrow", "café", "in front of", "a lot of", "look forward to", "good morning", "as soon as possible",
    "sunflower", "San Francisco", "vegetarian", "on the other hand", "birthday cake",
]  # fmt: skip
SCALES = (10.0, 30.0, 60.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--num-texts", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", default="benchmarks/results/phrases.json")
    args = parser.parse_args()
    pipe = MaskedTextPipeline.from_pretrained("builtin:tatoeba-masked")
    pipe.set_progress_bar_config(disable=True)

    def draw(reward: LexicalReward | None = None, config: GuidanceConfig | None = None) -> list[str]:
        records = generate(pipe, "", reward, config, samples_per_prompt=args.num_texts, batch_size=32, seed=args.seed)
        return [str(record.text) for record in records]

    def nats(texts: list[str]) -> float:
        tokens = sum(len(ids) + 1 for ids in pipe.tokenizer(texts, add_special_tokens=False).input_ids)
        return float(pipe.nll(texts).sum()) / tokens

    bare = draw()
    rows = []
    for word in WORDS:
        reward = LexicalReward(word)
        pieces = len(pipe.tokenizer(f" {word}", add_special_tokens=False).input_ids)
        row = {"word": word, "tokens": pieces, "unguided": reward.report(bare).satisfied}
        for scale in SCALES:
            texts = draw(reward, GuidanceConfig(**PLAIN | {"scale": scale}))
            row[f"scale {scale:g}"] = reward.report(texts).satisfied
            row[f"nats/token at {scale:g}"] = round(nats(texts), 3)
        rows.append(row)
        print(row, flush=True)
    settings = {"texts": args.num_texts, "seed": args.seed, "nats/token unguided": round(nats(bare), 3)}
    save(args.output, environment() | {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
