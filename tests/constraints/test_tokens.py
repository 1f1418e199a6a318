"""What tokens write."""

import numpy as np
import pytest

from redge_guidance.constraints.tokens import token_bytes
from tests.helpers.tokenizers import tokenizer


@pytest.mark.parametrize("kind", ["byte", "wordpiece", "unigram", "fallback"])
def test_joined_bytes_are_the_decoded_text(kind):
    tok = tokenizer(kind)
    first, within = token_bytes(tok)
    ids = [i for i, part in enumerate(within) if part]
    rng = np.random.default_rng(1)
    for _ in range(300):
        row = rng.choice(ids, rng.integers(1, 6)).tolist()
        text = tok.decode(row, skip_special_tokens=True)
        joined = b"".join([first[row[0]], *(within[i] for i in row[1:])])
        assert "\ufffd" in text or joined.decode() == text
    assert all(first[i] is within[i] is None for i in tok.all_special_ids)


def test_spaces_that_are_cleaned_up_are_an_error():
    tok = tokenizer.__wrapped__("wordpiece")
    tok.clean_up_tokenization_spaces = True
    with pytest.raises(ValueError, match="Set `tokenizer.clean_up_tokenization_spaces = False`"):
        token_bytes(tok)
    tok.clean_up_tokenization_spaces = False
    assert token_bytes(tok)[0]
