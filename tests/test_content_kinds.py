"""Texts and ready-made vectors on all three sides: learned, exported, served, and enough to place a new item."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import train
from datamodules.config import DataConfig, FeaturesConfig
from datamodules.sequences import build_catalogue
from datamodules.tables import tables_from_frames
from models.config import ModelConfig
from serve import Recommender
from serve.encode import RowEncoder, Vector
from tests.models.tiny_towers import one_thread

N_USERS, N_ITEMS, N_COLD, N_TASTES, WIDTH = 70, 55, 25, 5, 7
WORDS = ("murder crime detective", "wedding love summer", "galaxy robot alien", "recipe kitchen bread", "football cup")
NOISE = ("new", "the", "best", "of", "part", "two", "story", "edition", "gold", "little", "big", "last")
FEATURES = FeaturesConfig(
    user={"about": "text", "face": "vector"},
    item={"title": "text", "image": "vector"},
    context={"query": "text", "place": "vector"},
)
SMALL = ModelConfig(dim=16, max_epochs=12, batch_size=16, warmup_steps=5, learning_rate=0.01, id_dropout=0.3)


def title(taste, rng):
    words = [rng.choice(WORDS[taste].split()), *rng.choice(NOISE, 3, replace=False)]
    return " ".join(rng.permutation(words)).title()


def image(taste, rng):
    return np.eye(N_TASTES, WIDTH)[taste] * 3 + rng.normal(size=WIDTH)


def make_items(ids, rng):
    """Make items whose taste lies in a word of the title and in the direction of the image."""
    tastes = ids % N_TASTES
    titles, images = [title(taste, rng) for taste in tastes], [image(taste, rng) for taste in tastes]
    return pd.DataFrame({"item_id": ids, "title": titles, "image": images})


def make_tables(seed=3):
    """Every user takes most items of her taste, in any order; half of everything else about her is missing."""
    rng = np.random.default_rng(seed)
    items = make_items(np.arange(N_ITEMS), rng)
    rows = []
    for user in range(N_USERS):
        own = rng.permutation(np.arange(user % N_TASTES, N_ITEMS, N_TASTES))[:9]
        rows += [(f"u{user}", item, 1_600_000_000 + 1000 * place) for place, item in enumerate(own)]
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "datetime"])
    n = len(events)
    events["query"] = [["good", "film"] if rng.random() < 0.5 else None for _ in range(n)]
    events["place"] = [rng.normal(size=3).tolist() if rng.random() < 0.5 else None for _ in range(n)]
    users = pd.DataFrame({"user_id": [f"u{user}" for user in range(N_USERS)]})
    users["about"] = [None if user % 2 else f"I am number {user}" for user in range(N_USERS)]
    users["face"] = [rng.normal(size=4) if user % 3 else None for user in range(N_USERS)]
    return events, users, items


@pytest.fixture(scope="module")
def tables():
    return make_tables()


@pytest.fixture(scope="module")
def recommender(tables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("content") / "run"
    with one_thread():
        config = train.Config(DataConfig(features=FEATURES), SMALL, {"enable_progress_bar": False}, folder, 0)
        return Recommender.load(train.run(config, tables).bundle)


@pytest.mark.parametrize("column", ["title", "image"])
def test_one_of_them_alone_places_a_new_item(recommender, column):
    new = make_items(1000 + np.arange(N_COLD), np.random.default_rng(9))
    users = recommender.encode_users([{"user_id": f"u{user}"} for user in range(N_USERS)])
    scores = users @ recommender.encode_items(new[[column]].to_dict("records")).T
    best = np.argsort(-scores, axis=1)[:, :5]
    is_right = best % N_TASTES == (np.arange(N_USERS) % N_TASTES)[:, None]
    assert is_right.mean() > 2.2 / N_TASTES


def test_an_item_without_any_is_at_the_same_place_as_any_other(recommender):
    nothing, blank = {"title": None}, {"title": " ?! ", "image": []}
    first, second = recommender.encode_items([nothing, blank])
    assert np.array_equal(first, second)


def test_items_that_are_served_are_read_as_they_were_trained_on(recommender, tables):
    served = recommender.bundle.items
    assert served.schema.field("image").type == pa.list_(pa.float32(), WIDTH)
    rows = [{name: row[name] for name in ("title", "image")} for row in served.to_pylist()]
    raw = tables[2][["title", "image"]].to_dict("records")
    assert np.array_equal(recommender.encode_items(rows), recommender.encode_items(raw))


@pytest.mark.parametrize("name", ["about", "face"])
def test_a_profile_and_the_same_features_in_the_request_are_one(recommender, tables, name):
    _, users, _ = tables
    ids = users["user_id"].tolist()
    known = recommender.encode_users([{"user_id": user, "history": []} for user in ids])
    given = [dict(recommender.profiles.get(user).features) for user in ids]
    inline = recommender.encode_users([{"history": [], "features": features} for features in given])
    assert np.abs(known - inline).max() <= 1e-6
    assert [features[name] is None for features in given] == users[name].isna().tolist()
    without = recommender.encode_users([{"history": [], "features": {**f, name: None}} for f in given])
    is_changed = np.abs(without - known).max(axis=1) > 1e-6
    assert is_changed.tolist() == users[name].notna().tolist()


@pytest.mark.parametrize("context", [{"query": "good film"}, {"query": ["Good", "film"]}, {"place": [3.0, 0, -2]}])
def test_the_context_of_a_request_counts(recommender, context):
    plain, changed = recommender.encode_users([{"history": []}, {"history": [], "context": context}])
    assert np.abs(plain - changed).max() > 1e-5


def test_golden_requests_hold_both_kinds(recommender):
    text = bytes(recommender.bundle.golden).decode()
    assert '"about": "word' in text
    assert '"place": [' in text


def test_training_encodes_as_serving(recommender, tables):
    schema = recommender.bundle.schema
    items = tables[2]
    frames, _ = tables_from_frames(DataConfig(features=FEATURES), *tables)
    assert isinstance(frames.items["image"][0], Vector)
    trained = build_catalogue(frames.items, frames.interactions, schema)
    served = RowEncoder(schema.item_features, None).encode(items.to_dict("records"))
    assert np.array_equal(trained.features.codes, served.codes)
    assert np.array_equal(trained.features.values, served.values)
    table = trained.to_arrow()
    assert table.column("image").to_pylist()[3] == np.float32(items["image"][3]).tolist()
