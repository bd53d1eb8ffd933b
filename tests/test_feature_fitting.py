from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.config import DataConfig, FeatureConfig, FeaturesConfig
from datamodules.schema_fitting import fit_feature, fit_schema
from datamodules.tables import Tables
from serve.encode import Vector
from serve.errors import SchemaError
from serve.schema import Schema


def fit(kind, cells, previous=None):
    return fit_feature("x", FeatureConfig(kind, "x"), pd.Series(cells, dtype=object), previous)


def test_a_text_has_as_many_buckets_as_tokens_within_limits():
    assert (fit("text", ["ab", None]).width, fit("text", ["ab", None]).buckets) == (4, 256)  # ab, <ab>, <ab, ab>
    words = " ".join(f"w{number:04d}" for number in range(64))
    cells = [words.replace("w", letter) for letter in "abcdefghijk"]
    assert fit("text", cells).width == 64
    assert fit("text", cells).buckets == 1024  # 64 x 11 = 704 words
    many = [f"{number} {number}x {number}y" for number in range(9000)]
    assert fit("text", many).buckets == 2**14
    assert (fit("text", [None]).width, fit("text", []).buckets) == (1, 256)


def test_a_vector_has_one_width_and_the_root_mean_square_length():
    vectors = [[3.0, 4.0], None, [0.0, 5.0], [0.0, 1.0]]
    feature = fit("vector", [None if entries is None else Vector.pack(np.float32(entries)) for entries in vectors])
    assert feature.width == 2
    assert feature.scale == pytest.approx(((25 + 25 + 1) / 3) ** 0.5)
    assert fit("vector", [[0.0] * 7]).scale == 1.0
    assert fit("vector", [Vector.pack(np.float32([3e30, 4e30]))]).scale == pytest.approx(5e30)
    assert fit("vector", ["1 2 2", float("nan")]).scale == pytest.approx(3)


def test_a_column_without_vectors_is_refused():
    with pytest.raises(SchemaError, match="'x': no training row has a vector"):
        fit("vector", [None, float("nan")])


@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        ([1.0, 7.0, 1e200], "from 1 to 1e\\+200"),
        ([-1.7e308, 1.7e308, None], "from -1.7e\\+308 to 1.7e\\+308"),
        ([1e-200, 3e-200], "from 1e-200 to 3e-200"),
    ],
)
def test_numbers_that_cannot_be_scaled_are_refused(numbers, named):
    with pytest.raises(SchemaError, match=f"'x': values {named} have no standard deviation"):
        fit("numeric", numbers)


def test_numbers_that_can_be_scaled_are():
    assert (fit("numeric", [1e150, 3e150]).mean, fit("numeric", [1e150, 3e150]).scale) == pytest.approx((2e150, 1e150))
    assert (fit("numeric", [1e200] * 5).mean, fit("numeric", [1e200] * 5).scale) == (1e200, 1.0)
    assert (fit("numeric", [None, float("nan")]).mean, fit("numeric", []).scale) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("kind", "later"), [("numeric", [7.0, 9.0]), ("text", ["long words " * 9]), ("vector", [[9.0]])]
)
def test_scales_stay_the_previous_ones(kind, later):
    before = fit(kind, {"numeric": [1.0, 2.0], "text": ["ab"], "vector": [[1.0, 2.0]]}[kind])
    assert fit(kind, later, before) == before
    assert fit(kind, later) != before


def test_a_kind_that_changed_is_refused():
    with pytest.raises(SchemaError, match="'x' is categorical; the previous schema has it as numeric"):
        fit("categorical", ["a"], fit("numeric", [1.0]))


def test_new_values_come_after_the_previous_by_frequency():
    before = fit("categorical", ["b", "b", "a"])
    after = fit("categorical", ["d", "c", "d", "a"], before)
    assert after.vocabulary == ("b", "a", "d", "c")
    several = fit("multi_categorical", ["a|b"])
    assert (several.width, several.vocabulary) == (2, ("a", "b"))
    grown = fit("multi_categorical", ["c|d|a", "d"], several)
    assert (grown.width, grown.vocabulary) == (3, ("a", "b", "d", "c"))
    assert fit("multi_categorical", ["b"], grown).width == 3


@pytest.mark.parametrize("kind", ["multi_categorical", "text"])
def test_column_and_separator_are_those_declared_now(kind):
    before = fit(kind, ["a|b"])
    after = fit_feature("x", FeatureConfig(kind, "y", separator=";"), pd.Series(["c;d"]), before)
    assert (after.column, after.separator) == ("y", ";")
    assert after.vocabulary == (("a", "b", "c", "d") if kind == "multi_categorical" else before.vocabulary)


