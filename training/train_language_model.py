"""Train a diffusion language model, masked (MDLM, arXiv 2406.07524) or uniform, on short sentences, on a CPU.

A sentence of n tokens lies on a canvas of C > n positions after `[BOS]`; the positions after it are `[EOS]`. Most
batches use the default canvas; the others draw one of 8 to 32 positions, so that other lengths and prompts work too.

`--corruption masked` hides k of the C positions, k uniform on 1..C, and weights the hidden positions' cross-entropy by
C / k: its mean is the negative ELBO of the absorbing diffusion, `E_k[(C / k) sum_hidden -log p(x_i | x_visible)]`, in
nats a sentence.

`--corruption uniform` replaces every position with probability t, uniform on (0, 1), by a token drawn uniformly from
the K of the vocabulary. The model predicts the clean token from the other positions (leave-one-out, arXiv 2605.22765);
with `log(1 + K (1 - t) / t)` added to the logit of the token that is seen, that is the prediction from all positions,
whose cross-entropy, weighted by 1 / t, is the loss. Its minimum is that of the ELBO of UDLM (arXiv 2412.10193), which
judges the model.

Hidden matrices are trained with Muon, the rest with AdamW; the learning rate is constant, then falls linearly to zero.
A run that was stopped goes on with `--resume`, where `--steps` may differ from before; `--init` starts a new run, with
fresh optimizers, from the weights of a finished one.

    python training/train_language_model.py --data tatoeba-english.txt --tokenizer tokenizer --output masked-lm
    python training/train_language_model.py --data tatoeba-english.txt --tokenizer tokenizer --output uniform-lm \
        --corruption uniform --init masked-lm

Run it with `MALLOC_MMAP_THRESHOLD_=8000000000 MALLOC_TRIM_THRESHOLD_=16000000000` in the environment: glibc then reuses
large buffers instead of asking the kernel for fresh pages at every step, which halves the time of a step.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from data import load_sentences
from torch import Tensor
from transformers import AutoTokenizer, ModernBertConfig, ModernBertForMaskedLM, PreTrainedTokenizerFast

from redge_guidance.pipelines.text.posterior import elbo_rate

DEFAULT_CANVAS, SHORTEST_CANVAS, LONGEST_CANVAS = 18, 8, 32
OTHER_CANVAS_PROBABILITY = 0.25
SHORTEST_TIME = 1e-3  # of the uniform corruption; the weight 1 / t has no bound


class HeadCrossEntropy(torch.autograd.Function):
    """`sum_i w_i (logsumexp(z_i) - z_i[target_i])`, `z = states @ weight.T + bias`, without keeping the logits.

    Works through the rows in chunks that stay in the cache and computes the gradients along the way, in bfloat16.
    states: (rows, width). weight: (vocabulary, width). bias: (vocabulary,). targets, row_weights: (rows,).
    seen, evidence: (rows,); `evidence` is added to the logit of `seen`.
    """

    @staticmethod
    def forward(ctx, states, weight, bias, targets, row_weights, seen=None, evidence=None, chunk=256):
        states, weight16, bias16 = states.bfloat16(), weight.bfloat16(), bias.bfloat16()
        grad_states, grad_weight, grad_bias = torch.empty_like(states), torch.zeros_like(weight), torch.zeros_like(bias)
        total = states.new_zeros((), dtype=torch.float32)
        for rows in torch.arange(len(states)).split(chunk):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            logits = torch.addmm(bias16, states[part], weight16.T)
            if seen is not None:
                logits[torch.arange(len(rows)), seen[part]] += evidence[part].bfloat16()
            log_z = logits.float().logsumexp(-1)
            picked = logits.gather(1, targets[part, None])[:, 0].float()
            total += (row_weights[part] * (log_z - picked)).sum()
            grad = logits.sub_(log_z[:, None]).exp_()
            grad[torch.arange(len(rows)), targets[part]] -= 1
            grad *= row_weights[part, None]
            grad_states[part] = grad @ weight16
            grad_weight += grad.T @ states[part]
            grad_bias += grad.sum(0)
        ctx.save_for_backward(grad_states, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx, grad):
        return *(g * grad for g in ctx.saved_tensors), None, None, None, None, None


def build_model(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> ModernBertForMaskedLM:
    return ModernBertForMaskedLM(
        ModernBertConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            max_position_embeddings=64,
            global_attn_every_n_layers=1,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            cls_token_id=None,
            sep_token_id=None,
            tie_word_embeddings=True,
            attn_implementation="eager",  # faster than sdpa on a CPU at these lengths
        )
    )


def place(token_ids: list[list[int]], canvas: int, eos: int) -> Tensor:
    """Token ids `(batch, 1 + canvas)`, `[BOS]` first, every sentence followed by `[EOS]` to the end of the canvas."""
    return torch.tensor([ids + [eos] * (1 + canvas - len(ids)) for ids in token_ids])


def hide(batch: int, canvas: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hidden positions and their weights C / k, both `(batch, 1 + canvas)`; k is stratified over the rows."""
    u = (torch.arange(batch) + torch.rand(1, generator=generator)) / batch
    k = (u * canvas).long().clamp(max=canvas - 1) + 1
    rank = torch.rand(batch, canvas, generator=generator).argsort(1).argsort(1)
    hidden = torch.nn.functional.pad(rank < k[:, None], (1, 0))  # [BOS] is always visible
    return hidden, (canvas / k)[:, None].expand(hidden.shape)


