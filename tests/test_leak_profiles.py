import numpy as np
import pandas as pd
import pytest

from datamodules.config import DataConfig, FeatureConfig, FeaturesConfig, SplitConfig
from datamodules.leaks.counts import find_item_leaks
from datamodules.leaks.profiles import find_user_leaks
from datamodules.leaks.tested import draw_tested, list_item_names
from datamodules.splits import Split, split_interactions
from datamodules.tables import Tables

N_USERS, N_ITEMS, N_EVENTS = 307, 103, 19
DAY = 86_400


def make_tables(seed, repeats):
    rng = np.random.default_rng(seed)
    popularity = rng.dirichlet(np.full(N_ITEMS, 5.0))
    drawn = [rng.choice(N_ITEMS, N_EVENTS, repeats, popularity) for _ in range(N_USERS)]
    user = np.repeat(np.arange(N_USERS), N_EVENTS)
    time = 1_500_000_000 + DAY * np.sort(rng.integers(0, 50, (N_USERS, N_EVENTS)), axis=1).ravel()
    events = pd.DataFrame({"user_id": user + 5, "item_id": np.concatenate(drawn) + 1000, "datetime": time})
    items = pd.DataFrame({"item_id": np.arange(N_ITEMS) + 1000})
    items["genre"] = rng.choice(list("abcdefghijkl"), N_ITEMS)
    items["tags"] = [f"t{one}|t{other}" for one, other in rng.integers(0, 29, (N_ITEMS, 2))]
    return Tables(events, pd.DataFrame({"user_id": np.arange(N_USERS) + 5}), items)


def judge(tables, split, **users):
    """Find leaks among columns of the users, given as their values by user."""
    frame = tables.users.assign(**{name: tables.users["user_id"].map(values) for name, values in users.items()})
    kinds = {name: FeatureConfig("multi_categorical") if "tags" in name else "categorical" for name in users}
    features = FeaturesConfig(user=kinds, item={"genre": "categorical", "tags": FeatureConfig("multi_categorical")})
    tables = Tables(tables.interactions, frame, tables.items)
    return list(find_user_leaks(tables, split, DataConfig(features=features)))


def last_of(rows):
    return rows.sort_values("datetime", kind="stable").groupby("user_id")["item_id"].last()


def favourite_of(rows):
    return rows.groupby("user_id")["item_id"].agg(lambda items: items.value_counts().index[0])


SPLITS = {
    "leave_one_out": SplitConfig(),
    "time": SplitConfig("time", "2017-08-24"),
    "pairs": SplitConfig("pairs"),
    "none": SplitConfig("none"),
}


@pytest.mark.parametrize("kind", list(SPLITS))
@pytest.mark.parametrize("repeats", [False, True])
def test_what_was_made_from_the_test_is_named_and_what_was_made_before_it_is_not(kind, repeats):
    tables = make_tables(1, repeats)
    split = split_interactions(tables.interactions, DataConfig(split=SPLITS[kind]), 0)
    before, test = (split.refit, split.test) if kind != "none" else (split.train, split.validation)
    held_out = test.groupby("user_id")["item_id"].first() if kind == "pairs" else last_of(test)
    content = tables.items.set_index("item_id")
    rng = np.random.default_rng(2)
    leaks = judge(
        tables,
        split,
        last_item=held_out.astype(float),
        last_genre=held_out.map(content["genre"]),
        last_tags=held_out.map(content["tags"]),
        last_before=last_of(before),
        favourite=favourite_of(before),
        genre_before=last_of(before).map(content["genre"]),
        liked_tags=pd.Series(rng.choice(content["tags"], N_USERS), tables.users["user_id"]),
        some_item=pd.Series(rng.integers(1000, 1000 + N_ITEMS, N_USERS), tables.users["user_id"]),
        card=tables.users.set_index("user_id").index.to_series(),
        town=pd.Series(rng.integers(0, 31, N_USERS), tables.users["user_id"]),
    )
    named = {leak.column for leak in leaks}
    assert named <= {"last_item", "last_genre", "last_tags"}
    assert {"last_item", "last_tags"} <= named
    assert all(leak.kind == "made from the test" and leak.table == "users" for leak in leaks)


def test_the_figures_of_a_match_are_those_of_a_naive_count():
    tables = make_tables(3, repeats=False)
    split = split_interactions(tables.interactions, DataConfig(), 0)
    rng = np.random.default_rng(4)
    held_out = last_of(split.test)
    told = held_out.where(rng.random(len(held_out)) < 0.8, 1000 + rng.integers(0, N_ITEMS, len(held_out)))
    had = split.refit.groupby("user_id")["item_id"].agg(set)
    new = [user for user in told.index if told[user] not in had[user]]
    share = np.mean([told[user] == held_out[user] for user in new])
    chance = np.mean([(held_out == told[user]).mean() for user in new])
    (leak,) = judge(tables, split, told=told)
    assert leak.power == pytest.approx((share - chance) / (1 - chance))
    assert f"of its {len(new)} values" in leak.message
    assert f"{share:.1%} are the item_id of one of her held-out items ({chance:.1%} by chance)" in leak.message


