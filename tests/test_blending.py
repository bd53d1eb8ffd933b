from __future__ import annotations

import numpy as np
import pytest
import torch

from datamodules.batch import RequestBatch
from datamodules.config import FeaturesConfig
from models.blending import DECAYS, RIDGES, SHARES, Blend, blend_in, choose_blend, unjudged
from models.correlated_history import CorrelatedHistory
from models.towers import Towers
from models.validation import request_ndcg
from tests.test_sets import make_set_world
from tests.tiny_data import ORDERED, N, hold_out, make_data, make_world
from tests.tiny_towers import make_towers, one_thread

R = 5
FACTORS = torch.from_numpy(np.random.default_rng(3).normal(size=(N, R)).astype(np.float32))


@pytest.fixture(scope="module", autouse=True)
def _alone():
    with one_thread():
        yield


@pytest.fixture(params=["cosine", "dot", "a set"])
def side(request):
    """Give towers and their data; those of sets have popularity behind all else."""
    is_set = request.param == "a set"
    world, held_out = hold_out(
        make_set_world(FeaturesConfig(item={"category": "categorical"})) if is_set else make_world(ORDERED)
    )
    data = make_data(world, validation=held_out)
    return data, make_towers(world, data, "dot" if is_set else request.param, n_blocks=0 if is_set else 2)


@torch.no_grad()
def score(towers: Towers, batch: RequestBatch) -> np.ndarray:
    """Score all items for each request."""
    items = towers.item_vectors(batch.popularity)  # (N, W)
    return (towers.request_vectors(batch, items)[0] @ items.T).numpy()  # (B, N)


def correlate(batch: RequestBatch, decay: float) -> np.ndarray:
    """Score all items by the correlation part, an event at a time."""
    factors, summed = FACTORS.numpy(), np.zeros((len(batch.history_rows), R))
    for user, length in enumerate(batch.arrays["history_lengths"].tolist()):
        rows = batch.history_rows[user, :length].numpy()
        weights = np.exp(-decay * np.arange(length)[::-1])
        summed[user] = weights @ factors[rows] / max(weights.sum(), 1) ** 0.5
    return summed @ factors.T


def has_history(batch: RequestBatch) -> torch.Tensor:
    return batch.arrays["history_lengths"] > 0


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_history_is_summed_up_to_its_length_the_last_events_most(decay):
    rng = np.random.default_rng(1)
    parts, lengths = rng.normal(size=(4, 6, R)).astype(np.float32), [0, 1, 4, 6]
    found = CorrelatedHistory(decay)(torch.from_numpy(parts), torch.tensor(lengths)).numpy()
    for history, length, summed in zip(parts, lengths, found, strict=True):
        weights = [np.exp(-decay * later) for later in range(length)][::-1]
        expected = sum((w * part for w, part in zip(weights, history, strict=False)), np.zeros(R))
        assert np.allclose(summed, expected / max(sum(weights), 1) ** 0.5, atol=1e-5)


def test_correlations_count_by_their_share_of_what_scores_vary(side):
    data, towers = side
    requests = list(data.drawn_requests(50))
    (batch,) = data.validation_batches
    plain, decay = score(towers, batch), 0.4
    with torch.no_grad():
        items = towers.item_vectors(batch.popularity)
        learned = [
            (towers.request_vectors(one, items)[0] @ items.T)[has_history(one)].numpy().var() for one in requests
        ]
    correlated = [correlate(one, decay)[has_history(one)].var() for one in requests]
    unit = np.sqrt(np.mean(learned) / np.mean(correlated))
    blend_in(towers, lambda _: FACTORS, Blend(0.3, decay, RIDGES[0]), requests)
    expected = plain + 0.3 * unit * correlate(batch, decay)
    assert np.allclose(score(towers, batch), expected, rtol=1e-4, atol=1e-4)
    assert not np.allclose(expected, plain, atol=0.05)


def test_nothing_is_blended_in_with_a_share_of_zero(side):
    data, towers = side
    blend_in(towers, lambda _: FACTORS, Blend(0.0, 0.0, RIDGES[0]), list(data.drawn_requests(9)))
    assert towers.user_tower.correlated_history is None
    assert towers.item_tower.history_dim == towers.item_tower.dim


def judge(towers: Towers, batches: list[RequestBatch]) -> float:
    """Validate towers as they are."""
    found: list[float] = []
    with torch.no_grad():
        for batch in batches:
            items = towers.item_vectors(batch.popularity)
            users, bonus = towers.request_vectors(batch, items)
            found += request_ndcg(users, bonus, items, batch)["novel"].tolist()
    return float(np.mean(found))


