"""Train a masked diffusion language model (MDLM, arXiv 2406.07524) on short sentences, on a CPU.

A sentence of n tokens lies on a canvas of C > n positions after `[BOS]`; the positions after it are `[EOS]`. Training
hides k of the C positions, k uniform on 1..C, and weights the hidden positions' cross-entropy by C / k: its mean is the
negative ELBO of the absorbing diffusion, `E_k[(C / k) sum_hidden -log p(x_i | x_visible)]`, in nats a sentence. Most
batches use the default canvas; the others draw one of 8 to 32 positions, so that other lengths and prompts work too.

Hidden matrices are trained with Muon, the rest with AdamW; the learning rate is constant, then falls linearly to zero.
A run that was stopped goes on with `--resume`, where `--steps` may differ from before; `--init` starts a new run, with
fresh optimizers, from the weights of a finished one.

    python training/train_masked_lm.py --data tatoeba-english.txt --tokenizer tokenizer --output masked-lm

Run it with `MALLOC_MMAP_THRESHOLD_=8000000000 MALLOC_TRIM_THRESHOLD_=16000000000` in the environment: glibc then reuses
large buffers instead of asking the kernel for fresh pages at every step, which halves the time of a step.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from data import load_sentences
from torch import Tensor
from transformers import AutoTokenizer, ModernBertConfig, ModernBertForMaskedLM, PreTrainedTokenizerFast

DEFAULT_CANVAS, SHORTEST_CANVAS, LONGEST_CANVAS = 18, 8, 32
OTHER_CANVAS_PROBABILITY = 0.25


class HeadCrossEntropy(torch.autograd.Function):
    """`sum_i w_i (logsumexp(z_i) - z_i[target_i])`, `z = states @ weight.T + bias`, without keeping the logits.

    Works through the rows in chunks that stay in the cache and computes the gradients along the way, in bfloat16.
    states: (rows, width). weight: (vocabulary, width). bias: (vocabulary,). targets, row_weights: (rows,).
    """

    @staticmethod
    def forward(ctx, states, weight, bias, targets, row_weights, chunk=256):
        states, weight16, bias16 = states.bfloat16(), weight.bfloat16(), bias.bfloat16()
        grad_states, grad_weight, grad_bias = torch.empty_like(states), torch.zeros_like(weight), torch.zeros_like(bias)
        total = states.new_zeros((), dtype=torch.float32)
        for rows in torch.arange(len(states)).split(chunk):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            logits = torch.addmm(bias16, states[part], weight16.T)
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
        return *(g * grad for g in ctx.saved_tensors), None, None, None


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


def nll(model: ModernBertForMaskedLM, ids: Tensor, mask_id: int, generator: torch.Generator) -> Tensor:
    """Unbiased estimate of the summed ELBO bound of the batch in nats; `ids`: `(batch, 1 + canvas)`."""
    hidden, weights = hide(len(ids), ids.shape[1] - 1, generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = model.model(input_ids=ids.masked_fill(hidden, mask_id))[0]
        states = model.head(states[hidden])
    return HeadCrossEntropy.apply(states, model.decoder.weight, model.decoder.bias, ids[hidden], weights[hidden])


@torch.no_grad()
def bits_per_character(model, token_ids, characters: int, tokenizer, repeats: int = 4) -> float:
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    model.eval()
    for canvas, group in group_by_canvas(token_ids).items():
        ids = place(group, canvas, tokenizer.eos_token_id)
        ids = ids.repeat(repeats, 1)[torch.randperm(repeats * len(ids), generator=generator)]
        for rows in ids.split(512):
            total += nll(model, rows, tokenizer.mask_token_id, generator).item() / repeats
    model.train()
    return total / characters / torch.log(torch.tensor(2.0)).item()


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
    parser.add_argument("--resume", action="store_true", help="go on from the state in --output")
    parser.add_argument("--init", help="folder of a finished model to start from")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the sentences and of what is hidden")
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
        loss = nll(model, ids, tokenizer.mask_token_id, generator) / len(ids)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} nats a sentence {running:.2f} seconds {time.time() - start:.0f}", flush=True)
        if (step + 1) % args.eval_every == 0 or step + 1 == args.steps:
            bits = bits_per_character(model, valid_ids, characters, tokenizer)
            curve.append({"step": step + 1, "bits_per_character": round(bits, 4), "rate": round(rate, 4)})
            print(f"step {step + 1} validation {bits:.4f} bits a character", flush=True)
            (output / "curve.json").write_text(json.dumps(curve, indent=1) + "\n")
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
            torch.save(state | {"step": step + 1, "curve": curve}, output / "state.pt")
    model.to(torch.float16).save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    main()
