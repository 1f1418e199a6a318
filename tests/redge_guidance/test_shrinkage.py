"""What few draws say of seldom drawn tokens is held back: `G = g / (q + max(damping, 1 / num_draws))`."""

import pytest
import torch

from redge_guidance import guide
from redge_guidance.updates import Gradient, Natural
from tests.helpers.hosts import ONE_OF_EACH
from tests.helpers.settings import plain_config
from tests.helpers.watching import linear

TABLE = torch.randn(12, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("damping", "draws", "added"), [(0.0, 8, 1 / 8), (0.3, 8, 0.3), (1e-3, 2000, 1e-3)])
def test_the_larger_of_damping_and_resolution_is_added_to_q(damping, draws, added):
    torch.manual_seed(0)
    log_q, g = torch.randn(3, 5).log_softmax(-1), torch.randn(3, 5)
    found = Gradient(g, "logits", resolution=1 / draws).at_sample(log_q, damping)
    torch.testing.assert_close(found, g / (log_q.exp() + added))
    torch.testing.assert_close(Gradient(g, "logits").at_logits(log_q), g)


def test_a_gradient_at_the_sample_is_left_as_it_is():
    g = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Gradient(g, "sample", resolution=0.5).at_sample(torch.randn(3, 5), 0.5), g)


@pytest.mark.parametrize("name", ["masked", "llada2", "images"])
@pytest.mark.parametrize("draws", [4, 16])
def test_end_to_end_the_score_function_is_shrunk_by_its_draws(name, draws):
    """A spy in the place of the update sees the parts of the gradient, and what becomes of them."""
    pipe, run = ONE_OF_EACH[name]()
    seen = []

    class Spy:
        def __call__(self, log_p, ascent, project):
            parts = ascent.gradients(log_p[:])
            ascent.used(parts[0].value)
            seen.append((parts, log_p[:]))
            return log_p[:].clone()

    def reward(sample):  # of texts, or of pixels
        return sample.mean((1, 2, 3)) if isinstance(sample, torch.Tensor) else linear(TABLE)(sample)

    config = plain_config(estimator="reinforce_loo", update=Spy(), num_draws=draws, support=None)
    with guide(pipe, reward, config):
        run()
    assert seen
    for (part,), log_q in seen:
        assert (part.at, part.resolution) == ("logits", 1 / draws)
        expected = part.value / (log_q.exp() + 1 / draws)
        torch.testing.assert_close(part.at_sample(log_q, Natural().damping), expected)