@pytest.mark.parametrize("is_ordered", [True, False])
def test_the_blend_that_validates_best_is_chosen(side, is_ordered):
    data, towers = side
    requests, batches = list(data.drawn_requests(50)), data.validation_batches
    factors = {RIDGES[0]: FACTORS, RIDGES[1]: -FACTORS.flip(0)}
    alone = judge(towers, batches)
    judged = choose_blend(towers, factors.__getitem__, is_ordered, requests, batches)
    tried = {}
    for ridge in RIDGES:
        for decay in DECAYS if is_ordered else (0.0,):
            for share in SHARES:
                blend = Blend(share, decay, ridge)
                blend_in(towers, factors.__getitem__, blend, requests)
                tried[blend] = judge(towers, batches)
                towers.item_tower.correlations, towers.user_tower.correlated_history = FACTORS[:, :0], None
    assert judged.ndcg_alone == pytest.approx(alone)
    assert judged.ndcg == pytest.approx(max(alone, *tried.values()))
    assert len(set(tried.values())) > 3  # they are told apart
    assert judged.blend.share == 0 or tried[judged.blend] == pytest.approx(judged.ndcg)


def test_correlations_that_know_what_comes_next_are_blended_in(side):
    data, towers = side
    (batch,) = data.validation_batches
    knowing = torch.zeros(N, N)  # each item goes with what its users take next
    for user, target in zip(batch.target_users.tolist(), batch.target_rows.tolist(), strict=True):
        history = batch.history_rows[user, : batch.arrays["history_lengths"][user]]
        knowing[history, target] += 1
        knowing[target, history] += 1
    values, columns = torch.linalg.eigh(knowing)  # (N,), (N, N)
    factors = columns * values.clamp(min=0).sqrt()  # (N, N)
    judged = choose_blend(towers, lambda _: factors, False, list(data.drawn_requests(50)), [batch])
    assert judged.blend.share > 0
    assert judged.ndcg > judged.ndcg_alone


def test_users_without_events_do_not_change_how_much_correlations_count(side):
    data, towers = side
    requests = list(data.drawn_requests(50))
    blend_in(towers, lambda _: FACTORS, Blend(0.3, 0.0, RIDGES[0]), requests)
    expected = towers.item_tower.correlations
    towers.item_tower.correlations, towers.user_tower.correlated_history = FACTORS[:, :0], None
    (batch,) = requests
    lengths = batch.arrays["history_lengths"]
    strangers = batch._replace(
        arrays={name: array[lengths == 0] for name, array in batch.arrays.items() if len(array) == len(lengths)},
        history_rows=batch.history_rows[lengths == 0],
        owned_users=batch.owned_users[:0],
        owned_rows=batch.owned_rows[:0],
    )
    assert len(strangers.history_rows)
    blend_in(towers, lambda _: FACTORS, Blend(0.3, 0.0, RIDGES[0]), [*requests, strangers, strangers])
    assert torch.allclose(towers.item_tower.correlations, expected)


def test_where_nothing_new_is_taken_the_blend_is_the_usual_one(side):
    data, towers = side
    (batch,) = data.validation_batches
    owned = batch._replace(target_owned=torch.zeros_like(batch.target_owned))
    for validation in ([], [owned]):
        assert choose_blend(towers, lambda _: FACTORS, True, [], validation) == unjudged(True)


def test_correlations_that_only_mislead_are_left_out(side):
    data, towers = side
    (batch,) = data.validation_batches
    targets = np.bincount(batch.target_rows.numpy(), minlength=N)
    misleading = torch.from_numpy(np.where(targets > 0, 0.0, 1.0).astype(np.float32))[:, None]  # (N, 1)
    judged = choose_blend(towers, lambda _: misleading, True, list(data.drawn_requests(50)), [batch])
    assert judged.blend.share == 0
    assert judged.ndcg == judged.ndcg_alone


def test_without_a_validation_correlations_count_a_little():
    ordered, of_a_set = (unjudged(is_ordered).blend for is_ordered in (True, False))
    for blend in (ordered, of_a_set):
        assert 0 < blend.share < max(SHARES)
        assert blend.ridge in RIDGES
    assert of_a_set.decay == 0
    assert ordered.decay in DECAYS


def test_users_without_items_have_no_correlations(side):
    data, towers = side
    blend_in(towers, lambda _: FACTORS, Blend(0.5, 0.0, RIDGES[0]), list(data.drawn_requests(50)))
    dim = towers.item_tower.dim
    with torch.no_grad():
        for batch in data.final_requests():
            items = towers.item_vectors(batch.popularity)
            users, _ = towers.request_vectors(batch, items)
            is_empty = ~has_history(batch)
            assert is_empty.any()
            assert not users[is_empty, dim : dim + R].any()
            assert users[~is_empty, dim : dim + R].any(dim=1).all()
