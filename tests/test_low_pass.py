"""The low-pass filter of who has what, against a whole decomposition and scores one by one; what validation finds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.test_train import BASKETS as BASKET_RUN
from tests.test_train import ORDERED as ORDERED_RUN
from tests.test_train import QUIET, SMALL, make_tables

import run_finishing
import run_verdicts
import train
from models import eigenvectors, low_pass
from models.correlated_history import CorrelatedHistory
from models.jury import Figures
from models.low_pass import POWER, LowPass, add_low_pass, choose_low_pass, filter_vectors, pick
from models.smooth_factors import find_smooth_factors
from serve import Recommender
from serve.index import Neighbours
from tests.models.tiny_towers import make_towers, one_thread
from tests.tiny_data import BASKETS, ORDERED, N, hold_out, make_data, make_world

NONE = LowPass(0, 0.0)
K = 5


@pytest.fixture(scope="module", autouse=True)
def _alone():
    with one_thread():
        yield


@pytest.fixture(params=[(ORDERED, "cosine"), (ORDERED, "dot"), (BASKETS, "dot")], ids=["cosine", "dot", "baskets"])
def side(request):
    config, similarity = request.param
    world, held_out = hold_out(make_world(replace(config, repeats="exclude")))
    data = make_data(world, validation=held_out)
    return data, make_towers(world, data, similarity)


def draw_pairs(n_users: int, n_items: int, seed: int = 0) -> np.ndarray:
    """Say who has what, (U, N): users of three tastes, one item that nobody has and one user who has nothing."""
    rng = np.random.default_rng(seed)
    likes = 0.05 + 0.5 * (np.arange(n_users)[:, None] % 3 == np.arange(n_items) % 3)
    owned = (rng.random((n_users, n_items)) < likes).astype(np.float64)
    owned[:, 4] = 0
    owned[7] = 0
    return owned


def filter_of(owned: np.ndarray, factors: int) -> torch.Tensor:
    user, item = owned.nonzero()
    twice = np.append(np.arange(len(user)), 0)  # what comes twice is one pair
    return filter_vectors(find_smooth_factors(user[twice], item[twice], owned.shape, factors, seed=1), factors)


def filter_by_svd(owned: np.ndarray, factors: int) -> np.ndarray:
    """Return the filter (N, N) as its paper writes it, but for the same power of popularity on both sides."""
    users, items = np.maximum(owned.sum(axis=1), 1), np.maximum(owned.sum(axis=0), 1)
    right = np.linalg.svd(owned / np.sqrt(users)[:, None] / np.sqrt(items))[2][:factors]
    return (right.T @ right) * (items**POWER)[:, None] * items**POWER


@pytest.mark.parametrize("ratio", [0, 3], ids=["krylov", "whole"])
def test_the_filter_is_that_of_a_whole_decomposition(ratio, monkeypatch):
    monkeypatch.setattr(eigenvectors, "LEAST_KRYLOV_RATIO", ratio)
    owned = draw_pairs(60, 40)
    found = filter_of(owned, K)
    for factors in (3, K):
        vectors = found[:, :factors].numpy()
        assert np.allclose(vectors @ vectors.T, filter_by_svd(owned, factors), atol=1e-4)
    assert not found[4].any()


@pytest.mark.parametrize("ratio", [0, 3], ids=["krylov", "whole"])
def test_there_are_no_factors_beyond_the_rank_of_who_has_what(ratio, monkeypatch):
    monkeypatch.setattr(eigenvectors, "LEAST_KRYLOV_RATIO", ratio)
    owned = np.repeat(draw_pairs(9, 40), 4, axis=0)  # 36 users, of whom 4 each have the same
    rank = int(np.linalg.matrix_rank(owned))
    found = filter_of(owned, 30).numpy()
    assert found.shape == (40, rank)
    assert np.allclose(found @ found.T, filter_by_svd(owned, rank), atol=1e-4)


@pytest.mark.parametrize("owned", [np.ones((1, 1)), np.eye(3), np.ones((4, 2))], ids=["one pair", "alone", "two"])
def test_hardly_any_data_gives_few_factors(owned):
    found = filter_of(owned, 8)
    assert found.shape == (owned.shape[1], max(1, min(owned.shape[0], owned.shape[1] - 1)))
    assert torch.isfinite(found).all()


@torch.no_grad()
def score(towers, batch) -> np.ndarray:
    """Score all items for each request."""
    items = towers.item_vectors(batch.popularity)  # (N, W)
    return towers.score_items(towers.request_vectors(batch, items)[0], items, batch).numpy()  # (B, N)


@pytest.mark.parametrize("is_blended", [False, True])
def test_users_add_the_filter_of_their_items_by_its_share_of_what_scores_vary(side, is_blended):
    data, towers = side
    if is_blended:
        towers.item_tower.correlations = torch.randn(N, 3, generator=torch.Generator().manual_seed(2))
        towers.user_tower.correlate(CorrelatedHistory())
    owned = draw_pairs(50, N)
    requests, (batch,) = list(data.drawn_requests(50)), data.validation_batches

    def filtered(one) -> np.ndarray:
        rows, lengths = one.history_rows.numpy(), one.arrays["history_lengths"].numpy()
        told = filter_by_svd(owned, 3)
        histories = [row[:length] for row, length in zip(rows, lengths, strict=True)]
        return np.stack([told[items].sum(axis=0) / max(len(items), 1) ** 0.5 for items in histories])

    before, alone = score(towers, batch), [score(towers, one) for one in requests]
    add_low_pass(towers, filter_of(owned, K), LowPass(3, 0.4), requests)
    spread, of_filter = (np.sqrt(np.mean([one.var() for one in parts])) for parts in (alone, map(filtered, requests)))
    expected = before + 0.4 * spread / of_filter * filtered(batch)
    assert np.allclose(score(towers, batch), expected, atol=1e-4)


def test_none_is_added_where_none_was_chosen_or_no_item_says_anything(side):
    data, towers = side
    requests = list(data.drawn_requests(50))
    width = towers.item_tower.history_dim
    add_low_pass(towers, filter_of(draw_pairs(50, N), K), NONE, requests)
    add_low_pass(towers, torch.zeros(N, K), LowPass(K, 0.4), requests)
    assert towers.item_tower.history_dim == width
    assert towers.user_tower.correlated_history is None


def test_what_tells_what_the_validation_took_is_found_beside_neighbours(side, monkeypatch):
    monkeypatch.setattr("models.low_pass.ERRORS", 0.0)  # users are few
    data, towers = side
    towers.neighbours = Neighbours(np.arange(N + 1), np.roll(np.arange(N), 1), np.full(N, 0.5, np.float32))
    batches, requests = data.validation_batches, list(data.drawn_requests(50))
    counts = torch.bincount(torch.cat([batch.target_rows for batch in batches]), minlength=N).float()  # (N,)
    right = torch.stack([torch.ones(N), *torch.zeros(7, N)], dim=1)  # every history says the same
    right[:, 0] += counts
    chosen = choose_low_pass(towers, right, requests, batches)
    assert chosen.share
    assert chosen.factors == 1  # of eight that could be
    assert chosen.ndcg > chosen.ndcg_alone
    add_low_pass(towers, right, chosen, requests)
    again = choose_low_pass(towers, torch.zeros(N, 8), requests, batches)
    assert again.ndcg_alone == pytest.approx(chosen.ndcg, abs=1e-4)  # what was judged is what was added
    assert not again.share


def test_of_what_gains_nearly_all_the_fewest_factors_are_taken_with_their_least_share():
    alone = np.full(400, 0.1)
    gains = {(32, 0.4): 0.0948, (64, 0.4): 0.0952, (64, 0.1): 0.0948, (64, 0.8): 0.097, (128, 0.1): 0.1}
    found = {NONE: alone} | {LowPass(*key): alone + gain for key, gain in gains.items()}
    chosen = pick({one: Figures({"novel": ndcg}) for one, ndcg in found.items()}, NONE)
    assert (chosen.factors, chosen.share) == (64, 0.4)
    assert (chosen.ndcg, chosen.ndcg_alone) == (pytest.approx(0.1952), pytest.approx(0.1))


def test_without_a_validation_none_is_added(side):
    data, towers = side
    (batch,) = data.validation_batches
    owned = batch._replace(target_owned=torch.zeros_like(batch.target_owned))
    for validation in ((), [owned, batch] * low_pass.MOST_JUDGES):  # of which it reads every second one
        assert choose_low_pass(towers, filter_of(draw_pairs(50, N), K), [], validation) == NONE


@pytest.mark.parametrize("is_strict", [False, True])
def test_a_run_serves_what_was_found(tmp_path, monkeypatch, is_strict):
    found = LowPass(4, 0.4, 0.3, 0.2)
    monkeypatch.setattr(run_finishing, "choose_low_pass", lambda *args: found)
    data = replace(ORDERED_RUN, split=replace(ORDERED_RUN.split, strict=is_strict))
    model = replace(SMALL, correlations=0, neighbours=0, low_pass=8)
    run = train.run(train.Config(data, model, QUIET, tmp_path / "run"), make_tables(3, simultaneous=False))
    recommender = Recommender.load(run.bundle)
    assert recommender.taste_dim == SMALL.dim + 4
    (users,) = recommender.encode_users([{"history": [{"item_id": 100}, {"item_id": 101}]}])
    parts = recommender.catalogue.vectors[recommender.item_rows([101, 100]), SMALL.dim : SMALL.dim + 4]
    assert np.allclose(users[SMALL.dim : SMALL.dim + 4], parts.sum(axis=0) / 2**0.5, atol=1e-5)
    metrics = json.loads((run.bundle.parent / "metrics.json").read_text())
    assert metrics["training"]["low_pass"] == {"factors": 4, "share": 0.4, "ndcg": 0.3, "ndcg_alone": 0.2}


def test_where_things_are_taken_again_none_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(run_finishing, "choose_low_pass", lambda *args: pytest.fail("it was asked"))
    model = replace(SMALL, correlations=0, max_epochs=1)
    run = train.run(train.Config(BASKET_RUN, model, QUIET, tmp_path / "run"), make_tables(3, simultaneous=True))
    assert "low_pass" not in json.loads((run.bundle.parent / "metrics.json").read_text())["training"]


def test_what_was_found_is_said():
    assert "nothing to validate" in run_verdicts.describe_low_pass(NONE)
    assert "hardly more" in run_verdicts.describe_low_pass(LowPass(0, 0.0, 0.2, 0.2))
    said = run_verdicts.describe_low_pass(LowPass(64, 0.05, 0.3, 0.2))
    assert said == "low-pass filter of 64 factors added by 5.0%: validation NDCG@10 0.2000 without, 0.3000 with it"
