"""Train a masked diffusion model of full Sudoku boards, on a CPU.

A board is 81 tokens and `[EOS]`. In three quarters of a batch the cells of a puzzle are given, and a share of the
others, uniform on 0..1, as half way through solving it; in the rest k tokens are hidden anywhere, k uniform on 1..82.
The loss is the mean cross-entropy of the hidden cells: the optimum of every conditional is that of the bound with the
weights 82 / k, which spends most of its weight on boards that are nearly full. Boards come from a pool (`sudoku.py`),
each seen under a random one of the symmetries that the rules have, some 10^12 a board.

Position embeddings start as sums of a vector for the row, one for the column and one for the box, and the first heads
of every layer look along these, which saves the model from finding out where the units are.

    python training/sudoku.py --output sudoku-pool.npz
    python training/train_sudoku.py --pool sudoku-pool.npz --output sudoku-lm

A run that was stopped goes on with `--resume`, where `--steps` may differ from before.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerFast, RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM

PAD, MASK, UNKNOWN, END = 0, 10, 11, 12  # the digits are themselves
DRAWN = [*range(1, 10), END]
NUM_VALIDATION = 256  # puzzles of the pool


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a digit; white space is left out, other characters are unknown."""
    words = {"[PAD]": PAD, **{str(d): d for d in range(1, 10)}, "[MASK]": MASK, "[UNK]": UNKNOWN, "[EOS]": END}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Replace(Regex(r"\s"), "")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("[PAD]", "[MASK]", "[UNK]", "[EOS]")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        mask_token="[MASK]",
        unk_token="[UNK]",
        eos_token="[EOS]",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_model(width: int, layers: int, heads: int, inner: int) -> RobertaPreLayerNormForMaskedLM:
    """Learned positions, and no dropout, since no board comes twice."""
    config = RobertaPreLayerNormConfig(
        vocab_size=13,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=83,  # the first belongs to padding
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=END,
        attn_implementation="eager",  # faster than sdpa on a CPU at this length
    )
    model = RobertaPreLayerNormForMaskedLM(config)
    start_with_units(model)
    return model


