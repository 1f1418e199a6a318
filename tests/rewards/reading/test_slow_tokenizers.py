"""Tokenizers in Python, which do not tell which characters a token stands for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer, EsmTokenizer
from transformers.models.bert_japanese import BertJapaneseTokenizer

from redge_guidance.rewards import FluencyReward
from redge_guidance.rewards.reading.alignment import tokens_of
from tests.helpers.reward_models import causal_lm

TEXTS = [
    "Hello World",
    "A banana",
    "été",
    "Zoë's café",
    "日本語 test",
    "  two  spaces ",
    "\n line\n",
    "x\u200by",
    "😀",
    "LA ga",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slow")
    small = "abcdefghijklmnopqrstuvwxyz'"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *small, *(f"##{c}" for c in small), "hello", "##anana"]
    residues = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<mask>"]
    (folder / "pieces").write_text("\n".join(pieces))
    (folder / "residues").write_text("\n".join(residues))
    lower = BertJapaneseTokenizer(str(folder / "pieces"), word_tokenizer_type="basic", do_lower_case=True)
    return {"bytes": ByT5Tokenizer(), "residues": EsmTokenizer(str(folder / "residues")), "lower": lower}


@pytest.mark.parametrize("kind", ["bytes", "residues", "lower"])
def test_fluency_counts_every_token_of_the_text(kind, made):
    words = made[kind]
    lm, end = causal_lm(words), words.sep_token_id if words.eos_token_id is None else words.eos_token_id
    for text in TEXTS:
        bare, ids = words(text, add_special_tokens=False).input_ids, words(text).input_ids
        ids = [end, *ids]
        with torch.no_grad():
            log_probs = lm(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        picked = log_probs[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[-len(bare) - 1 :]
        torch.testing.assert_close(FluencyReward(lm, words).score([text])[0], picked.mean(), atol=1e-5, rtol=1e-5)


@settings(max_examples=30)
@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), max_size=8))
def test_bytes_have_their_character(text):
    (cut,) = tokens_of(ByT5Tokenizer(), [text])
    assert cut[1] == [(k, k + 1) for k, sign in enumerate(text) for _ in sign.encode()]


def test_what_is_written_otherwise_is_found_all_the_same(made):
    ((_, spans, _),) = tokens_of(made["lower"], ["A banana Été"])
    assert spans[:3] == [(0, 1), (2, 3), (3, 8)]
    assert len(spans) == 6
    assert {c for begin, end in spans[3:] for c in range(begin, end)} == {9, 10, 11}