def test_chance_is_that_of_as_many_items_as_a_user_has_in_the_test():
    tables = make_tables(3, repeats=False)
    split = split_interactions(tables.interactions, DataConfig(split=SPLITS["pairs"]), 0)
    rng = np.random.default_rng(4)
    held_out = split.test.groupby("user_id")["item_id"].agg(set)
    told = held_out.map(lambda items: rng.choice(sorted(items))).where(
        rng.random(len(held_out)) < 0.8, 1000 + rng.integers(0, N_ITEMS, len(held_out))
    )
    had = split.refit.groupby("user_id")["item_id"].agg(set)
    new = [user for user in told.index if told[user] not in had[user]]
    frequency = split.test["item_id"].value_counts(normalize=True)
    share = np.mean([told[user] in held_out[user] for user in new])
    chance = np.mean([1 - (1 - frequency.get(told[user], 0.0)) ** len(held_out[user]) for user in new])
    (leak,) = judge(tables, split, told=told)
    assert min(map(len, held_out)) > 2
    assert leak.power == pytest.approx((share - chance) / (1 - chance))


def test_a_tag_is_as_frequent_as_held_out_items_that_have_it():
    tables = make_tables(3, repeats=True)
    split = split_interactions(tables.interactions, DataConfig(split=SPLITS["pairs"]), 0)
    config = DataConfig(features=FeaturesConfig(item={"tags": FeatureConfig("multi_categorical")}))
    _, tags = list_item_names(tables.items, draw_tested(split), config)
    held_out = split.test[["user_id", "item_id"]].drop_duplicates()["item_id"]
    of_items = [set(cell.split("|")) for cell in held_out.map(tables.items.set_index("item_id")["tags"])]
    expected = [np.mean([name in of_item for of_item in of_items]) for name in tags.names]
    assert tags.frequency.tolist() == pytest.approx(expected)


def test_a_renamed_held_out_item_is_named():
    tables = make_tables(5, repeats=False)
    split = split_interactions(tables.interactions, DataConfig(), 0)
    names = np.random.default_rng(6).permutation(N_ITEMS)
    rename = {item: f"segment {names[item - 1000]}" for item in tables.items["item_id"]}
    (leak,) = judge(tables, split, segment=last_of(split.test).map(rename), known=last_of(split.refit).map(rename))
    assert (leak.column, leak.power > 0.9) == ("segment", True)
    assert "users of the same value share a held-out item" in leak.message


def test_few_users_say_nothing():
    tables = make_tables(7, repeats=False)
    few = Tables(tables.interactions.head(29 * N_EVENTS), tables.users.head(29), tables.items)
    split = split_interactions(few.interactions, DataConfig(), 0)
    assert judge(few, split, last_item=last_of(split.test)) == []


@pytest.mark.parametrize("kind", ["leave_one_out", "time", "pairs"])
def test_counts_that_include_the_test_are_named(kind):
    tables = make_tables(8, repeats=True)
    split = split_interactions(tables.interactions, DataConfig(split=SPLITS[kind]), 0)
    everything = pd.concat([split.refit, split.test])
    recent = split.refit[split.refit["datetime"] > split.refit["datetime"].max() - 7 * DAY]
    columns = {
        "sales": everything["item_id"].value_counts(),
        "log_sales": np.log1p(everything["item_id"].value_counts()),
        "place_by_sales": -everything["item_id"].value_counts(),
        "buyers": everything.groupby("item_id")["user_id"].nunique(),
        "sales_before": split.refit["item_id"].value_counts(),
        "recent": recent["item_id"].value_counts(),
        "price": pd.Series(np.random.default_rng(9).normal(size=N_ITEMS), tables.items["item_id"]),
    }
    items = tables.items.assign(
        **{name: tables.items["item_id"].map(values).fillna(0.0).astype(float) for name, values in columns.items()}
    )
    config = DataConfig(features=FeaturesConfig(item=dict.fromkeys(columns, "numeric")))
    leaks = list(find_item_leaks(Tables(tables.interactions, tables.users, items), split, config))
    tested = items.set_index("item_id").loc[split.test["item_id"].unique()]
    expected = {"sales", "log_sales", "place_by_sales", "buyers"} if len(tested) >= 100 else set()
    assert {leak.column for leak in leaks} == expected
    for leak in leaks:
        assert (leak.kind, leak.table) == ("made from the test", "items")
        assert leak.power > 0.9


@pytest.mark.parametrize("has_test", [True, False])
def test_what_users_had_before_is_all_but_what_is_looked_for(has_test):
    """Without a test that is the validation: its own items, taken for earlier ones, would explain every leak."""
    rows = pd.DataFrame({"user_id": [1, 2, 1, 2, 1, 2], "item_id": [11, 12, 13, 14, 15, 16]})
    train, validation, test = rows[:2], rows[2:4], rows[4 : 6 if has_test else 4]
    tested = draw_tested(Split(train, validation, test, "files"))
    before, held_out = (rows[:4], test) if has_test else (train, validation)
    for rows, users, items in (
        (before, tested.before_user, tested.before_item),
        (held_out, tested.test_user, tested.test_item),
    ):
        pairs = zip(tested.user_ids[users].tolist(), tested.item_ids[items].tolist(), strict=True)
        assert set(pairs) == set(rows.itertuples(index=False, name=None))
