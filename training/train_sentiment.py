"""Distil VADER (MIT licence) into a small classifier whose gradients mean something: negative, neutral, positive.

VADER adds up the valences of words, with rules for negation, emphasis and the like, and squashes the sum s into its
compound score s / sqrt(s^2 + 15). The logits are trained on a sharper squash of the same sum, t(s) = s / sqrt(s^2 + 1):

    (negative, neutral, positive) = SHARPNESS * (-t(s), t(s*), t(s)) + const,

s* the sum at which a text ceases to be neutral. One mild word then counts nearly as much as a strong one or as two,
so that guidance need not crowd into the few strongest words.

Guidance lives on the gradient, and a classifier trained on its outputs alone has a poor one: exchanging one word may
change its logits by 5 while the gradient says 0.1. VADER scores any string, so it also says what an exchange of words
does; the first-order prediction `<gradient at position i, e(v) - e(x_i)>` is trained on that for exchanges of every
kind. A third of each batch are sentences with some tokens replaced at random, a third are bags of random tokens: what
guidance meets on the way.

    python training/train_sentiment.py --data tatoeba-english.txt --tokenizer tokenizer --output sentiment
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from data import load_sentences
from tokenizers import processors
from torch import Tensor
from torch.nn.functional import smooth_l1_loss
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    AutoTokenizer,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerFast,
)
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

LABELS = ("negative", "neutral", "positive")
THRESHOLD = 0.2  # of VADER's compound score
SHARPNESS = 8.0  # nats
LONGEST = 32


def valence_sum(compound: float) -> float:
    """The s of `compound = s / sqrt(s^2 + 15)`; beyond a compound of 0.97 rounding has eaten the difference."""
    compound = max(-0.97, min(0.97, compound))
    return compound * math.sqrt(15 / (1 - compound**2))


class Teacher:
    """VADER on token ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer, self.analyzer = tokenizer, SentimentIntensityAnalyzer()

    def compounds(self, rows: list[list[int]]) -> Tensor:
        """VADER's scores `(len(rows),)` of the texts, in [-1, 1]."""
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return torch.tensor([self.analyzer.polarity_scores(text)["compound"] for text in texts])

    def labels(self, rows: list[list[int]]) -> Tensor:
        compounds = self.compounds(rows)
        return 1 + (compounds > THRESHOLD).long() - (compounds < -THRESHOLD).long()

    def valences(self, rows: list[list[int]]) -> Tensor:
        """The sums s `(len(rows),)`."""
        return torch.tensor([valence_sum(compound) for compound in self.compounds(rows).tolist()])


def target_logits(s: Tensor, squash: float) -> Tensor:
    """What the student shall say, `(..., 3)`, centred; `squash` leads from linear in s `(...)`, 0, to t(s), 1."""
    s = torch.stack([-s, torch.full_like(s, valence_sum(THRESHOLD)), s], -1)
    logits = SHARPNESS * s / (squash * s.square() + 9 - 8 * squash).sqrt()
    return logits - logits.mean(-1, keepdim=True)


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


def exchanges(ids: Tensor, mask: Tensor, count: int, pool: Tensor, vocabulary: int, generator: torch.Generator):
    """Positions and new tokens `(batch, count)` of exchanges of one word: half uniform, half as in the corpus."""
    position = torch.arange(ids.shape[1])
    words = mask & (position > 0) & (position < mask.sum(-1, keepdim=True) - 1)
    where = torch.multinomial(words.float(), count, replacement=True, generator=generator)
    uniform = torch.randint(3, vocabulary - 1, where.shape, generator=generator)
    frequent = pool[torch.randint(len(pool), where.shape, generator=generator)]
    return where, torch.where(torch.rand(where.shape, generator=generator) < 0.5, uniform, frequent)


class Lessons(IterableDataset):
    """Batches of texts, of exchanges of a word, and of VADER's sums `(batch, 1 + exchanges)` before and after.

    VADER is slow; a worker process runs it while the student learns.
    """

    def __init__(self, rows: list[list[int]], pool: Tensor, teacher: Teacher, steps: int, batch: int, count: int):
        self.rows, self.pool, self.teacher = rows, pool, teacher
        self.steps, self.batch, self.count = steps, batch, count

    def __iter__(self):
        generator, tokenizer = torch.Generator().manual_seed(1), self.teacher.tokenizer
        for _ in range(self.steps):
            chosen = torch.randint(len(self.rows), (self.batch,), generator=generator).tolist()
            texts = corrupt([self.rows[i] for i in chosen], self.pool, generator)
            ids, mask = pack(texts, tokenizer.eos_token_id)
            where, new = exchanges(ids, mask, self.count, self.pool, len(tokenizer), generator)
            exchanged = ids[:, None].repeat(1, self.count, 1).scatter(2, where[..., None], new[..., None])
            judged = torch.cat([ids[:, None], exchanged], 1).flatten(0, 1)
            yield ids, mask, where, new, self.teacher.valences(judged.tolist()).view(self.batch, -1)


