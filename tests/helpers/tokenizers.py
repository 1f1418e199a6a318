"""Small real tokenizers of every kind, all of the same few sentences."""

import functools
import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TEXTS = [
    "The old doctor lived in a small house near the river.",
    "She's happy, isn't she? I don't know what he said.",
    "Tom bought 25 books and a café au lait for Zoë.",
    "Unhappy people are reading newspapers in the garden.",
    "日本語のテキスト and some 😀 emoji.",
]


@functools.cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """`"byte"`: byte-level BPE; `"wordpiece"`: of lower case, no accents; `"unigram"`; `"fallback"`: BPE with bytes.

    `"embedded"` is that of the embedded checkpoint of masked texts, which is not small.
    """
    if kind == "embedded":
        return AutoTokenizer.from_pretrained("checkpoints/tatoeba-masked/tokenizer")
    made = {"byte": _byte_level, "wordpiece": _wordpiece, "unigram": _unigram, "fallback": _byte_fallback}[kind]()
    made.padding_side = "right"
    return made


def _byte_level():
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<|pad|>", "<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    base.train_from_iterator(TEXTS[:4], trainer)
    base.add_special_tokens(["<|mask|>"])
    base.add_tokens([AddedToken("newspapers", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=base, eos_token="<|end|>", pad_token="<|pad|>", mask_token="<|mask|>"
    )


def _wordpiece():
    base = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    base.normalizer = normalizers.BertNormalizer()
    base.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    base.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    base.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=220, special_tokens=special, show_progress=False)
    )
    base.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(t, base.token_to_id(t)) for t in ("[CLS]", "[SEP]")]
    )
    names = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=base, **names)


def _unigram():
    base = Tokenizer(models.Unigram())
    base.normalizer = normalizers.NFKC()
    base.pre_tokenizer = pre_tokenizers.Metaspace()
    base.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    base.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    base.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=base, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def _byte_fallback():
    """As SentencePiece BPE models are converted: pieces with a lower line, bytes for all else."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(TEXTS[:4], trainers.BpeTrainer(vocab_size=150, show_progress=False))
    pieces = trained.get_vocab()
    names = ["<pad>", "</s>", "<unk>", *(f"<0x{b:02X}>" for b in range(256)), *sorted(pieces, key=pieces.get)]

    merges = [tuple(m) for m in json.loads(trained.to_str())["model"]["merges"]]
    vocabulary = {name: i for i, name in enumerate(names)}
    base = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    base.pre_tokenizer = pre_tokenizers.Metaspace()
    base.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    base.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return PreTrainedTokenizerFast(tokenizer_object=base, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def with_holes():
    """A word-level tokenizer whose ids are 0 to 3, 6 and 9: padding, end and mask, then a, b, c."""
    words = {"[PAD]": 0, "[EOS]": 1, "[MASK]": 2, "a": 3, "b": 6, "c": 9}
    base = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    base.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=base, pad_token="[PAD]", eos_token="[EOS]", mask_token="[MASK]", padding_side="left"
    )