@torch.no_grad()
def start_with_units(model: RobertaPreLayerNormForMaskedLM, sharpness: float = 4.0) -> None:
    """Position embeddings of rows, columns and boxes; the first three heads of every layer look along one of them.

    Cells of one unit have a logit of about `sharpness` more in its head.
    """
    embeddings, width = model.roberta_prelayernorm.embeddings, model.config.hidden_size
    axes = torch.linalg.qr(torch.randn(width, 27)).Q.T.view(3, 9, width)
    cell = torch.arange(81)
    row, column = cell // 9, cell % 9
    places = torch.stack([row, column, row // 3 * 3 + column // 3])
    found = sum(axes[k][places[k]] for k in range(3)) * width**0.5 / 2
    embeddings.position_embeddings.weight[PAD + 1 : -1] = found
    embeddings.word_embeddings.weight.normal_(std=0.5)
    embeddings.word_embeddings.weight[PAD] = 0
    embeddings.token_type_embeddings.weight.zero_()
    model.lm_head.layer_norm.weight.fill_(0.2)  # logits of about 1 to begin with
    size = width // model.config.num_attention_heads
    factor = (sharpness * size**0.5 * 4 / width) ** 0.5
    for layer in model.roberta_prelayernorm.encoder.layer:
        for weight in (layer.attention.self.query.weight, layer.attention.self.key.weight):
            for k in range(3):
                weight[k * size : (k + 1) * size] *= 0.3
                weight[k * size : k * size + 9] += factor * axes[k]


class Boards:
    """Batches of boards under random symmetries, with the cells that are hidden."""

    def __init__(self, path: str, batch_size: int, puzzles: float, generator: torch.Generator, held_out: bool = False):
        with np.load(path) as arrays:
            boards, given = torch.from_numpy(arrays["boards"]).long(), torch.from_numpy(arrays["given"])
        part = slice(NUM_VALIDATION) if held_out else slice(NUM_VALIDATION, None)
        self.boards, self.given = boards[part], given[part]
        self.batch_size, self.generator = batch_size, generator
        self.puzzles = round(puzzles * batch_size)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Token ids and where they are hidden, `(batch, 82)` both."""
        size, first, g = self.batch_size, self.puzzles, self.generator
        chosen = torch.cat(
            [
                torch.randint(len(self.given), (first,), generator=g),
                torch.randint(len(self.boards), (size - first,), generator=g),
            ]
        )
        boards, noise = self.boards[chosen], torch.rand(size, 82, generator=g)
        shown = torch.rand(first, 1, generator=g)
        hidden_of_puzzles = ~self.given[chosen[:first]] & (noise[:first, :81] >= shown)
        k = 1 + torch.randint(82, (size - first, 1), generator=g)
        hidden = torch.cat([pad(hidden_of_puzzles, (0, 1)), noise[first:].argsort(1).argsort(1) < k])
        hidden[torch.arange(size), noise[:, :81].argmax(1)] |= ~hidden.any(1)
        boards, hidden[:, :81] = self.transformed(boards, hidden[:, :81])
        return pad(boards, (0, 1), value=END), hidden

    def transformed(self, boards: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Digits renamed, rows and columns exchanged as the rules allow, half of the boards transposed."""
        size, g = len(boards), self.generator

        def lines() -> Tensor:
            bands = torch.rand(size, 3, generator=g).argsort(1)
            inside = torch.rand(size, 3, 3, generator=g).argsort(2)
            return (3 * bands[..., None] + inside).flatten(1)

        row, column = lines()[:, :, None], lines()[:, None, :]
        straight = (9 * row + column).flatten(1)
        turned = (9 * column.transpose(1, 2) + row.transpose(1, 2)).flatten(1)
        cells = torch.where(torch.rand(size, 1, generator=g) < 0.5, straight, turned)
        names = torch.rand(size, 9, generator=g).argsort(1) + 1
        return names.gather(1, boards.gather(1, cells) - 1), hidden.gather(1, cells)


def loss_of(
    model: RobertaPreLayerNormForMaskedLM, ids: Tensor, hidden: Tensor, every: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of hidden tokens in nats, as is trained on and after the last layer; the share of right ones.

    The first is the mean over every `every`-th layer, counted from the last; 0: that one alone.
    """
    losses, target = [], torch.where(ids == END, 9, ids - 1)[hidden]
    encoder = model.roberta_prelayernorm
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = encoder(ids.masked_fill(hidden, MASK), output_hidden_states=True)
        after = [*(encoder.LayerNorm(states) for states in found.hidden_states[1:-1]), found.last_hidden_state]
        for states in after[::-1][:: every or len(after)]:
            log_probs = model.lm_head(states[hidden])[:, DRAWN].float().log_softmax(-1)
            losses.append(-log_probs.gather(-1, target[:, None]).mean())
            if len(losses) == 1:
                right = (log_probs.argmax(-1) == target).float().mean()
    return torch.stack(losses).mean(), losses[0].detach(), right


def optimizers_of(model: Any, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    hidden = [p for p in model.roberta_prelayernorm.encoder.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not h for h in hidden)]
    return [
        torch.optim.Muon(hidden, lr=muon_lr, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=adam_lr, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
    ]


@torch.no_grad()
def evaluate(model: Any, path: str, batches: int = 8) -> dict[str, float]:
    """Cross-entropy and share of right cells on the first puzzles of the pool, as in training; the same every time."""
    draw = Boards(path, 64, 1.0, torch.Generator().manual_seed(0), held_out=True)
    model.eval()
    found = torch.stack([torch.stack(loss_of(model, *draw(), every=0)[1:]) for _ in range(batches)]).mean(0)
    model.train()
    return {"nats": round(found[0].item(), 4), "right": round(found[1].item(), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", required=True, help="file of sudoku.py --pool")
    parser.add_argument("--output", required=True, help="folder for the model, the curve and the state to resume from")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --output")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--inner", type=int, default=384)
    parser.add_argument(
        "--judged",
        type=int,
        default=2,
        help="every how many layers, from the last on, the loss is taken; 0: after it alone",
    )
    parser.add_argument("--puzzles", type=float, default=0.75, help="share of a batch where cells of puzzles are given")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--cooldown", type=int, default=900, help="steps at the end over which the rate falls to zero")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    parser.add_argument("--eval-every", type=int, default=250)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save_pretrained(output)
    model = build_model(args.width, args.layers, args.heads, args.inner)
    optimizers = optimizers_of(model, args.muon_lr, args.adam_lr)
    first, curve, generator = 0, [], torch.Generator().manual_seed(args.seed)
    if args.resume:
        state = torch.load(output / "state.pt")
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first, curve = state["step"], state["curve"]
        generator.manual_seed(args.seed + first)
    batches = Boards(args.pool, args.batch_size, args.puzzles, generator)
    start, running = time.time(), torch.zeros(2)
    for step in range(first, args.steps):
        rate = min(1.0, (step + 1) / 100, (args.steps - step) / max(1, args.cooldown))
        for optimizer, peak in zip(optimizers, (args.muon_lr, args.adam_lr), strict=True):
            optimizer.param_groups[0]["lr"] = rate * peak
        loss, last, right = loss_of(model, *batches(), every=args.judged)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        now = torch.stack([last, right])
        running = now if step == first else running.lerp(now, 0.02)
        if (step + 1) % 50 == 0:
            shown = " ".join(f"{value:.4f}" for value in running.tolist())
            print(f"step {step + 1} nats, right: {shown} seconds {time.time() - start:.0f}", flush=True)
        if (step + 1) % args.eval_every == 0 or step + 1 == args.steps:
            curve.append({"step": step + 1, "rate": round(rate, 3), **evaluate(model, args.pool)})
            print(curve[-1], f"seconds {time.time() - start:.0f}", flush=True)
            model.save_pretrained(output)
            (output / "curve.json").write_text(json.dumps(curve))
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
            torch.save({**state, "step": step + 1, "curve": curve}, output / "state.pt")


if __name__ == "__main__":
    main()
