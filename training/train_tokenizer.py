"""Train the tokenizer that the embedded language model and the embedded rewards share.

Byte-level BPE over whole words: a word with its leading space and its apostrophes (`don't`, `Tom's`) is one unit before
merging, so that nearly every word of the corpus becomes one token. Any text round-trips: `decode(encode(x)) == x`.
A text begins with `[BOS]`: rotary position embeddings are relative, so that without a token to start from a model that
sees only masks cannot tell one position from another. The end of a sentence is `[EOS]`, and the rest of the canvas
after it is `[EOS]` too; `[PAD]` is only ever left padding.

    python training/train_tokenizer.py --data tatoeba-english.txt --output tokenizer
"""

import argparse

from data import load_sentences
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = r" ?\p{L}+(?:['\u2019]\p{L}+)*| ?\p{N}| ?[^\p{L}\p{N}\s]+|\s"
SPECIAL_TOKENS = {"pad_token": "[PAD]", "eos_token": "[EOS]", "mask_token": "[MASK]", "bos_token": "[BOS]"}


def train_tokenizer(sentences: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # A space before the first word only, so that a word is the same token wherever it stands.
            pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False),
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    special = [
        AddedToken("[PAD]", special=True),
        AddedToken("[EOS]", special=True),
        AddedToken("[MASK]", special=True, lstrip=True),  # "I [MASK] it." leaves no stray space behind
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.add_special_tokens(["[BOS]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A", special_tokens=[("[BOS]", tokenizer.token_to_id("[BOS]"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", clean_up_tokenization_spaces=False, **SPECIAL_TOKENS
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="text file, one sentence a line")
    parser.add_argument("--output", required=True, help="folder to write the tokenizer to")
    parser.add_argument("--vocab-size", type=int, default=12288)
    args = parser.parse_args()
    training, validation = load_sentences(args.data)
    tokenizer = train_tokenizer(training, args.vocab_size)
    tokenizer.save_pretrained(args.output)
    lengths = sorted(len(ids) for ids in tokenizer(validation).input_ids)
    characters = sum(map(len, validation))
    print(f"{len(tokenizer)} tokens; validation: {characters / sum(lengths):.2f} characters a token")
    percentiles = [lengths[int(q * (len(lengths) - 1))] for q in (0.5, 0.95, 0.99, 1.0)]
    print("tokens a sentence, [BOS] included, at the 50th, 95th, 99th, 100th percentile:", percentiles)
    decoded = tokenizer.batch_decode(tokenizer(validation).input_ids, skip_special_tokens=True)
    assert decoded == validation, "round trip"


if __name__ == "__main__":
    main()
