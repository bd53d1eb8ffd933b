from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from models.sampled_softmax import (
    Negatives,
    NegativeSampler,
    find_own,
    mark_owned,
    sampled_softmax_loss,
)
from tests.models.tiny_towers import make_module, make_towers
from tests.tiny_data import ORDERED, batches, hold_out, make_data, make_world

from models import sampled_softmax

M, W, N = 7, 5, 23


def make_vectors(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw users (M, W), items (N, W) and the target of each user."""
    generator = torch.Generator().manual_seed(seed)
    users = torch.randn(M, W, generator=generator, dtype=torch.float64).requires_grad_()
    items = torch.randn(N, W, generator=generator, dtype=torch.float64).requires_grad_()
    return users, items, torch.randint(N, (M,), generator=generator)


def sampled(users, items, targets, negatives: Negatives, weights=None) -> torch.Tensor:
    """Compute the loss of targets that stand alone in their windows."""
    positive = (users * items[targets]).sum(dim=1)
    shifts = negatives.correct(negatives.rows.unsqueeze(0) == targets.unsqueeze(1))
    weights = torch.ones(M, dtype=torch.float64) if weights is None else weights
    vectors = items[negatives.rows]
    return sampled_softmax_loss(
        users,
        vectors,
        shifts,
        torch.arange(M),
        positive,
        torch.arange(M),
        weights,
    )


def each(users, items, targets, negatives: Negatives) -> torch.Tensor:
    """Compute the loss of each target, (M,)."""
    only = torch.eye(M, dtype=torch.float64)
    losses = [sampled(users, items, targets, negatives, weights) for weights in only]
    return torch.stack(losses)


def full(users, items, targets) -> torch.Tensor:
    return -torch.log_softmax(users @ items.T, dim=1)[torch.arange(M), targets]


def errors(seed: int, n: int, sampler: NegativeSampler) -> tuple[float, float]:
    """Return how far the loss, and its gradients relative to their size, are from the whole softmax."""
    users, items, targets = make_vectors(seed)
    torch.manual_seed(seed)
    drawn = sampler.draw()
    assert len(drawn.rows) == n
    losses = sampled(users, items, targets, drawn), full(users, items, targets).mean()
    found, expected = (
        torch.cat([*map(torch.ravel, torch.autograd.grad(loss, (users, items)))]) for loss in losses
    )
    return abs((losses[0] - losses[1]).item()), ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("n_rows", [1, 3, M])
def test_a_sample_of_every_item_once_is_the_whole_softmax(n_rows, monkeypatch):
    """Value and gradient, however many targets are looked at at once, by weight."""
    monkeypatch.setattr(sampled_softmax, "CHUNK_CELLS", n_rows * N)
    users, items, targets = make_vectors(1)
    weights = torch.rand(M, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    weights[2] = 0
    everything = Negatives(torch.arange(N), torch.zeros(N, dtype=torch.float64))
    found = 3 * sampled(users, items, targets, everything, weights)
    expected = 3 * (full(users, items, targets) * weights).sum() / weights.sum()
    assert (found - expected).abs() <= 1e-12
    pairs = [torch.autograd.grad(loss, (users, items)) for loss in (found, expected)]
    for got, wanted in zip(*pairs, strict=True):
        assert (got - wanted).abs().max() <= 1e-12


def test_where_nothing_has_a_weight_there_is_no_loss_and_weights_are_constants():
    users, items, targets = make_vectors(1)
    drawn = Negatives(torch.arange(0, N, 2), torch.zeros(len(range(0, N, 2)), dtype=torch.float64))
    assert sampled(users, items, targets, drawn, torch.zeros(M, dtype=torch.float64)).item() == 0
    weights = torch.ones(M, dtype=torch.float64, requires_grad=True)
    sampled(users, items, targets, drawn, weights).backward()
    assert weights.grad is None


@pytest.mark.parametrize("n_rows", [1, 2, M])
def test_what_stands_in_a_window_is_no_negative_of_its_targets(n_rows, monkeypatch):
    """Also where a row has several targets, or none, and where nothing is left to be told from."""
    rows = torch.tensor([5, 0, 5, 7, 11, 2])
    monkeypatch.setattr(sampled_softmax, "CHUNK_CELLS", n_rows * len(rows))
    users, items, _ = make_vectors(6)
    target_rows, targets = (
        torch.tensor([0, 0, 2, 3, 3, 3, 6, 6]),
        torch.tensor([3, 9, 20, 1, 4, 22, 16, 8]),
    )
    of_row = torch.tensor([0, 0, 0, 1, 1, 3, 3])
    generator = torch.Generator().manual_seed(7)
    is_own, weights = (
        torch.rand(4, len(rows), generator=generator) < 0.5,
        torch.rand(8, generator=generator).double(),
    )
    is_own[3] = True
    expected = torch.randn(len(rows), generator=generator).double()
    logits = (users[target_rows] * items[targets]).sum(dim=1)
    found = sampled_softmax_loss(
        users,
        items[rows],
        Negatives(rows, expected).correct(is_own),
        of_row,
        logits,
        target_rows,
        weights,
    )
    naive = []
    for row, target in zip(target_rows.tolist(), targets.tolist(), strict=True):
        allowed = (~is_own[of_row[row]]).nonzero().flatten().tolist()
        others = [users[row] @ items[rows[k]] - expected[k] for k in allowed]
        own = users[row] @ items[target]
        naive.append(torch.stack([own, *others]).logsumexp(dim=0) - own)
    wanted = (torch.stack(naive) * weights).sum() / weights.sum()
    assert (found - wanted).abs() <= 1e-12
    pairs = [torch.autograd.grad(loss, (users, items)) for loss in (found, wanted)]
    for got, gradient in zip(*pairs, strict=True):
        assert (got - gradient).abs().max() <= 1e-12


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_vectors_of_half_precision_lose_no_gradient(half):
    """Of many targets each gradient is small: what is formed in the forward pass has no scale on it yet."""
    n_targets = 5_000
    generator = torch.Generator().manual_seed(12)
    users = torch.randn(n_targets, W, generator=generator).to(half).requires_grad_()
    items = torch.randn(N, W, generator=generator).to(half).requires_grad_()
    targets = torch.randint(N, (n_targets,), generator=generator)
    rows = torch.arange(n_targets)
    with torch.autocast("cpu", half):
        logits = (users.float() * items[targets].float()).sum(dim=1)
        is_own = torch.arange(N).unsqueeze(0) == targets.unsqueeze(1)
        shifts = Negatives(torch.arange(N), torch.zeros(N)).correct(is_own)
        found = sampled_softmax_loss(
            users, items, shifts, rows, logits, rows, torch.ones(n_targets)
        )
    exact_users, exact_items = (part.detach().double().requires_grad_() for part in (users, items))
    expected = -torch.log_softmax(exact_users @ exact_items.T, dim=1)[rows, targets].mean()
    assert found.dtype == torch.float32
    assert (found - expected).abs() <= 1e-5
    scale = 2.0**16  # as float16 is trained with
    pairs = (
        torch.autograd.grad(scale * found, (users, items)),
        torch.autograd.grad(scale * expected, (exact_users, exact_items)),
    )
    for got, wanted in zip(*pairs, strict=True):
        assert (got - wanted).norm() <= 0.01 * wanted.norm()


def test_loss_and_gradient_converge_to_the_whole_softmax():
    """Errors fall like one over the root of the draws."""
    means = []
    for n in (100, 10_000):
        sampler = NegativeSampler.make(n, torch.ones(N))
        means.append(np.mean([errors(seed, n, sampler) for seed in range(12)], axis=0))
    few, many = means
    assert (many < few / 4).all()
    assert many[0] <= 0.01
    assert many[1] <= 0.03


def test_half_of_what_is_drawn_are_targets_where_most_items_never_are():
    counts = torch.zeros(1_000, dtype=torch.int64)
    counts[[7, 300, 999]] = torch.tensor([5, 1, 2])
    sampler = NegativeSampler.make(30_000, counts)
    torch.manual_seed(7)
    negatives = sampler.draw()
    assert torch.equal(negatives.log_expected, sampler.log_expected[negatives.rows])
    drawn = torch.bincount(negatives.rows, minlength=1_000).double()
    expected = sampler.log_expected.exp().double()
    assert expected.sum() == pytest.approx(30_000, rel=1e-5)
    assert (drawn[[7, 300, 999]] / expected[[7, 300, 999]] - 1).abs().max() <= 0.1
    assert drawn[[7, 300, 999]].sum() == pytest.approx(15_000, rel=0.02)
    assert NegativeSampler.make(0, counts) is None
    others = NegativeSampler.make(400, torch.ones(1_000))
    assert others.pool.tolist() == list(range(1_000))


def test_own_items_are_marked_and_padding_is_not():
    rows = torch.tensor([[4, 7, 4, 0], [0, 2, 0, 0], [9, 9, 0, 0]])
    lengths, negatives = torch.tensor([3, 2, 0]), torch.tensor([0, 2, 4, 7, 9, 4])
    own = [{4, 7}, {0, 2}, set()]
    naive = torch.tensor([[row in mine for row in negatives.tolist()] for mine in own])
    assert torch.equal(find_own(rows, lengths, negatives, 10), naive)


@dataclass(frozen=True)
class Fixed:
    """Draws these items."""

    rows: torch.Tensor

    def draw(self) -> Negatives:
        return Negatives(self.rows, torch.zeros(len(self.rows)))


def assert_agree(module, found: torch.Tensor, naive: torch.Tensor) -> None:
    """Compare two losses, and their gradients for whatever is trained."""
    assert (found - naive).abs() <= 1e-5
    parameters = [parameter for parameter in module.towers.parameters() if parameter.requires_grad]
    pairs = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (found, naive)]
    for got, wanted in zip(*pairs, strict=True):
        assert (got is None) == (wanted is None)
        assert got is None or torch.allclose(got, wanted, rtol=0, atol=1e-5)


def test_a_step_tells_each_target_from_what_its_user_does_not_have():
    world = make_world(ORDERED)
    data = make_data(world)
    batch, module = batches(data)[0], make_module(make_towers(world, data))
    module.sampler = Fixed(torch.arange(len(world.catalogue)))
    found = module.window_step(batch)
    items = module.towers.item_vectors(torch.zeros(len(world.catalogue), 0))
    users = module.towers.window_vectors(batch, items) / module.temperature
    losses = []
    for user, (b, i) in zip(users, batch.is_target.nonzero().tolist(), strict=True):
        length, target = (
            int(batch.arrays["history_lengths"][b]),
            batch.history_rows[b, i],
        )
        own = batch.history_rows[b, :length]
        logits = (items @ user).index_fill(0, own[own != target], -math.inf)
        losses.append(-torch.log_softmax(logits, dim=0)[target])
    naive = torch.stack(losses).mean()
    assert_agree(module, found, naive)


@pytest.mark.parametrize("n_drawn", [None, 5, 1])
def test_a_request_tells_each_target_from_what_its_user_has_not(n_drawn):
    without_context = replace(ORDERED.features, context={})  # one request per user then
    world, validation = hold_out(
        make_world(replace(ORDERED, ties="simultaneous", features=without_context))
    )
    data = make_data(world, validation=validation)
    module = make_module(make_towers(world, data))
    drawn = (
        torch.arange(len(world.catalogue))
        if n_drawn is None
        else torch.tensor([3, 8, 11, 19, 20])[:n_drawn]
    )
    module.sampler = Fixed(drawn)
    batch = max(data.validation_batches, key=lambda batch: len(batch.target_rows))
    assert (batch.target_users.bincount() > 1).any()
    assert (batch.target_owned >= 0).any()
    found = module.request_step(batch)
    items = module.towers.item_vectors(batch.popularity)
    users = module.towers.request_vectors(batch, items)[0] / module.temperature
    losses, weights = [], []
    columns = (
        batch.target_users,
        batch.target_rows,
        batch.target_weights,
        batch.target_owned,
    )
    for b, target, weight, owned in zip(*columns, strict=True):
        if owned >= 0:
            continue
        mine = torch.cat(
            [
                batch.owned_rows[batch.owned_users == b],
                batch.target_rows[batch.target_users == b],
            ]
        )
        others = drawn[~torch.isin(drawn, mine)]
        logits = items[torch.cat([target.unsqueeze(0), others])] @ users[b]
        losses.append(-torch.log_softmax(logits, dim=0)[0] * weight)
        weights.append(weight)
    naive = torch.stack(losses).sum() / torch.stack(weights).sum()
    assert_agree(module, found, naive)


def test_owned_items_are_marked_but_for_those_that_nobody_looks_at():
    users, rows = torch.tensor([0, 0, 2, 2]), torch.tensor([4, 10, 0, 9])
    negatives = torch.tensor([0, 4, 9, 9])
    expected = [[False, True, False, False], [False] * 4, [True, False, True, True]]
    assert mark_owned(users, rows, 3, negatives, 10).tolist() == expected
