"""How long it takes to build automata over tokens, by the size of the vocabulary; the JSON is printed.

python benchmarks/automata.py --output benchmarks/results/automata.json
"""

import argparse
import json
import os
import re
import resource
import time

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from redge_guidance.constraints.compiling import compile_tokens
from redge_guidance.constraints.expression import machine_of
from redge_guidance.constraints.tokens import token_bytes

FIELDS = ["name", "age", "city", "email", "phone", "street", "number", "country", "company", "title",
          "married", "score", "language", "currency", "balance", "created", "updated", "active", "comment",
          "sentiment"]  # fmt: skip
VALUES = [r'"[^"\\\x00-\x1f]*"', r"-?(?:0|[1-9]\d{0,8})", "(?:true|false|null)", '"(?:positive|negative|neutral)"']


def patterns() -> dict[str, str]:
    record = ", ".join(f'"customer_account_{name}": {VALUES[i % 4]}' for i, name in enumerate(FIELDS))
    return {
        "date": r"\d{4}-\d{2}-\d{2}",
        "a word": r"(?s:.*)\bxylophone\b(?s:.*)",
        "up to 200 letters": r"(?s:.{0,200})",
        "up to 100 words": r"\w+(?:\W+\w+){0,99}\W*",
        "a record of 20 fields": r"\{" + record + r"\}",
    }


def of_size(size: int, text: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: all bytes, then the most frequent pieces of a text, words, and pairs of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces: dict[str, int] = {}
    words = re.findall(r" ?\w+| ?[^\w\s]+|\s+", text)
    for word in words:
        for end in range(2, len(word) + 1):
            pieces[word[:end]] = pieces.get(word[:end], 0) + 1
    rng, names = np.random.default_rng(0), list(alphabet)
    known = set(names)
    frequent = sorted(pieces, key=lambda piece: -pieces[piece])
    extra = (frequent[a] + frequent[b].strip() for a, b in rng.integers(0, min(len(frequent), 20_000), (4 * size, 2)))
    signs = (chr(c) for c in (*range(0xC0, 0x530), *range(0x3041, 0x30FF), *range(0x4E00, 0x6E00)))
    for piece in (*frequent[: size // 2], *signs, *extra):
        name = "".join(one for one, _ in byte_level.pre_tokenize_str(piece))
        if len(names) < size - 2 and name not in known:
            known.add(name)
            names.append(name)
    names += ["<|pad|>", "<|end|>"]
    base = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    base.pre_tokenizer, base.decoder = byte_level, decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=base, eos_token="<|end|>", pad_token="<|pad|>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", default="../shared/data/tatoeba-english.txt", help="what the tokens are pieces of")
    parser.add_argument("--sizes", type=int, nargs="+", default=[12_289, 126_464])
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["REDGE_GUIDANCE_CACHE"] = ""  # built, not read
    with open(arguments.text, encoding="utf-8") as file:
        text = file.read(6_000_000)
    rows = []
    for size in arguments.sizes:
        tokenizer = of_size(size, text)
        begin = time.perf_counter()
        token_bytes(tokenizer)
        reading = time.perf_counter() - begin
        for name, pattern in patterns().items():
            begin = time.perf_counter()
            machine = machine_of(pattern)
            middle = time.perf_counter()
            found = compile_tokens(machine, tokenizer, len(tokenizer), [tokenizer.eos_token_id])
            end = time.perf_counter()
            rows.append({
                "vocabulary": len(tokenizer), "pattern": name, "characters_states": len(machine.table),
                "states": found.table.shape[0], "classes": found.table.shape[1], "tokenizer_s": round(reading, 2),
                "machine_s": round(middle - begin, 2), "tokens_s": round(end - middle, 2),
                "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            })  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    if arguments.output:
        with open(arguments.output, "w", encoding="utf-8") as file:
            json.dump({"threads": 1, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
