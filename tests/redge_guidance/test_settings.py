"""Every setting of `GuidanceConfig` acts, on more hosts than one."""

import pytest
import torch

from redge_guidance import GuidanceConfig, guide
from redge_guidance.estimators import ESTIMATORS, ReDGE, StraightThrough
from redge_guidance.reward import Reward
from redge_guidance.updates import Adam, Natural
from tests.helpers.hosts import JUMP, ONE_OF_EACH, masked
from tests.helpers.settings import plain_config
from tests.helpers.watching import guided, linear, log_p, outputs_of

TABLE = torch.randn(12, generator=torch.Generator().manual_seed(3))  # of as many tokens as any host has
every_host = pytest.mark.parametrize("make", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
FEW = {name: ONE_OF_EACH[name] for name in ("masked", "llada2", "gemma ddim", "amused")}
few_hosts = pytest.mark.parametrize("make", FEW.values(), ids=FEW)


class Watched(Reward):
    """Linear in the tokens of texts and of images; keeps what it is shown."""

    def __init__(self):
        self.seen = []

    def __call__(self, sample):
        tokens = getattr(sample, "tokens", sample)
        self.seen.append(tokens)
        return linear(TABLE)(tokens)


@every_host
def test_num_draws_is_how_often_the_reward_sees_the_batch(make):
    pipe, run = make()
    for draws in (1, 3):
        reward = Watched()
        pairs, _ = guided(pipe, run, reward, plain_config(num_draws=draws, update=JUMP.update))
        steps = [step for step, logits in pairs if logits is not None]
        going = [int(step.free.any(-1).sum()) for step in steps]
        assert [len(tokens) for tokens in reward.seen] == [draws * count for count in going]
        assert all(tokens.draws == draws for tokens in reward.seen)
        assert [len(tokens.weights) for tokens in reward.seen] == [draws * int(step.free.sum()) for step in steps]


@every_host
def test_support_is_the_number_of_columns_and_holds_the_likeliest_tokens(make):
    pipe, run = make()
    reward = Watched()
    pairs, _ = guided(pipe, run, reward, plain_config(support=3, num_draws=1, update=JUMP.update))
    steps = [step for step, logits in pairs if logits is not None]
    for step, tokens in zip(steps, reward.seen, strict=True):
        assert tokens.weights.shape[1] == 3
        likeliest = log_p(step).topk(3)
        kept = likeliest.values > -torch.inf
        assert torch.equal(tokens.support[kept], likeliest.indices[kept])
    whole = Watched()
    guided(pipe, run, whole, plain_config(support=None, num_draws=1, update=JUMP.update))
    assert all(tokens.support is None for tokens in whole.seen)


@few_hosts
@pytest.mark.parametrize("update", [Natural(num_updates=2), Adam(num_updates=5)], ids=["natural", "adam"])
def test_the_update_decides_how_often_the_reward_is_called(make, update):
    pipe, run = make()
    reward = Watched()
    _, trace = guided(pipe, run, reward, plain_config(update=update, num_draws=1))
    assert len(reward.seen) == update.num_updates * len(trace)


@every_host
def test_scale_is_the_nats_that_a_unit_of_reward_is_worth(make):
    """After a jump to the tilted p log q - log p is scale times the reward of the token, up to a constant a row."""
    pipe, run = make()
    for scale in (0.5, 3.0):
        config = plain_config(scale, "straight_through", JUMP.update, num_draws=1, support=None)
        pairs, _ = guided(pipe, run, Watched(), config)
        for step, logits in pairs:
            if logits is not None:
                tilted = (log_p(step) + scale * TABLE[: logits.shape[1]]).softmax(-1)
                torch.testing.assert_close((logits / step.temperature).softmax(-1), tilted, atol=1e-5, rtol=1e-4)


@every_host
@pytest.mark.parametrize("support", [None, 3])
def test_the_kl_of_what_the_scheduler_is_given_is_within_the_budget_of_every_sequence(make, support):
    pipe, run = make()
    budget, spent, calls = 0.05, [], outputs_of(pipe)
    config = plain_config(20.0, update=JUMP.update, num_draws=1, kl_budget=budget, support=support)
    pairs, _ = guided(pipe, run, Watched(), config)
    for (step, logits), (_, arguments, _) in zip(pairs, calls, strict=True):
        if logits is None:
            continue
        given = arguments["model_output"]
        given = given.permute(0, 2, 3, 1).flatten(1, 2) if given.ndim == 4 else given
        q = (given[step.free[:, -given.shape[1] :]] / step.temperature).log_softmax(-1)
        rows = (q.exp() * (q - log_p(step)).masked_fill(q == -torch.inf, 0)).sum(-1)
        sequence = step.free.nonzero()[:, 0]
        total = torch.zeros(len(step.ids)).index_add(0, sequence, rows)
        spent.append(total[sequence.unique()] / step.free.sum(-1)[sequence.unique()])
    assert torch.cat(spent).max() < budget * 1.001 + 1e-6
    assert torch.cat(spent).max() > budget * 0.95


@few_hosts
@pytest.mark.parametrize("name", ["straight_through", "gumbel_softmax"])
def test_a_soft_estimator_shows_soft_weights(make, name):
    pipe, run = make()
    for hard in (True, False):
        reward = Watched()
        estimator = ESTIMATORS[name](hard=hard)
        pairs, _ = guided(pipe, run, reward, plain_config(1.0, estimator, JUMP.update, num_draws=1, support=None))
        weights = torch.cat([tokens.weights.detach() for tokens in reward.seen])
        torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)))
        assert all(tokens.hard == hard for tokens in reward.seen)
        assert torch.equal(weights, weights.round()) == hard
        if name == "straight_through" and not hard:
            p = torch.cat([log_p(step).exp() for step, logits in pairs if logits is not None])
            torch.testing.assert_close(weights, p, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["masked", "images"])
def test_settings_reach_guidance_through_the_handle(name):
    pipe, run = ONE_OF_EACH[name]()
    reward = Watched()
    config = plain_config(update=Natural(num_updates=2), num_draws=3, support=2, start=0.5)
    with guide(pipe, reward, config) as handle:
        run()
    assert handle.config is config
    assert len(reward.seen) == 2 * len(handle.trace)
    assert all((tokens.draws, tokens.weights.shape[1]) == (3, 2) for tokens in reward.seen)
    assert min(step.progress for step in handle.trace) >= 0.5


@pytest.mark.parametrize(
    ("settings", "usual_scale", "counts"),
    [
        ({"estimator": "entropy_mix"}, None, [4, 1]),
        ({"estimator": "entropy_mix"}, 2.0, [1, 1]),  # the price is known
        ({"estimator": "entropy_mix", "kl_budget": 1.0}, 2.0, [4, 1]),
        ({}, None, [1, 1]),  # the samples of `soft` are all the same
        ({"estimator": ReDGE(hard=False)}, None, [4, 1]),
        ({"estimator": StraightThrough(hard=False)}, None, [1, 1]),
        ({"scale": 2.0}, None, [1, 1]),
        ({"num_draws": 2}, None, [2, 2]),
    ],
)
def test_more_samples_are_drawn_only_where_a_price_is_found_by_them(settings, usual_scale, counts):
    pipe, run = masked()
    reward = type("Priced", (Watched,), {"usual_scale": usual_scale})()
    guided(pipe, run, reward, GuidanceConfig(**settings, update=JUMP.update, every=1))
    assert [tokens.draws for tokens in reward.seen[:2]] == counts
