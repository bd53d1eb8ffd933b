from __future__ import annotations

import math

import pytest
import torch
from models.losses import (
    Sparse,
    no_sparse,
    novel_loss,
    repeat_loss,
    softmax_loss,
    target_logits,
    weighted_log_sum_exp,
    window_loss,
)
from tests.tiny_data import BASKETS, ORDERED, batches, hold_out, make_data, make_world

from models import losses

B, W, N, M = 7, 5, 11, 9
CELLS = [(0, 3), (0, 8), (2, 0), (2, 1), (2, 10), (4, 4), (6, 2)]
BARRED = (1, 4)  # positions in CELLS that hold -inf


def double(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def make(seed: int, bars: tuple[int, ...] = ()):
    generator = torch.Generator().manual_seed(seed)
    users, items, values = (double(generator, *shape) for shape in ((B, W), (N, W), (len(CELLS),)))
    barred = torch.zeros(len(CELLS), dtype=torch.float64)
    barred[list(bars)] = -math.inf
    rows, columns = (torch.tensor(part) for part in zip(*CELLS, strict=True))
    return users, items, values, Sparse(rows, columns, values + barred)


def dense_logits(users, items, sparse) -> torch.Tensor:
    cells = zip(sparse.rows.tolist(), sparse.columns.tolist(), sparse.values, strict=True)
    added = {(row, column): value for row, column, value in cells}
    zero = torch.zeros((), dtype=users.dtype)
    return torch.stack(
        [
            torch.stack([users[b] @ items[i] + added.get((b, i), zero) for i in range(len(items))])
            for b in range(len(users))
        ]
    )


@pytest.fixture(params=[1, 3, B, 100], ids="rows_{}".format)
def _chunks(request, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_CELLS", request.param * N)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("bars", [(), BARRED], ids=["finite", "barred"])
def test_loss_and_all_gradients_equal_the_naive_softmax(bars):
    users, items, values, sparse = make(1, bars)
    generator = torch.Generator().manual_seed(2)
    rows = torch.randint(B, (M,), generator=generator)
    columns = torch.tensor([5, 9, 6, 7, 5, 9, 6, 7, 5])  # no cell of CELLS
    weights = torch.rand(M, generator=generator, dtype=torch.float64)
    found = softmax_loss(
        users, items, sparse, target_logits(users, items, rows, columns), rows, weights
    )
    naive_logits = dense_logits(users, items, sparse)
    picked = -torch.log_softmax(naive_logits, dim=1)[rows, columns]
    naive = (picked * weights).sum() / weights.sum()
    assert (found - naive).abs() <= 1e-10
    inputs = (users, items, values)
    for got, expected in zip(
        torch.autograd.grad(found, inputs),
        torch.autograd.grad(naive, inputs),
        strict=True,
    ):
        assert torch.isfinite(got).all()
        assert (got - expected).abs().max() <= 1e-10


@pytest.mark.usefixtures("_chunks")
def test_weighted_log_sum_exp_passes_gradcheck():
    users, items, values, sparse = make(3)
    weights = torch.rand(B, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def compute(users, items, values):
        return 3 * weighted_log_sum_exp(
            users, items, Sparse(sparse.rows, sparse.columns, values), weights
        )

    assert torch.autograd.gradcheck(compute, (users, items, values))


@pytest.mark.usefixtures("_chunks")
def test_a_row_without_weight_may_have_no_item_left():
    generator = torch.Generator().manual_seed(4)
    users, items = double(generator, B, W), double(generator, N, W)
    sparse = Sparse(torch.full((N,), 2), torch.arange(N), torch.full((N,), -math.inf))
    kept = [0, 1, 3, 4, 5, 6]
    weights = torch.zeros(B, dtype=torch.float64)
    weights[kept] = 1.0
    found = weighted_log_sum_exp(users, items, sparse, weights)
    naive = (users[kept] @ items.T).logsumexp(dim=1).sum()
    assert (found - naive).abs() <= 1e-10
    gradients = (
        torch.autograd.grad(found, (users, items)),
        torch.autograd.grad(naive, (users, items)),
    )
    for got, expected in zip(*gradients, strict=True):
        assert (got - expected).abs().max() <= 1e-10


def test_logits_beyond_the_range_of_powers_are_summed():
    users, items, _, sparse = make(12)
    users, items = ((1e3 * part.detach()).float().requires_grad_() for part in (users, items))
    found = weighted_log_sum_exp(users, items, sparse, torch.ones(B))
    expected = dense_logits(users.double(), items.double(), sparse).logsumexp(dim=1).sum()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for gradient in torch.autograd.grad(found, (users, items)):
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() > 0


def test_no_user_costs_nothing():
    generator = torch.Generator().manual_seed(5)
    users, items = double(generator, 0, W), double(generator, N, W)
    nothing = torch.zeros(0, dtype=torch.int64)
    logits = target_logits(users, items, nothing, nothing)
    loss = softmax_loss(users, items, no_sparse(users), logits, nothing, torch.zeros(0))
    assert loss == 0
    loss.backward()
    assert (items.grad == 0).all()


def test_autocast_does_not_reach_the_loss():
    users, items, _, sparse = make(7)
    users, items = (part.detach().float().requires_grad_() for part in (users, items))
    rows = torch.arange(B)

    def compute() -> tuple[torch.Tensor, ...]:
        logits = target_logits(users, items, rows, rows)
        loss = softmax_loss(users, items, sparse, logits, rows, torch.ones(B))
        return logits, loss, *torch.autograd.grad(loss, (users, items))

    expected = compute()
    with torch.autocast("cpu", torch.bfloat16):
        found = compute()
    assert len(expected) == 4
    for got, value in zip(found, expected, strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got, value)


def test_window_loss_is_the_mean_cross_entropy_of_the_targets():
    world = make_world(ORDERED)
    batch = batches(make_data(world))[0]
    generator = torch.Generator().manual_seed(10)
    places = batch.is_target.nonzero().tolist()
    users = torch.randn(len(places), W, generator=generator, dtype=torch.float64)
    items = torch.randn(len(world.catalogue), W, generator=generator, dtype=torch.float64)
    losses_of = [
        -torch.log_softmax(items @ user, dim=0)[batch.history_rows[b, i]]
        for user, (b, i) in zip(users, places, strict=True)
    ]
    assert (window_loss(users, items, batch) - sum(losses_of) / len(losses_of)).abs() <= 1e-10


def test_repeat_loss_ranks_all_items_and_half_as_much_the_novel_ones():
    world, validation = hold_out(make_world(BASKETS))
    (batch,) = make_data(world, validation=validation).validation_batches
    generator = torch.Generator().manual_seed(11)
    users = torch.randn(len(batch.history_rows), W, generator=generator)
    items = torch.randn(len(world.catalogue), W, generator=generator)
    bonus = torch.randn(len(batch.owned_rows), generator=generator)
    logits, owned = (
        (users.double() @ items.double().T),
        (batch.owned_users, batch.owned_rows),
    )
    among_all = logits.index_put(owned, bonus.double(), accumulate=True).log_softmax(dim=1)
    among_novel = logits.index_put(owned, torch.tensor(-math.inf, dtype=torch.float64)).log_softmax(
        dim=1
    )
    targets = list(
        zip(
            *(part.tolist() for part in batch[4:7]),
            batch.target_owned.tolist(),
            strict=True,
        )
    )
    everything = [(weight, -weight * among_all[b, row]) for b, row, weight, _ in targets]
    novel = [
        (weight, -weight * among_novel[b, row]) for b, row, weight, place in targets if place < 0
    ]
    assert 0 < len(novel) < len(targets)
    expected_all, expected_novel = (
        sum(x for _, x in part) / sum(w for w, _ in part) for part in (everything, novel)
    )
    assert (novel_loss(users, items, batch) - expected_novel).abs() <= 1e-5
    assert (
        repeat_loss(users, bonus, items, batch) - expected_all - 0.5 * expected_novel
    ).abs() <= 1e-5


def peak_bytes(positions: int, n_items: int) -> int:
    """Return the most bytes that a step holds beyond its inputs, by torch's own record of allocations."""
    generator = torch.Generator().manual_seed(9)
    users = torch.randn(positions, W, generator=generator).requires_grad_()
    items = torch.randn(n_items, W, generator=generator).requires_grad_()
    targets = torch.arange(positions)
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as profile:
        logits = target_logits(users, items, targets, targets)
        softmax_loss(
            users, items, no_sparse(users), logits, targets, torch.ones(positions)
        ).backward()
    events = [
        event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def test_four_times_the_positions_need_no_more_memory():
    few, many = peak_bytes(512, 20_000), peak_bytes(2048, 20_000)
    naive = 2048 * 20_000 * 4
    assert few > losses.CHUNK_CELLS * 4  # the record sees the chunks
    assert many <= 1.15 * few
    assert many < 0.5 * naive
