from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from models.objectives import sampled_window_loss
from models.sampled_softmax import find_own, log_q_losses, sampled_softmax_losses
from models.sampling import Negatives, NegativeSampler
from tests.tiny_data import ORDERED, batches, make_data, make_world
from tests.tiny_towers import make_module, make_towers

M, W, N = 7, 5, 23


def make_vectors(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw users (M, W), items (N, W) and the target of each user."""
    generator = torch.Generator().manual_seed(seed)
    users = torch.randn(M, W, generator=generator, dtype=torch.float64).requires_grad_()
    items = torch.randn(N, W, generator=generator, dtype=torch.float64).requires_grad_()
    return users, items, torch.randint(N, (M,), generator=generator)


def sampled(users, items, targets, negatives: Negatives) -> torch.Tensor:
    positive = (users * items[targets]).sum(dim=1)
    is_hit = negatives.rows.unsqueeze(0) == targets.unsqueeze(1)
    return sampled_softmax_losses(positive, users @ items[negatives.rows].T, negatives.log_expected, is_hit)


def full(users, items, targets) -> torch.Tensor:
    return -torch.log_softmax(users @ items.T, dim=1)[torch.arange(M), targets]


def errors(seed: int, n: int, sampler: NegativeSampler) -> tuple[float, float]:
    """Return how far the loss, and its gradients relative to their size, are from the whole softmax."""
    users, items, targets = make_vectors(seed)
    torch.manual_seed(seed)
    drawn = sampler.draw(targets)
    assert len(drawn.rows) == n
    losses = sampled(users, items, targets, drawn).mean(), full(users, items, targets).mean()
    found, expected = (torch.cat([*map(torch.ravel, torch.autograd.grad(loss, (users, items)))]) for loss in losses)
    return abs((losses[0] - losses[1]).item()), ((found - expected).norm() / expected.norm()).item()


def test_a_sample_of_every_item_once_is_the_whole_softmax():
    users, items, targets = make_vectors(1)
    everything = Negatives(torch.arange(N), torch.zeros(N, dtype=torch.float64))
    found, expected = sampled(users, items, targets, everything), full(users, items, targets)
    assert (found - expected).abs().max() <= 1e-12
    pairs = [torch.autograd.grad(losses.sum(), (users, items)) for losses in (found, expected)]
    for got, wanted in zip(*pairs, strict=True):
        assert (got - wanted).abs().max() <= 1e-12


@pytest.mark.parametrize("in_batch", [0, 1])
def test_loss_and_gradient_converge_to_the_whole_softmax(in_batch):
    """Errors fall like one over the root of the draws, whatever the mixture."""
    means = []
    for uniform in (100, 10_000):
        shares = torch.full((N,), 1 / N)  # of targets that are drawn evenly below
        sampler = NegativeSampler(uniform, in_batch * uniform // 100, shares)
        n = uniform + in_batch * uniform // 100
        means.append(np.mean([errors(seed, n, sampler) for seed in range(12)], axis=0))
    few, many = means
    assert (many < few / 4).all()
    assert many[0] <= 0.01
    assert many[1] <= 0.03


def test_the_sum_over_items_is_unbiased():
    """Over all possible single draws, weighted by their chance, the sum is the one over the catalogue."""
    users, items, targets = (part.detach() for part in make_vectors(2))
    shares = torch.rand(N, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    shares /= shares.sum()
    sampler = NegativeSampler(3, 2, shares)
    chance = (3 / N + 2 * shares) / 5  # of one draw of five
    expected_count = sampler.log_expected(torch.arange(N)).exp()
    assert (expected_count - 5 * chance).abs().max() <= 1e-6
    positive = (users * items[targets]).sum(dim=1)
    sums = torch.zeros(M, dtype=torch.float64)
    for row in range(N):
        drawn = Negatives(torch.tensor([row]), chance[[row]].log())
        sums += chance[row] * (sampled(users, items, targets, drawn) + positive).exp()
    assert (sums - (users @ items.T).exp().sum(dim=1)).abs().max() <= 1e-9


def test_log_q_is_the_softmax_over_corrected_logits():
    users, items, targets = (part.detach() for part in make_vectors(4))
    generator = torch.Generator().manual_seed(5)
    rows, expected = torch.randint(N, (11,), generator=generator), torch.randn(N, generator=generator).double()
    is_hit = rows.unsqueeze(0) == targets.unsqueeze(1)
    logits = users @ items.T
    found = log_q_losses(logits[torch.arange(M), targets], logits[:, rows], expected[targets], expected[rows], is_hit)
    for m in range(M):
        own = logits[m, targets[m]] - expected[targets[m]]
        others = [logits[m, row] - expected[row] for row in rows.tolist() if row != targets[m]]
        naive = math.log(sum(math.exp(value) for value in [own, *others])) - own
        assert found[m].item() == pytest.approx(float(naive), abs=1e-10)


def test_draws_come_as_often_as_is_said():
    generator = torch.Generator().manual_seed(6)
    shares = torch.rand(N, generator=generator)
    shares /= shares.sum()
    targets = torch.multinomial(shares, 200_000, replacement=True, generator=generator)
    sampler = NegativeSampler(30_000, 70_000, shares)
    torch.manual_seed(7)
    rows = sampler.draw(targets).rows
    counts = torch.bincount(rows, minlength=N)
    assert (counts / sampler.log_expected(torch.arange(N)).exp() - 1).abs().max() <= 0.1
    assert NegativeSampler.make(0, 5, shares) is None


def test_own_items_are_marked_and_padding_is_not():
    rows = torch.tensor([[4, 7, 4, 0], [0, 2, 0, 0], [9, 9, 0, 0]])
    lengths, negatives = torch.tensor([3, 2, 0]), torch.tensor([0, 2, 4, 7, 9, 4])
    own = [{4, 7}, {0, 2}, set()]
    naive = torch.tensor([[row in mine for row in negatives.tolist()] for mine in own])
    assert torch.equal(find_own(rows, lengths, negatives, 10), naive)


@dataclass(frozen=True)
class Everything:
    """Draws every item exactly once."""

    n_items: int

    def draw(self, target_rows: torch.Tensor) -> Negatives:
        return Negatives(torch.arange(self.n_items), torch.zeros(self.n_items))

    def log_expected(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(rows))


def test_a_step_tells_each_target_from_what_its_user_does_not_have():
    world = make_world(ORDERED)
    data = make_data(world)
    batch, module = batches(data)[0], make_module(make_towers(world, data))
    module.sampler = Everything(len(world.catalogue))
    found = module.window_step(batch)
    items = module.towers.item_vectors(torch.zeros(len(world.catalogue), 0))
    users = module.towers.window_vectors(batch, items) / module.temperature
    losses = []
    for b, i in batch.is_target.nonzero().tolist():
        length, target = int(batch.arrays["history_lengths"][b]), batch.history_rows[b, i]
        own = batch.history_rows[b, :length]
        logits = (items @ users[b, i]).index_fill(0, own[own != target], -math.inf)
        losses.append(-torch.log_softmax(logits, dim=0)[target])
    naive = torch.stack(losses).mean()
    assert (found - naive).abs() <= 1e-5
    parameters = [parameter for parameter in module.towers.parameters() if parameter.requires_grad]
    pairs = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (found, naive)]
    for got, wanted in zip(*pairs, strict=True):
        assert (got is None) == (wanted is None)
        assert got is None or torch.allclose(got, wanted, rtol=0, atol=1e-5)


def test_a_target_without_weight_costs_nothing():
    world = make_world(ORDERED)
    batch = batches(make_data(world))[0]
    nobody = batch._replace(target_weights=torch.zeros_like(batch.target_weights))
    generator = torch.Generator().manual_seed(8)
    users = torch.randn(*batch.history_rows.shape, W, generator=generator)
    items = torch.randn(len(world.catalogue), W, generator=generator)
    nothing = torch.zeros(0)
    drawn = Negatives(torch.arange(3), torch.zeros(3))
    for correction in ("negatives", "every_logit"):
        assert sampled_window_loss(users, items, nobody, drawn, nothing, correction) == 0