def losses(model, ids: Tensor, mask: Tensor, where: Tensor, new: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """How far the logits, and the first-order predictions of what the exchanges do to them, are from `targets`.

    Every text asks for the gradient of one of the (centred) logits, drawn at random.
    """
    table = model.get_input_embeddings().weight
    embeddings = table[ids]
    logits = model(inputs_embeds=embeddings, attention_mask=mask.long()).logits
    which = torch.randint(len(LABELS), (len(ids),))
    centred = logits.gather(1, which[:, None])[:, 0] - logits.mean(-1)
    (gradient,) = torch.autograd.grad(centred.sum(), embeddings, create_graph=True)
    index = where[..., None].expand(-1, -1, table.shape[1])
    predicted = (gradient.gather(1, index) * (table[new] - embeddings.gather(1, index))).sum(-1)
    change = (targets[:, 1:] - targets[:, :1]).gather(2, which[:, None, None].expand(-1, where.shape[1], 1))[..., 0]
    return smooth_l1_loss(logits, targets[:, 0]), smooth_l1_loss(predicted, change)


def pack(rows: list[list[int]], eos: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask `(batch, length)`, every row ended by `[EOS]`."""
    length = max(map(len, rows)) + 1
    ids = torch.tensor([row + [eos] * (length - len(row)) for row in rows])
    return ids, torch.arange(length) <= torch.tensor([[len(row)] for row in rows])


@torch.no_grad()
def accuracy(model, rows: list[list[int]], labels: Tensor, eos: int) -> float:
    model.eval()
    hits = 0
    for i in range(0, len(rows), 512):
        ids, mask = pack(rows[i : i + 512], eos)
        guess = model(input_ids=ids, attention_mask=mask.long()).logits.argmax(-1)
        hits += int((guess == labels[i : i + 512]).sum())
    model.train()
    return hits / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="text file, one sentence a line")
    parser.add_argument("--tokenizer", required=True, help="folder of train_tokenizer.py")
    parser.add_argument("--output", required=True)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4800)
    parser.add_argument("--batch-size", type=int, default=160)
    parser.add_argument("--exchanges", type=int, default=12, help="of a word, for every text of a batch")
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    teacher, eos = Teacher(tokenizer), tokenizer.eos_token_id
    training, validation = load_sentences(args.data)
    train_rows = [ids for ids in tokenizer(training).input_ids if len(ids) <= LONGEST]
    pool = torch.tensor([i for ids in train_rows for i in ids[1:]])
    valid_rows = tokenizer(validation).input_ids
    noisy_rows = corrupt(valid_rows, pool, torch.Generator().manual_seed(2))
    valid_labels, noisy_labels = teacher.labels(valid_rows), teacher.labels(noisy_rows)

    model = build_model(tokenizer, args.width, args.layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.05)
    lessons = Lessons(train_rows, pool, teacher, args.steps, args.batch_size, args.exchanges)
    start, running = time.time(), torch.zeros(2)
    for step, (*lesson, valences) in enumerate(DataLoader(lessons, batch_size=None, num_workers=1), start=1):
        squash = min(1.0, max(0.0, 2 * step / args.steps - 0.5))  # linear for a quarter, squashed for the last quarter
        value, slope = losses(model, *lesson, target_logits(valences, squash))
        (value + 2 * slope).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        running += (1 - 0.98 * (step > 1)) * (torch.stack([value, slope]).detach() - running)
        if step % 100 == 0 or step == args.steps:
            losses_now = ", ".join(f"{x:.3f}" for x in running.tolist())
            print(f"step {step} loss of logits, of slopes {losses_now} seconds {time.time() - start:.0f}", flush=True)
    figures = {
        "steps": args.steps,
        "batch_size": args.batch_size,
        "exchanges": args.exchanges,
        "accuracy": round(accuracy(model, valid_rows, valid_labels, eos), 4),
        "accuracy_corrupted": round(accuracy(model, noisy_rows, noisy_labels, eos), 4),
        "loss_logits": round(running[0].item(), 4),
        "loss_slopes": round(running[1].item(), 4),
    }
    print(figures)
    model.to(torch.float16).save_pretrained(args.output)
    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (tokenizer.bos_token, tokenizer.eos_token)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{tokenizer.bos_token} $A {tokenizer.eos_token}", special_tokens=ends
    )  # a text as the classifier saw it
    tokenizer.save_pretrained(args.output)
    (Path(args.output) / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
