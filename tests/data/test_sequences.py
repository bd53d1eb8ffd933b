from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from datamodules.sequences import build_catalogue, build_sequences, sort_interactions
from serve.encode import encode_features
from tests.tiny_data import BASKETS, ORDERED, N, U, make_world


@pytest.fixture(scope="module", params=[ORDERED, BASKETS], ids=["ordered", "baskets"])
def world(request):
    return make_world(request.param)


def test_sequences_equal_a_loop_over_users(world):
    tables, catalogue, schema = world.tables, world.catalogue, world.schema
    sequences = build_sequences(tables.interactions, tables.users, catalogue.item_ids, schema)
    row_of = {item_id: row for row, item_id in enumerate(catalogue.item_ids.tolist())}
    codes = {name: 2 + place for place, name in enumerate(schema.event_types)}
    offsets = sequences.events.offsets
    assert sequences.user_ids.tolist() == sorted(tables.users["user_id"])
    for user, user_id in enumerate(sequences.user_ids.tolist()):
        mine = [row for row in tables.interactions.to_dict("records") if row["user_id"] == user_id]
        mine.sort(
            key=lambda row: row["datetime"]
        )  # stable: the order of the file where times are equal
        part = slice(offsets[user], offsets[user + 1])
        assert sequences.events.item_row[part].tolist() == [row_of[row["item_id"]] for row in mine]
        assert sequences.events.time[part].tolist() == [row["datetime"] for row in mine]
        assert sequences.events.event[part].tolist() == [codes[row["event"]] for row in mine]
        assert sequences.events.weight[part].tolist() == [row["weight"] for row in mine]
        columns = {name: [row[name] for row in mine] for name in ("device", "datetime")}
        expected = encode_features(schema.context_features, columns, len(mine))
        assert np.array_equal(sequences.context.codes[part], expected.codes)
    person = tables.users.sort_values("user_id")
    assert np.array_equal(
        sequences.user.codes, encode_features(schema.user_features, person, U).codes
    )
    assert np.array_equal(
        sequences.user.values, encode_features(schema.user_features, person, U).values
    )


def test_items_without_a_row_in_the_items_table_are_unlisted_unless_there_is_no_table(world):
    tables, schema = world.tables, world.schema
    few, none = tables.items.iloc[3:], tables.items.iloc[:0]
    train = tables.interactions
    catalogue = build_catalogue(few, train, schema, "exclude")
    expected = [item_id not in set(few["item_id"]) for item_id in catalogue.item_ids.tolist()]
    assert catalogue.is_unlisted.tolist() == expected
    assert any(expected)
    for items, unlisted in ((few, "list"), (none, "exclude")):
        assert not build_catalogue(items, train, schema, unlisted).is_unlisted.any()


def test_items_outside_the_catalogue_are_left_out(world):
    tables, schema = world.tables, world.schema
    known = world.catalogue.item_ids[::2]
    sequences = build_sequences(tables.interactions, tables.users, known, schema)
    kept = tables.interactions["item_id"].isin(known)
    assert len(sequences.events.time) == kept.sum()
    again = build_sequences(tables.interactions[kept], tables.users, known, schema)
    for name, values in vars(sequences.events).items():
        assert np.array_equal(values, getattr(again.events, name)), name


def test_users_of_either_table_have_a_sequence(world):
    tables, schema, ids = world.tables, world.schema, world.catalogue.item_ids
    few = tables.users[tables.users["user_id"] > 104]
    sequences = build_sequences(tables.interactions, few, ids, schema)
    everyone = set(few["user_id"]) | set(tables.interactions["user_id"])
    assert sequences.user_ids.tolist() == sorted(everyone)
    outside = np.isin(sequences.user_ids, few["user_id"], invert=True)
    missing = encode_features(schema.user_features, {}, 1)
    assert (sequences.user.codes[outside] == missing.codes).all()
    assert (sequences.user.values[outside] == missing.values).all()


def test_rows_are_ordered_by_time_then_position_then_file():
    frame = pd.DataFrame(
        {
            "user_id": [2, 1, 1, 1, 1],
            "datetime": [5, 9, 3, 3, 3],
            "position": [0, 0, 7, 4, 4],
            "item_id": list("abcde"),
        }
    )
    assert "".join(sort_interactions(frame)["item_id"]) == "decba"
    assert "".join(sort_interactions(frame.drop(columns="position"))["item_id"]) == "cdeba"
    assert "".join(sort_interactions(frame.drop(columns="datetime"))["item_id"]) == "bdeca"


def test_the_catalogue_is_the_items_table_and_the_training_items(world):
    tables, schema = world.tables, world.schema
    train = tables.interactions.query("item_id > 517")
    catalogue = build_catalogue(tables.items, train, schema)
    assert catalogue.item_ids.tolist() == sorted(
        set(tables.items["item_id"]) | set(train["item_id"])
    )
    assert len(catalogue) == N
    columns = tables.items.set_index("item_id").reindex(catalogue.item_ids)
    expected = encode_features(schema.item_features, columns, N)
    assert np.array_equal(catalogue.features.codes, expected.codes)
    assert np.array_equal(catalogue.features.values, expected.values)
    vocabulary = schema.item_features[0].vocabulary
    known = [
        2 + vocabulary.index(value) if isinstance(value, str) else 1
        for value in columns["category"]
    ]
    assert catalogue.categories[:, 0].tolist() == known
    assert catalogue.n_categories == 2 + len(vocabulary)
