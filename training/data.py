"""The Tatoeba sentences, split once and for all into training and validation parts."""

import random
from pathlib import Path

NUM_VALIDATION = 4096


def load_sentences(path: str | Path) -> tuple[list[str], list[str]]:
    """Sentences of the file (one a line), shuffled with a fixed seed: `(training, validation)`."""
    sentences = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line]
    random.Random(0).shuffle(sentences)
    return sentences[NUM_VALIDATION:], sentences[:NUM_VALIDATION]
