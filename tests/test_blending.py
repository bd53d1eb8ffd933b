from __future__ import annotations

import numpy as np
import pytest
import torch

from datamodules.batch import RequestBatch
from models import blending
from models.blending import DECAYS, RIDGES, SHARES, Blend, blend_in, choose_blend, unjudged
from models.correlated_history import CorrelatedHistory
from models.towers import Towers
from models.validation import request_ndcg
from tests.tiny_data import ORDERED, N, hold_out, make_data, make_world
from tests.tiny_towers import make_towers, one_thread

R = 5
FACTORS = torch.from_numpy(np.random.default_rng(3).normal(size=(N, R)).astype(np.float32))


@pytest.fixture(scope="module", autouse=True)
def _alone():
    with one_thread():
        yield


@pytest.fixture(params=["cosine", "dot"])
def side(request):
    world, held_out = hold_out(make_world(ORDERED))
    data = make_data(world, validation=held_out)
    return data, make_towers(world, data, request.param)


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


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_history_is_summed_up_to_its_length_the_last_events_most(decay):
    rng = np.random.default_rng(1)
    parts, lengths = rng.normal(size=(4, 6, R)).astype(np.float32), [0, 1, 4, 6]
    found = CorrelatedHistory(R, decay)(torch.from_numpy(parts), torch.tensor(lengths)).numpy()
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
        learned = [(towers.request_vectors(one, items)[0] @ items.T).numpy().var(ddof=1) for one in requests]
    correlated = [correlate(one, decay).var(ddof=1) for one in requests]
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
    if judged.ndcg > alone:
        assert tried[judged.blend] == pytest.approx(judged.ndcg)
    else:
        assert judged.blend.share == 0


def test_correlations_that_only_mislead_are_left_out(side):
    data, towers = side
    (batch,) = data.validation_batches
    targets = np.bincount(batch.target_rows.numpy(), minlength=N)
    misleading = torch.from_numpy(np.where(targets > 0, 0.0, 1.0).astype(np.float32))[:, None]  # (N, 1)
    judged = choose_blend(towers, lambda _: misleading, True, list(data.drawn_requests(50)), [batch])
    assert judged.blend.share == 0
    assert judged.ndcg == judged.ndcg_alone


def test_without_a_validation_correlations_count_a_little():
    assert 0 < unjudged(True).share <= min(0.2, max(SHARES))
    assert unjudged(False).decay == 0
    assert unjudged(True).decay in blending.DECAYS


def test_users_without_items_have_no_correlations(side):
    data, towers = side
    blend_in(towers, lambda _: FACTORS, Blend(0.5, 0.0, RIDGES[0]), list(data.drawn_requests(50)))
    dim = towers.item_tower.dim
    with torch.no_grad():
        for batch in data.final_requests():
            items = towers.item_vectors(batch.popularity)
            users, _ = towers.request_vectors(batch, items)
            is_empty = batch.arrays["history_lengths"] == 0
            assert not users[is_empty, dim : dim + R].any()
            assert users[~is_empty, dim : dim + R].any(dim=1).all()