def hidden_states(model: ModernBertForMaskedLM, ids: Tensor, where: Tensor) -> Tensor:
    """What goes into the last linear map, `(positions, width)`."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model.head(model.model(input_ids=ids)[0][where])


def masked_loss(model: ModernBertForMaskedLM, ids: Tensor, mask_id: int, generator: torch.Generator) -> Tensor:
    """Unbiased estimate of the summed ELBO bound of the batch in nats; `ids`: `(batch, 1 + canvas)`."""
    hidden, weights = hide(len(ids), ids.shape[1] - 1, generator)
    states = hidden_states(model, ids.masked_fill(hidden, mask_id), hidden)
    return HeadCrossEntropy.apply(states, model.decoder.weight, model.decoder.bias, ids[hidden], weights[hidden])


def uniform_loss(model: ModernBertForMaskedLM, ids: Tensor, generator: torch.Generator) -> Tensor:
    """Summed cross-entropy of the clean tokens in nats, weighted by 1 / t; `ids`: `(batch, 1 + canvas)`.

    Tokens that were not replaced are mostly told by what is seen; a quarter of them stands for all.
    """
    vocabulary, kept = model.config.vocab_size, 0.25
    t = (torch.arange(len(ids)) + torch.rand(1, generator=generator)) / len(ids)
    t = t.clamp(SHORTEST_TIME, 1 - SHORTEST_TIME)[:, None].expand(ids.shape)
    noise = torch.rand(ids.shape, generator=generator) < t
    noise[:, 0] = False  # [BOS]
    seen = torch.where(noise, torch.randint(vocabulary, ids.shape, generator=generator), ids)
    judged = noise | (torch.rand(ids.shape, generator=generator) < kept)
    judged[:, 0] = False
    weights = noise.float().masked_fill(~noise, 1 / kept) / t
    evidence = torch.log1p(vocabulary * (1 - t) / t)
    states = hidden_states(model, seen, judged)
    rows = (ids[judged], weights[judged], seen[judged], evidence[judged])
    return HeadCrossEntropy.apply(states, model.decoder.weight, model.decoder.bias, *rows)


@torch.no_grad()
def masked_bits(model, token_ids, characters: int, tokenizer, repeats: int = 4) -> float:
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    model.eval()
    for canvas, group in group_by_canvas(token_ids).items():
        ids = place(group, canvas, tokenizer.eos_token_id)
        ids = ids.repeat(repeats, 1)[torch.randperm(repeats * len(ids), generator=generator)]
        for rows in ids.split(512):
            total += masked_loss(model, rows, tokenizer.mask_token_id, generator).item() / repeats
    model.train()
    return total / characters / math.log(2)


@torch.no_grad()
def uniform_bits(model, token_ids, characters: int, tokenizer, repeats: int = 2) -> float:
    generator = torch.Generator().manual_seed(0)
    total, vocabulary = 0.0, model.config.vocab_size
    model.eval()
    for canvas, group in group_by_canvas(token_ids).items():
        ids = place(group, canvas, tokenizer.eos_token_id)
        ids = ids.repeat(repeats, 1)[torch.randperm(repeats * len(ids), generator=generator)]
        times = (torch.arange(len(ids)) + torch.rand(1, generator=generator)) / len(ids)
        for rows, t in zip(ids.split(64), times.split(64), strict=True):
            t = t.clamp(SHORTEST_TIME, 1 - SHORTEST_TIME)[:, None].expand(rows.shape)[:, 1:]
            noise = torch.rand(t.shape, generator=generator) < t
            seen = torch.where(noise, torch.randint(vocabulary, t.shape, generator=generator), rows[:, 1:])
            canvas_ids = torch.cat([rows[:, :1], seen], -1)
            states = hidden_states(model, canvas_ids, torch.ones_like(canvas_ids, dtype=torch.bool))
            logits = model.decoder(states.float()).view(*canvas_ids.shape, -1)[:, 1:]
            total += elbo_rate(logits, rows[:, 1:], seen, 1 - t).sum().item() / repeats
    model.train()
    return total / characters / math.log(2)


def group_by_canvas(token_ids: list[list[int]]) -> dict[int, list[list[int]]]:
    groups: dict[int, list[list[int]]] = {}
    for ids in token_ids:
        groups.setdefault(max(DEFAULT_CANVAS, len(ids)), []).append(ids)
    return groups


class Batches:
    """Endless batches of one canvas each. Every sentence is seen once an epoch, long ones on canvases that fit them."""

    def __init__(self, token_ids: list[list[int]], batch_size: int, eos: int, generator: torch.Generator):
        self.token_ids, self.batch_size, self.eos, self.generator = token_ids, batch_size, eos, generator
        self.queue: list[int] = []

    def __call__(self) -> Tensor:
        if len(self.queue) < 4 * self.batch_size:
            self.queue += torch.randperm(len(self.token_ids), generator=self.generator).tolist()
        canvas = DEFAULT_CANVAS
        if torch.rand(1, generator=self.generator) < OTHER_CANVAS_PROBABILITY:
            canvas = int(torch.randint(SHORTEST_CANVAS, LONGEST_CANVAS + 1, (1,), generator=self.generator))
        head, self.queue = self.queue[: 4 * self.batch_size], self.queue[4 * self.batch_size :]
        fitting = [i for i in head if len(self.token_ids[i]) <= canvas][: self.batch_size]
        taken = set(fitting)
        self.queue = [i for i in head if i not in taken] + self.queue
        if len(self.queue) > 2 * len(self.token_ids):  # cannot happen while LONGEST_CANVAS fits nearly everything
            raise RuntimeError("sentences longer than every canvas fill the queue")
        return place([self.token_ids[i] for i in fitting], canvas, self.eos)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="text file, one sentence a line")
    parser.add_argument("--tokenizer", required=True, help="folder of train_tokenizer.py")
    parser.add_argument("--output", required=True, help="folder for the model, the curve and the state to resume from")
    parser.add_argument("--corruption", choices=("masked", "uniform"), default="masked")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --output")
    parser.add_argument("--init", help="folder of a finished model to start from")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the sentences and of the corruption")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=16000)
    parser.add_argument("--cooldown", type=int, default=4000, help="steps at the end over which the rate falls to zero")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    parser.add_argument("--eval-every", type=int, default=500)
    args = parser.parse_args()
    torch.manual_seed(0)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    training, validation = load_sentences(args.data)
    train_ids = [ids for ids in tokenizer(training).input_ids if len(ids) <= LONGEST_CANVAS]
    valid_ids = tokenizer(validation[:1024]).input_ids
    characters = sum(map(len, validation[:1024]))

    model = build_model(tokenizer, args.width, args.layers)
    if args.init:
        model = ModernBertForMaskedLM.from_pretrained(args.init, dtype=torch.float32, attn_implementation="eager")
        model.train()
    hidden = [p for n, p in model.model.layers.named_parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not h for h in hidden)]
    optimizers = [
        torch.optim.Muon(hidden, lr=args.muon_lr, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=args.adam_lr, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
    ]
    first, curve, generator = 0, [], torch.Generator().manual_seed(args.seed)
    if args.resume:
        state = torch.load(output / "state.pt")
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first, curve = state["step"], state["curve"]
        generator.manual_seed(args.seed + first)
    batches = Batches(train_ids, args.batch_size, tokenizer.eos_token_id, generator)
    peaks = (args.muon_lr, args.adam_lr)
    start, running = time.time(), None
    for step in range(first, args.steps):
        rate = min(1.0, (step + 1) / 200, (args.steps - step) / max(1, args.cooldown))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = rate * peak
        ids = batches()
        if args.corruption == "masked":
            loss = masked_loss(model, ids, tokenizer.mask_token_id, generator) / len(ids)
        else:
            loss = uniform_loss(model, ids, generator) / len(ids)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} nats a sentence {running:.2f} seconds {time.time() - start:.0f}", flush=True)
        if (step + 1) % args.eval_every == 0 or step + 1 == args.steps:
            judge = masked_bits if args.corruption == "masked" else uniform_bits
            bits = judge(model, valid_ids, characters, tokenizer)
            curve.append({"step": step + 1, "bits_per_character": round(bits, 4), "rate": round(rate, 4)})
            print(f"step {step + 1} validation {bits:.4f} bits a character", flush=True)
            (output / "curve.json").write_text(json.dumps(curve, indent=1) + "\n")
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
            torch.save(state | {"step": step + 1, "curve": curve}, output / "state.pt")
    model.to(torch.float16).save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    main()