CONFIG = DataConfig(
    features=FeaturesConfig(
        user={"town": "categorical"},
        item={"tags": "multi_categorical", "title": "text"},
        context={"device": "categorical", "hour": "hour_of_day"},
    )
)
values = st.sampled_from([None, "a", "b", "c", "d", "e"])
event = st.fixed_dictionaries(
    {
        "user_id": st.integers(1, 3),
        "item_id": st.sampled_from(["i", "j"]),
        "event": values,
        "device": values,
        "datetime": st.integers(10**9, 2 * 10**9),
    }
)
table = st.lists(event, min_size=1, max_size=7)
cells = st.lists(values, min_size=3, max_size=3)


def fit_tables(events, towns, tags, previous):
    interactions = pd.DataFrame(events).astype({"event": "str", "device": "str"})
    users = pd.DataFrame({"user_id": [1, 2, 3], "town": towns})
    titles = [f"{first} {second}" for first, second in zip(tags, towns, strict=True)]
    items = pd.DataFrame({"item_id": ["i", "j", "k"], "tags": tags, "title": titles})
    return fit_schema(Tables(interactions, users, items), interactions, CONFIG, previous)


def codes_of(schema: Schema) -> dict:
    """Say what each code means: (side and feature, value) -> code."""
    every = {"events": {name: 2 + place for place, name in enumerate(schema.event_types)}}
    for side in ("user", "item", "context"):
        every |= {f"{side}.{feature.name}": feature.codes for feature in schema.features(side)}
    return {(name, value): code for name, codes in every.items() for value, code in codes.items()}


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_no_code_ever_changes(data):
    schema, known, sizes = None, {}, []
    for _ in range(3):
        schema = fit_tables(data.draw(table), data.draw(cells), data.draw(cells), schema)
        codes = codes_of(schema)
        assert known.items() <= codes.items()
        by_name = {}
        for (name, _), code in codes.items():
            by_name.setdefault(name, []).append(code)
        assert all(sorted(found) == list(range(2, 2 + len(found))) for found in by_name.values())
        known = codes
        sizes.append(schema.item_features[1].buckets)
        schema = Schema.from_json(schema.to_json())
    assert len(set(sizes)) == 1


def test_a_type_of_ids_that_changed_is_refused():
    events = [{"user_id": 1, "item_id": "i", "event": "a", "device": "b", "datetime": 10**9}]
    before = fit_tables(events, ["a"] * 3, ["b"] * 3, None)
    with pytest.raises(SchemaError, match="user_id is integer; the previous schema has string ids"):
        fit_tables(events, ["a"] * 3, ["b"] * 3, replace(before, user_id_type="string"))
    with pytest.raises(SchemaError, match="item_id is string; the previous schema has integer ids"):
        fit_tables(events, ["a"] * 3, ["b"] * 3, replace(before, item_id_type="integer"))


def test_event_types_and_weights_stay_where_the_column_is_gone():
    frame = pd.DataFrame({"user_id": [1, 1], "item_id": [5, 7], "event": ["view", "buy"], "weight": [1.0, 3.0]})
    tables = Tables(frame, frame[["user_id"]].head(1), frame[["item_id"]].head(0))
    before = fit_schema(tables, frame, DataConfig())
    after = fit_schema(tables, frame.drop(columns=["event", "weight"]), DataConfig(), before)
    assert after.event_types == before.event_types == ("buy", "view")
    assert (after.has_weight, after.weight_scale) == (False, before.weight_scale)
    heavier = fit_schema(tables, frame.assign(weight=99.0, event="gift"), DataConfig(), before)
    assert (heavier.weight_mean, heavier.weight_scale) == (before.weight_mean, before.weight_scale)
    assert heavier.event_types == ("buy", "view", "gift")


def test_weights_that_come_later_have_a_scale_of_their_own():
    frame = pd.DataFrame({"user_id": [1, 1], "item_id": [5, 7], "datetime": [10**9, 10**9 + 1]})
    tables = Tables(frame, frame[["user_id"]].head(1), frame[["item_id"]].head(0))
    before = fit_schema(tables, frame, DataConfig())
    after = fit_schema(tables, frame.assign(weight=[0.0, np.e - 1]), DataConfig(), before)
    assert (after.has_weight, after.weight_mean, after.weight_scale) == (True, pytest.approx(0.5), pytest.approx(0.5))
