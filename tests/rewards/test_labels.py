"""Which label is meant: a name before an index, and never one of two."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig

from redge_guidance.rewards.labels import Label


def label(names, wanted, **kwargs):
    config = BertConfig(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    return Label(config, wanted, kwargs.get("against"), 1.0)


def picked(names, wanted):
    logits = torch.randn(1, len(names), generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    return (logits[0] - label(names, wanted)(logits)[0]).abs().argmin().item()


@pytest.mark.parametrize("kind", [str, int, np.int64, np.int8])
def test_a_name_goes_before_an_index_whatever_its_kind(kind):
    names = ["-1", "0", "1"]
    assert [picked(names, kind(name)) for name in names] == [0, 1, 2]
    assert picked(["bad", "good"], kind(1)) == 1
    assert picked(["1", "0"], kind(1)) == 0
    with pytest.raises(ValueError, match=r"`label` must be one of -1 \(0\), 0 \(1\), 1 \(2\), got"):
        picked(names, kind(3))


@given(st.permutations(["-1", "0", "1", "2"]), st.sampled_from([-1, 0, 1, 2]))
def test_numbers_as_names_in_any_order(names, wanted):
    assert names[picked(names, wanted)] == str(wanted)
    assert names[picked(names, str(wanted))] == str(wanted)


def test_two_labels_of_one_name_are_an_error_that_lists_them():
    cases = [(["a", "b", "a"], "a"), (["pos", "neg", "POS"], "Pos"), (["straße", "b", "STRASSE"], "Strasse")]
    for names, wanted in cases:
        listed = rf"{names[0]} \(0\), {names[2]} \(2\)"
        with pytest.raises(ValueError, match=rf"`label` '{wanted}' is .* several labels: {listed}"):
            picked(names, wanted)
    assert picked(["pos", "neg", "POS"], "POS") == 2
    assert picked(["a", "b", "a"], 2) == 2


@pytest.mark.parametrize("wanted", [True, False, np.True_, 1.0, ["a"]])
def test_what_is_neither_a_name_nor_an_index(wanted):
    with pytest.raises(ValueError, match="`label` must be one of a .*, got .*; pass a name or an index"):
        picked(["a", "b"], wanted)
    with pytest.raises(ValueError, match="`label` must be one of score"):
        picked(["score"], wanted)


def test_one_output():
    assert label(["score"], None).name == label(["score"], "Score").name == label(["score"], np.int64(0)).name
    with pytest.raises(ValueError, match="`label` must be None for a model with one output, got 1"):
        label(["score"], 1)


def test_against_is_read_alike():
    with pytest.raises(ValueError, match="`against` must be another label than `label`"):
        label(["-1", "0"], "0", against=0)


def test_whether_a_label_is_predicted():
    logits = torch.tensor([[1.0, 2.0, -1.0], [-3.0, -2.0, -1.0], [2.0, 1.0, 0.5]])
    config = BertConfig(num_labels=3)
    assert Label(config, 1, None, 1.0).predicted(logits) == [True, False, False]
    config.problem_type = "multi_label_classification"  # any number of them at once
    assert Label(config, 1, None, 1.0).predicted(logits) == [True, False, True]
    assert label(["score"], None).predicted(logits[:, :1]) is None
