"""Runs on tables of other shapes: rows in any order, sets without times, targets that are some of the events."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tests.test_train import BASKETS, ORDERED, QUIET, SMALL, make_tables

import train
from datamodules.config import DataConfig, FeaturesConfig, SplitConfig, TargetsConfig
from datamodules.splits import split_interactions
from serve import Recommender
from serve.errors import SchemaError
from tests.models.tiny_towers import one_thread

SETS = DataConfig(
    features=FeaturesConfig(item={"category": "categorical"}, context={"place": "categorical"}),
    split=SplitConfig("pairs", share=0.3),
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


def make_set_tables():
    """Take the times away and give every event a place, and every fourth one a second place."""
    events, users, items = make_tables(3, simultaneous=False)
    events = events.drop(columns=["datetime", "weight"])
    place = np.array(["home", "work", "away"])
    events["place"] = place[np.arange(len(events)) % 3]
    return pd.concat([events, events[::4].assign(place="abroad")], ignore_index=True), users, items


def shuffle(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    return frame.sample(frac=1, random_state=seed, ignore_index=True)


TABLES = {
    "ordered": (ORDERED, lambda: make_tables(3, simultaneous=False)),
    "baskets": (BASKETS, lambda: make_tables(3, simultaneous=True)),
    "set": (SETS, make_set_tables),
}


def fit(data, frames, folder, model=SMALL):
    """Train as a run does and return the weights, without export and evaluation."""
    config = train.Config(data, model, QUIET, folder)
    folder.mkdir()
    tables, _ = train.read(config, frames, folder)
    config, _ = train.settle(config, tables)
    trained, _ = train.train(config, tables, split_interactions(tables.interactions, data, config.seed))
    return trained.towers.state_dict(), trained.schema.to_json()


@pytest.mark.parametrize("name", TABLES)
def test_rows_in_another_order_give_the_same_towers(name, tmp_path):
    data, make = TABLES[name]
    events, users, items = make()
    weights, schema = fit(data, (events, users, items), tmp_path / "one")
    frames = (shuffle(events, 1), shuffle(users, 2), shuffle(items, 3))
    again, again_schema = fit(data, frames, tmp_path / "other")
    assert again_schema == schema
    assert all(torch.equal(weights[key], again[key]) for key in weights)


@pytest.fixture(scope="module", params=[0, 9], ids=["all items", "a sample"])
def set_run(request, tmp_path_factory):
    model = replace(SMALL, n_blocks=0, max_epochs=6, negatives=request.param)
    return train.run(train.Config(SETS, model, QUIET, tmp_path_factory.mktemp("set") / "run"), make_set_tables())


def test_a_set_is_learned_and_measured_with_and_without_context(set_run):
    test = set_run.metrics["test"]
    assert test["bascule"]["novel"]["NDCG@10"] > 2 * test["popularity"]["novel"]["NDCG@10"]
    n_targets = test["bascule"]["novel"]["targets"]
    in_context = set_run.metrics["with_context"]
    assert {figures["novel"]["targets"] for figures in in_context.values()} == {n_targets}
    report = json.loads((set_run.bundle.parent / "metrics.json").read_text())["data"]
    assert report["split"]["kind"] == "pairs"
    assert report["cold"]["test_pairs_owned_before"] == 0


WITHOUT_CONTEXT = replace(SETS, features=FeaturesConfig(item={"category": "categorical"}))
FROZEN = replace(SMALL, n_blocks=0, similarity="dot", freeze_items=True)
TRAINED = replace(SMALL, n_blocks=0, similarity="cosine", freeze_items=False)


@pytest.mark.parametrize(
    "model",
    [SMALL, FROZEN, TRAINED, replace(FROZEN, negatives=9), replace(TRAINED, negatives=9)],
    ids=["as ever", "frozen", "trained", "frozen, sampled", "trained, sampled"],
)
def test_a_set_without_context_is_learned_and_places_new_items(model, tmp_path):
    events, users, items = make_set_tables()
    config = train.Config(WITHOUT_CONTEXT, model, QUIET, tmp_path / "run")
    recommender = Recommender.load(train.run(config, (events.drop(columns=["place"]), users, items)).bundle)
    (answer,) = recommender.recommend([{"history": [{"item_id": items["item_id"][0]}]}], k=5)
    assert len(answer.item_id) == 5
    categories = sorted(items["category"].dropna().unique())[:2]
    first, second, again = recommender.encode_items([{"category": name} for name in (*categories, categories[0])])
    assert np.abs(first - again).max() <= 1e-6
    assert np.abs(first - second).max() > 0.01


def test_draws_from_the_targets_of_sets_are_refused(tmp_path):
    model = replace(SMALL, n_blocks=0, negatives=9, in_batch_negatives=2)
    with pytest.raises(SchemaError, match=r"in_batch_negatives is 2; allowed in sets, in baskets and with repeats: 0"):
        fit(SETS, make_set_tables(), tmp_path / "run", model)


@pytest.mark.parametrize("model", [FROZEN, TRAINED], ids=["frozen", "trained"])
def test_items_of_a_set_stay_or_are_trained_as_the_configuration_says(model, tmp_path):
    events, users, items = make_set_tables()
    frames, table = (events.drop(columns=["place"]), users, items), "item_tower.id_table.weight"
    slow, fast = (
        fit(WITHOUT_CONTEXT, frames, tmp_path / str(rate), replace(model, max_epochs=1, learning_rate=rate))[0][table]
        for rate in (1e-6, 1e-2)
    )
    assert torch.equal(slow, fast) == model.freeze_items


def test_popularity_in_the_bundle_of_a_set_counts_users(set_run, tmp_path):
    tables, _ = train.read(train.Config(SETS, SMALL, QUIET, tmp_path), make_set_tables(), tmp_path)
    pairs = split_interactions(tables.interactions, SETS, 0).refit[["user_id", "item_id"]].drop_duplicates()
    bundle = Recommender.load(set_run.bundle).bundle
    owners = pairs["item_id"].value_counts().reindex(bundle.items.column("item_id").to_numpy(), fill_value=0)
    log = np.log1p(owners.to_numpy())
    assert np.allclose(bundle.vectors[:, -1], (log - log.mean()) / log.std(), atol=1e-5)


def test_a_served_set_has_no_order(set_run):
    recommender = Recommender.load(set_run.bundle)
    history = [{"item_id": item} for item in (100, 117, 105, 131, 110)]
    requests = [
        {"history": history, "context": {"place": "home"}},
        {"history": history[::-1], "context": {"place": "home"}},
    ]
    first, second = recommender.encode_users(requests)
    assert np.abs(first - second).max() <= 1e-6
    elsewhere = recommender.encode_users([{"history": history, "context": {"place": "work"}}])
    assert np.abs(first - elsewhere).max() > 1e-4


def test_disliked_items_are_evidence_and_no_targets(tmp_path):
    events, users, items = make_tables(3, simultaneous=False)
    events["weight"] = np.where(np.arange(len(events)) % 3 == 0, 1.0, 5.0)
    data = replace(ORDERED, targets=TargetsConfig(min_weight=4))
    config = train.Config(data, SMALL, QUIET, tmp_path / "run")
    config.out.mkdir()
    tables, _ = train.read(config, (events, users, items), config.out)
    config, _ = train.settle(config, tables)
    split = split_interactions(tables.interactions, data, 0)
    trained, _ = train.train(config, tables, split)
    disliked = set(map(tuple, events[events["weight"] < 4][["user_id", "item_id"]].to_numpy()))
    ids, users_of = trained.catalogue.item_ids, trained.data.sequences.user_ids
    asked, seen = set(), set()
    for plan in trained.data.examples.plan(0, 0):
        batch = trained.data.examples[plan]
        for b, user in enumerate(users_of[plan.users]):
            rows, is_target = batch.history_rows[b].numpy(), batch.is_target[b].numpy()
            asked |= {(user, ids[row]) for row in rows[is_target]}
            seen |= {(user, ids[row]) for row in rows[: batch.arrays["history_lengths"][b]]}
    assert asked
    assert not asked & disliked
    assert seen & disliked


def test_a_later_run_keeps_the_codes_of_an_earlier_one(set_run, tmp_path):
    events, users, items = make_set_tables()
    items["category"] = items["category"].replace("c0", "a new one")
    config = train.Config(SETS, SMALL, QUIET, tmp_path / "run", previous=set_run.bundle)
    config.out.mkdir()
    tables, _ = train.read(config, (events, users, items), config.out)
    config, _ = train.settle(config, tables)
    trained, _ = train.train(config, tables, split_interactions(tables.interactions, SETS, 0))
    (before,), (after,) = Recommender.load(set_run.bundle).bundle.schema.item_features, trained.schema.item_features
    assert "c0" in before.vocabulary
    assert after.vocabulary == (*before.vocabulary, "a new one")
