"""Distil VADER (MIT licence) into a small classifier whose gradients mean something: negative, neutral, positive.

VADER scores any string, so it also labels what guidance meets on the way: a third of each batch are sentences with some
tokens replaced at random, a third are bags of random tokens. Without them the classifier is easily fooled.

A classifier trained on labels alone saturates: exchanging one word may change its logits by 5 while its gradient says
0.1. Guidance lives on that gradient. So the logits are also made to change along straight lines: halfway between the
embeddings of two texts that differ in some words they shall be halfway between the logits of those texts.

    python training/train_sentiment.py --data tatoeba-english.txt --tokenizer tokenizer --output sentiment
"""

import argparse
import json
from pathlib import Path

import torch
from data import load_sentences
from torch import Tensor
from transformers import AutoTokenizer, ModernBertConfig, ModernBertForSequenceClassification
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

LABELS = ("negative", "neutral", "positive")
THRESHOLD = 0.2  # of VADER's compound score
LONGEST = 32


def label(analyzer: SentimentIntensityAnalyzer, text: str) -> int:
    compound = analyzer.polarity_scores(text)["compound"]
    return 1 + (compound > THRESHOLD) - (compound < -THRESHOLD)


def build_model(tokenizer, width: int, layers: int) -> ModernBertForSequenceClassification:
    return ModernBertForSequenceClassification(
        ModernBertConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            max_position_embeddings=64,
            global_attn_every_n_layers=1,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            cls_token_id=None,
            sep_token_id=None,
            classifier_pooling="mean",
            num_labels=len(LABELS),
            id2label=dict(enumerate(LABELS)),
            label2id={name: i for i, name in enumerate(LABELS)},
            attn_implementation="eager",
        )
    )


def corrupt(rows: list[list[int]], pool: Tensor, generator: torch.Generator) -> list[list[int]]:
    """A third of the rows as they are, a third with tokens replaced, a third of random tokens; `pool` is the corpus.

    The first token, `[BOS]`, stays.
    """
    result = []
    for i, row in enumerate(rows):
        share = (0.0, float(torch.rand((), generator=generator)), 1.0)[i % 3]
        replaced = (torch.rand(len(row), generator=generator) < share).tolist()
        replaced[0] = False
        other = pool[torch.randint(len(pool), (len(row),), generator=generator)].tolist()
        result.append([b if r else a for a, b, r in zip(row, other, replaced, strict=True)])
    return result


def exchange(ids: Tensor, mask: Tensor, vocabulary: int, generator: torch.Generator) -> Tensor:
    """`ids` with some words of the text replaced by words drawn uniformly from the vocabulary: one to all of them."""
    share = torch.rand(len(ids), 1, generator=generator) ** 3
    words = mask & (torch.arange(ids.shape[1]) > 0) & (torch.arange(ids.shape[1]) < mask.sum(-1, keepdim=True) - 1)
    chance = torch.rand(ids.shape, generator=generator).masked_fill(~words, 2.0)
    chosen = words & ((chance < share) | (chance == chance.min(-1, keepdim=True).values))
    return torch.where(chosen, torch.randint(3, vocabulary - 1, ids.shape, generator=generator), ids)


def straightness(model, ids: Tensor, mask: Tensor, logits: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared distance of the logits from the straight line between two texts, relative to the way gone."""
    table = model.get_input_embeddings().weight
    other = exchange(ids, mask, len(table), generator)
    way = torch.rand(len(ids), 1, generator=generator) ** 2  # guidance asks for the slope at the beginning
    mixed = torch.lerp(table[ids], table[other], way[..., None])
    inputs = {"attention_mask": mask.long()}
    with torch.no_grad():
        end = model(input_ids=other, **inputs).logits.float()
    expected = torch.lerp(logits.detach().float(), end, way)
    found = model(inputs_embeds=mixed, **inputs).logits.float()
    return ((found - expected).square() / (way + 0.1)).mean()


def pack(rows: list[list[int]], eos: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask `(batch, length)`, every row ended by `[EOS]`."""
    length = max(map(len, rows)) + 1
    ids = torch.tensor([row + [eos] * (length - len(row)) for row in rows])
    return ids, torch.arange(length) <= torch.tensor([[len(row)] for row in rows])


@torch.no_grad()
def accuracy(model, rows: list[list[int]], labels: list[int], eos: int) -> float:
    model.eval()
    hits = 0
    for i in range(0, len(rows), 512):
        ids, mask = pack(rows[i : i + 512], eos)
        guess = model(input_ids=ids, attention_mask=mask.long()).logits.argmax(-1)
        hits += int((guess == torch.tensor(labels[i : i + 512])).sum())
    model.train()
    return hits / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="text file, one sentence a line")
    parser.add_argument("--tokenizer", required=True, help="folder of train_tokenizer.py")
    parser.add_argument("--output", required=True)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    analyzer = SentimentIntensityAnalyzer()
    training, validation = load_sentences(args.data)
    train_rows = [ids for ids in tokenizer(training).input_ids if len(ids) <= LONGEST]
    valid_rows = tokenizer(validation).input_ids
    pool = torch.tensor([i for ids in train_rows for i in ids[1:]])
    noisy_rows = corrupt(valid_rows, pool, torch.Generator().manual_seed(2))
    valid_labels = [label(analyzer, text) for text in validation]
    noisy_labels = [label(analyzer, text) for text in tokenizer.batch_decode(noisy_rows, skip_special_tokens=True)]

    model = build_model(tokenizer, args.width, args.layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.05)
    figures = {}
    for step in range(args.steps):
        chosen = torch.randint(len(train_rows), (args.batch_size,), generator=generator).tolist()
        rows = corrupt([train_rows[i] for i in chosen], pool, generator)
        targets = torch.tensor(
            [label(analyzer, text) for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
        )
        ids, mask = pack(rows, tokenizer.eos_token_id)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=ids, attention_mask=mask.long()).logits
            bend = straightness(model, ids, mask, logits, generator)
        loss = torch.nn.functional.cross_entropy(logits.float(), targets, label_smoothing=0.02)
        loss = loss + bend
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            figures = {
                "step": step + 1,
                "accuracy": round(accuracy(model, valid_rows, valid_labels, tokenizer.eos_token_id), 4),
                "accuracy_corrupted": round(accuracy(model, noisy_rows, noisy_labels, tokenizer.eos_token_id), 4),
            }
            print(f"loss {loss.item():.3f} bend {bend.item():.3f} {figures}", flush=True)
    model.to(torch.float16).save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    (Path(args.output) / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
