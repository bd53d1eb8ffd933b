"""Popularity weighed after training, against counts and scores one by one, and what the validation finds of it."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from tests.test_train import BASKETS as BASKET_RUN
from tests.test_train import ORDERED as ORDERED_RUN
from tests.test_train import QUIET, SMALL, make_tables

import run_finishing
import run_verdicts
import train
from models import popularity
from models.jury import Figures
from models.popularity import SHARES, Popularity, choose_popularity, pick, weigh_popularity
from run_finishing import Trained, judge_popularity
from serve import Recommender
from serve.index import Neighbours
from tests.models.tiny_towers import make_towers, one_thread
from tests.tiny_data import DAY, ORDERED, N, hold_out, make_data, make_world

NONE = Popularity(1.0, 0.0)


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
def score(towers, batch, popular) -> np.ndarray:
    """Score all items for each request, with the popularity (N, P) given."""
    items = towers.item_vectors(popular)  # (N, W)
    return towers.score_items(towers.request_vectors(batch, items)[0], items, batch).numpy()  # (B, N)


def test_every_user_adds_popularity_by_its_share_of_what_scores_vary(side):
    data, towers = side
    requests, (batch,) = list(data.drawn_requests(50)), data.validation_batches
    popular = torch.randn(N, 1, generator=torch.Generator().manual_seed(2))
    alone = [score(towers, one, towers.no_popularity) for one in requests]
    before = score(towers, batch, towers.no_popularity)
    weigh_popularity(towers, 0.7, requests)
    spread = np.sqrt(np.mean([scores.var() for scores in alone]))
    expected = before + 0.7 * spread * popular.numpy()[:, 0]
    assert np.allclose(score(towers, batch, popular), expected, atol=1e-4)


@pytest.mark.parametrize("share", [1.0, 0.25, 1 / 64])
def test_popularity_counts_targets_in_the_end_of_the_time(share):
    world = make_world(ORDERED)
    rows = world.tables.interactions.assign(**{"weight as a target": np.arange(len(world.tables.interactions)) % 3.0})
    data = make_data(replace(world, tables=replace(world.tables, interactions=rows)))
    end, first = world.schema.data_until, rows["datetime"].min()
    begin = end - round(share * (end - first))
    counted = rows[(rows["datetime"] >= begin) & (rows["weight as a target"] > 0)]
    log = np.log1p([(counted["item_id"] == item).sum() for item in data.catalogue.item_ids])
    found, days = data.measure_popularity(share)
    assert found.shape == (N, 1)
    assert np.allclose(found[:, 0], (log - log.mean()) / log.std(), atol=1e-5)
    assert days == pytest.approx((end - begin) / DAY)


def test_without_times_every_target_counts():
    config = replace(ORDERED, features=replace(ORDERED.features, context={}))
    world = make_world(config)
    rows = world.tables.interactions.drop(columns="datetime")
    rows["position"] = np.arange(len(rows))
    tables = replace(world.tables, interactions=rows)
    world = replace(world, tables=tables, schema=replace(world.schema, has_datetime=False, data_until=0))
    found, days = make_data(world).measure_popularity(1.0)
    log = np.log1p([(rows["item_id"] == item).sum() for item in world.catalogue.item_ids])
    assert days == 1.0
    assert np.allclose(found[:, 0], (log - log.mean()) / log.std(), atol=1e-5)


def test_where_events_have_no_times_the_window_is_said_to_be_of_all(monkeypatch):
    console = Console(record=True, width=200)
    data = SimpleNamespace(
        drawn_requests=lambda _: [],
        validation_batches=[],
        measure_popularity=lambda window: (np.zeros((N, 1), np.float32), 1.0),
    )
    monkeypatch.setattr(run_finishing, "choose_popularity", lambda *_: Popularity(1.0, 0.8, 0.3, 0.2))
    schema = make_world(ORDERED).schema
    for has_datetime in (True, False):
        trained = Trained(torch.nn.Module(), replace(schema, has_datetime=has_datetime), None, data, 1, 1.0, {})
        judge_popularity(trained, console)
    first, last = console.export_text().splitlines()
    assert first.startswith("popularity of 1 day added by 80%")
    assert last.startswith("popularity of all events added by 80%")


def test_of_windows_that_gain_nearly_all_the_longest_is_taken_with_its_least_share():
    alone = np.full(400, 0.1)
    gains = {(1.0, 0.4): 0.0948, (0.25, 0.4): 0.0952, (0.25, 0.2): 0.0948, (0.25, 0.8): 0.097, (1 / 16, 0.1): 0.1}
    found = {NONE: alone} | {Popularity(*key): alone + gain for key, gain in gains.items()}
    chosen = pick({one: Figures({"novel": ndcg}) for one, ndcg in found.items()}, NONE)
    assert (chosen.window, chosen.share) == (0.25, 0.4)
    assert (chosen.ndcg, chosen.ndcg_alone) == (pytest.approx(0.1952), pytest.approx(0.1))


def test_what_is_popular_with_the_validation_is_found_beside_neighbours(side, monkeypatch):
    monkeypatch.setattr(popularity, "ERRORS", 1.0)  # users are few
    data, towers = side
    towers.neighbours = Neighbours(np.arange(N + 1), np.roll(np.arange(N), 1), np.full(N, 0.5, np.float32))
    (batch,) = data.validation_batches
    counts = torch.bincount(batch.target_rows, minlength=N).float()  # (N,)
    right = ((counts - counts.mean()) / counts.std()).unsqueeze(1)  # (N, 1)
    requests = list(data.drawn_requests(50))
    chosen = choose_popularity(towers, {1.0: -right, 0.25: right}, requests, [batch])
    assert chosen.window == 0.25
    assert chosen.share in SHARES
    assert chosen.ndcg > chosen.ndcg_alone
    assert not choose_popularity(towers, {1.0: -right}, requests, [batch]).share


def test_without_a_validation_none_is_added(side):
    data, towers = side
    (batch,) = data.validation_batches
    owned = batch._replace(target_owned=torch.zeros_like(batch.target_owned))
    for validation in ((), [owned, batch] * popularity.MOST_JUDGES):  # of which it reads every second one
        assert choose_popularity(towers, {1.0: towers.no_popularity}, [], validation) == NONE


@pytest.mark.parametrize("is_strict", [False, True])
def test_a_run_serves_what_was_found(tmp_path, monkeypatch, is_strict):
    monkeypatch.setattr(run_finishing, "choose_popularity", lambda *args: Popularity(0.25, 3.2, 0.3, 0.2))
    data = replace(ORDERED_RUN, split=replace(ORDERED_RUN.split, strict=is_strict))
    tables = make_tables(3, simultaneous=False)
    run = train.run(train.Config(data, SMALL, QUIET, tmp_path / "run"), tables)
    recommender = Recommender.load(run.bundle)
    (days,) = recommender.bundle.schema.popularity_days
    assert days == pytest.approx(75, rel=0.2)  # of 300; a strict run holds out the last ones
    assert recommender.bundle.manifest.facts.popularity_dims == 1
    users = recommender.encode_users([{"user_id": user} for user in tables[1]["user_id"][:7]])
    assert np.ptp(users[:, -1]) < 1e-6  # all count it alike
    assert users[0, -1] > 0
    metrics = json.loads((run.bundle.parent / "metrics.json").read_text())
    assert metrics["training"]["popularity"] == {"window": 0.25, "share": 3.2, "ndcg": 0.3, "ndcg_alone": 0.2}


def test_where_towers_learn_popularity_none_is_added(tmp_path, monkeypatch):
    monkeypatch.setattr(run_finishing, "choose_popularity", lambda *args: pytest.fail("it was asked"))
    model = replace(SMALL, correlations=0, max_epochs=1)
    run = train.run(train.Config(BASKET_RUN, model, QUIET, tmp_path / "run"), make_tables(3, simultaneous=True))
    metrics = json.loads((run.bundle.parent / "metrics.json").read_text())
    assert "popularity" not in metrics["training"]


@pytest.mark.parametrize(
    ("days", "said"), [(0.0125, "0.0125"), (7.254, "7.25"), (363.7, "364"), (999.8, "1,000"), (1072, "1,072")]
)
def test_the_length_of_a_window_is_said_as_people_write_it(days, said):
    assert f"popularity of {said} days" in run_verdicts.describe_popularity(Popularity(1.0, 0.8, 0.3, 0.2), days)


def test_what_was_found_is_said():
    assert "nothing to validate" in run_verdicts.describe_popularity(NONE, 3.0)
    assert "hardly more" in run_verdicts.describe_popularity(Popularity(1.0, 0.0, 0.2, 0.2), 3.0)
    said = run_verdicts.describe_popularity(Popularity(0.25, 0.8, 0.3, 0.2), 7.254)
    assert said.startswith("popularity of 7.25 days added by 80%: validation NDCG@10 0.2000 without, 0.3000 with")
