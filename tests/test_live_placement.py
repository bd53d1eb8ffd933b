"""A new item is offered to those whose histories are of its category: after a training, and for items put since."""

from contextlib import closing

import numpy as np
import pandas as pd
import pytest

import train
from datamodules.config import DataConfig, FeaturesConfig
from models.config import ModelConfig
from serve.live.items import LiveItems
from serve.recommender import Recommender
from tests.tiny_towers import one_thread

N_USERS, N_TASTES, N_EACH, N_TAKEN, K = 60, 5, 11, 7, 10
DATA = DataConfig(features=FeaturesConfig(item={"category": "categorical", "price": "numeric"}))
MODEL = ModelConfig(dim=8, affinity_dim=4, max_epochs=8, batch_size=16, warmup_steps=2, learning_rate=0.02)


def make_tables():
    """Each user takes some of the items of one category."""
    rng = np.random.default_rng(3)
    items = pd.DataFrame({"item_id": [f"i{number}" for number in range(N_TASTES * N_EACH)]})
    items["category"] = [f"c{number % N_TASTES}" for number in range(len(items))]
    items["price"] = rng.lognormal(1, 1, len(items))
    own = [rng.choice(N_EACH, N_TAKEN, replace=False) * N_TASTES + user % N_TASTES for user in range(N_USERS)]
    events = pd.DataFrame({"user_id": np.repeat(np.arange(N_USERS), N_TAKEN)})
    events["item_id"] = [f"i{number}" for number in np.concatenate(own)]
    events["datetime"] = 1_600_000_000 + np.arange(len(events)) * 3600
    return events, pd.DataFrame({"user_id": np.arange(N_USERS)}), items


@pytest.fixture(scope="module")
def recommender(tmp_path_factory):
    config = train.Config(DATA, MODEL, {"enable_progress_bar": False}, tmp_path_factory.mktemp("placed") / "run")
    with one_thread():
        return Recommender.load(train.run(config, make_tables()).bundle)


def count_listed(recommender, item_id):
    """Return the share of users who are offered an item, by their taste."""
    answers = recommender.recommend([{"user_id": user} for user in range(N_USERS)], K)
    is_offered = np.array([item_id in answer.item_id for answer in answers])
    return np.array([is_offered[np.arange(N_USERS) % N_TASTES == taste].mean() for taste in range(N_TASTES)])


def test_a_new_item_is_offered_to_those_of_its_category(recommender, tmp_path):
    with closing(LiveItems(tmp_path / "items.db", recommender)) as live:
        shares = []
        for taste in range(N_TASTES):
            live.put("new", {"category": f"c{taste}", "price": 2.0})
            shares.append(count_listed(live.recommender, "new"))
    own = np.diag(shares)
    others = (np.sum(shares, axis=1) - own) / (N_TASTES - 1)
    assert own.mean() > 2 * others.mean()
    assert (own > others).all()


def test_an_item_in_a_history_speaks_for_its_category(recommender, tmp_path):
    with closing(LiveItems(tmp_path / "items.db", recommender)) as live:
        for taste in range(N_TASTES):
            live.put("new", {"category": f"c{taste}", "price": 2.0})
            answer = live.recommender.recommend([{"history": [{"item_id": "new"}]}], N_EACH).of(0)
            tastes = [int(item_id[1:]) % N_TASTES for item_id in answer.item_id]
            assert np.mean(np.array(tastes) == taste) > 2 / N_TASTES
