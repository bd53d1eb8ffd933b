"""The whole filter of who has what, pair by pair, against dense algebra; what validation finds, and what is served."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.test_train import ORDERED as ORDERED_RUN
from tests.test_train import QUIET, SMALL, make_tables

import run_finishing
import run_verdicts
import train
from datamodules.config import FeaturesConfig
from models import pair_filter
from models.jury import MOST_JUDGES
from models.pair_filter import SMOOTH, PairFilter, add_pair_filter, choose_pair_filter, filter_pairs
from models.smooth_factors import find_smooth_factors
from serve import Recommender
from serve.index import Neighbours
from tests.models.tiny_towers import make_towers, one_thread
from tests.test_blended_runs import SET
from tests.test_low_pass import draw_pairs, score
from tests.tiny_data import N, hold_out, make_data, make_set_world

NONE = PairFilter(0.0)


@pytest.fixture(scope="module", autouse=True)
def _alone():
    with one_thread():
        yield


@pytest.fixture
def side():
    """Give towers of a set whose items have a neighbour each, and their data."""
    world, held_out = hold_out(make_set_world(FeaturesConfig(item={"category": "categorical"})))
    data = make_data(world, validation=held_out)
    towers = make_towers(world, data, "dot", n_blocks=0)
    towers.neighbours = Neighbours(np.arange(N + 1), np.roll(np.arange(N), 1), np.full(N, 0.5, np.float32))
    return data, towers


def pairs_of(owned: np.ndarray) -> Neighbours:
    user, item = owned.nonzero()
    return filter_pairs(find_smooth_factors(user, item, owned.shape, 256, seed=1))


def lay_out(found: Neighbours) -> np.ndarray:
    """Return S, (N, N)."""
    dense = np.zeros((found.n_items, found.n_items))
    dense[np.repeat(np.arange(found.n_items), np.diff(found.offsets)), found.rows] = found.weights
    return dense


def filter_by_svd(owned: np.ndarray, factors: int) -> np.ndarray:
    """Return the filter (N, N) as its paper writes it, without what an item says of itself and what is below 0."""
    users, items = np.maximum(owned.sum(axis=1), 1), np.maximum(owned.sum(axis=0), 1)
    scaled = owned / np.sqrt(users)[:, None] / np.sqrt(items)
    right = np.linalg.svd(scaled)[2][:factors]
    whole = scaled.T @ scaled + SMOOTH * (right.T @ right) / np.sqrt(items)[:, None] * np.sqrt(items)
    np.fill_diagonal(whole, 0)
    return np.maximum(whole, 0)


@pytest.mark.parametrize("cells", [1, 100, 2**24])
@pytest.mark.parametrize("factors", [3, 256])
def test_the_pairs_are_the_filter_of_the_paper(factors, cells, monkeypatch):
    monkeypatch.setattr(pair_filter, "FACTORS", factors)
    monkeypatch.setattr(pair_filter, "MOST_CELLS", cells)
    owned = draw_pairs(60, 40)
    assert np.allclose(lay_out(pairs_of(owned)), filter_by_svd(owned, min(factors, 39)), atol=1e-4)


def test_an_item_has_those_that_it_says_most_of(monkeypatch):
    monkeypatch.setattr(pair_filter, "NEIGHBOURS", 3)
    owned = draw_pairs(60, 40)
    found, whole = lay_out(pairs_of(owned)), filter_by_svd(owned, 39)
    for row, told in zip(found, whole, strict=True):
        largest = np.argsort(-told)[:3]
        assert set(row.nonzero()[0]) == set(largest[told[largest] > 1e-9])
        assert np.allclose(row[largest], told[largest], atol=1e-4)


@pytest.mark.parametrize("owned", [np.ones((1, 1)), np.eye(3), np.ones((4, 2))], ids=["one pair", "alone", "two"])
def test_hardly_any_data_gives_few_pairs(owned):
    dense = lay_out(pairs_of(owned))
    assert np.allclose(dense, filter_by_svd(owned, max(1, min(owned.shape[0], owned.shape[1] - 1))), atol=1e-4)


def test_scores_rise_by_its_share_of_what_they_vary_beside_the_neighbours_that_there_are(side):
    data, towers = side
    requests, (batch,) = list(data.drawn_requests(50)), data.validation_batches
    found = pairs_of(draw_pairs(50, N))

    def filtered(one) -> np.ndarray:
        rows, lengths = one.history_rows.numpy(), one.arrays["history_lengths"].numpy()
        histories = [row[:length] for row, length in zip(rows, lengths, strict=True)]
        return np.stack([lay_out(found)[items].sum(axis=0) / max(len(items), 1) ** 0.5 for items in histories])

    before = score(towers, batch)
    beside, towers.neighbours = towers.neighbours, Neighbours.none(N)
    alone = [score(towers, one) for one in requests]  # how much vectors say is the measure
    towers.neighbours = beside
    add_pair_filter(towers, found, 0.4, requests)
    spread, of_filter = (np.sqrt(np.mean([one.var() for one in parts])) for parts in (alone, map(filtered, requests)))
    expected = before + 0.4 * spread / of_filter * filtered(batch)
    assert np.allclose(score(towers, batch), expected, atol=1e-4)


def test_none_is_added_where_none_was_chosen_or_no_item_says_anything(side):
    data, towers = side
    requests, before = list(data.drawn_requests(50)), towers.neighbours
    add_pair_filter(towers, pairs_of(draw_pairs(50, N)), 0.0, requests)
    add_pair_filter(towers, Neighbours.none(N), 0.4, requests)
    assert towers.neighbours is before


def test_what_tells_what_the_validation_took_is_found(side, monkeypatch):
    monkeypatch.setattr("models.pair_filter.ERRORS", 0.0)  # users are few
    data, towers = side
    batches, requests = data.validation_batches, list(data.drawn_requests(50))
    counts = torch.bincount(torch.cat([batch.target_rows for batch in batches]), minlength=N).numpy()  # (N,)
    offsets, rows = np.arange(N + 1) * N, np.tile(np.arange(N), N)
    right = Neighbours(offsets, rows, np.tile(counts, N).astype(np.float32))  # every item says the same
    chosen = choose_pair_filter(towers, right, requests, batches)
    assert chosen.share
    assert chosen.ndcg > chosen.ndcg_alone
    add_pair_filter(towers, right, chosen.share, requests)
    again = choose_pair_filter(towers, Neighbours.none(N), requests, batches)
    assert again.ndcg_alone == pytest.approx(chosen.ndcg, abs=1e-4)  # what was judged is what was added
    assert not again.share


def test_without_a_validation_none_is_added(side):
    data, towers = side
    (batch,) = data.validation_batches
    owned = batch._replace(target_owned=torch.zeros_like(batch.target_owned))
    for validation in ((), [owned, batch] * MOST_JUDGES):  # of which it reads every second one
        assert choose_pair_filter(towers, pairs_of(draw_pairs(50, N)), [], validation) == NONE


def test_a_run_serves_what_was_found(tmp_path, monkeypatch):
    monkeypatch.setattr(run_finishing, "choose_pair_filter", lambda *args: PairFilter(0.4, 0.3, 0.2))
    interactions, *others = make_tables(3, simultaneous=False)
    tables = (interactions.drop(columns="datetime"), *others)
    model = replace(SMALL, correlations=0, neighbours=0, low_pass=8, max_epochs=1)
    run = train.run(train.Config(SET, model, QUIET, tmp_path / "run"), tables)
    recommender = Recommender.load(run.bundle)
    offsets, entries = (np.load(run.bundle / name) for name in ("item_neighbour_offsets.npy", "item_neighbours.npy"))
    place = int(np.diff(offsets).argmax())
    said = entries[offsets[place] : offsets[place + 1]]
    best = int(said["neighbour"][said["weight"].argmax()])
    item, other = recommender.catalogue.item_ids.ids[[place, best]].tolist()
    (answer,) = recommender.recommend([{"history": [{"item_id": item}]}], k=len(offsets) - 1)
    (users,) = recommender.encode_users([{"history": [{"item_id": item}]}])
    of_vectors = float(users @ recommender.catalogue.vectors[best])
    assert answer.score[answer.item_id == other] == pytest.approx(of_vectors + said["weight"].max(), abs=1e-4)
    metrics = json.loads((run.bundle.parent / "metrics.json").read_text())
    assert metrics["training"]["pair_filter"] == {"share": 0.4, "ndcg": 0.3, "ndcg_alone": 0.2}


@pytest.mark.parametrize(("data", "most"), [(ORDERED_RUN, 100_000), (SET, 30)])
def test_in_an_order_and_in_large_catalogues_none_is_tried(tmp_path, monkeypatch, data, most):
    monkeypatch.setattr(run_finishing, "MOST_TOLD_BY_PAIRS", most)
    monkeypatch.setattr(run_finishing, "choose_pair_filter", lambda *args: pytest.fail("it was asked"))
    interactions, *others = make_tables(3, simultaneous=False)
    told = interactions.drop(columns="datetime") if data is SET else interactions
    model = replace(SMALL, correlations=0, neighbours=0, low_pass=8, max_epochs=1)
    run = train.run(train.Config(data, model, QUIET, tmp_path / "run"), (told, *others))
    assert "pair_filter" not in json.loads((run.bundle.parent / "metrics.json").read_text())["training"]


def test_what_was_found_is_said():
    assert "nothing to validate" in run_verdicts.describe_pair_filter(NONE)
    assert "hardly more" in run_verdicts.describe_pair_filter(PairFilter(0.0, 0.2, 0.2))
    said = run_verdicts.describe_pair_filter(PairFilter(0.05, 0.3, 0.2))
    assert said == "filter of pairs added by 5.0%: validation NDCG@10 0.2000 without, 0.3000 with it"
