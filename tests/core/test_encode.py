from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import get_args
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.cells import to_text
from serve.encode import (
    age_values,
    code_slices,
    context_keys,
    encode_features,
    value_slices,
)
from serve.errors import SchemaError
from serve.kinds import KINDS, Feature, Kind

COLOUR = Feature("colour", "categorical", "farbe", ("red", "7", "true"))
TAGS = Feature("tags", "multi_categorical", "tags", ("a", "b", "c", "d"), width=3)
PRICE = Feature("price", "numeric", "price", mean=10.0, scale=4.0)
STOCK = Feature("stock", "numeric", "stock", mean=-1.0, scale=0.5)
HOUR = Feature("hour", "hour_of_day", "datetime", tuple(str(hour) for hour in range(24)))
DAY = Feature("day", "day_of_week", "datetime", tuple(str(day) for day in range(7)))
MONTH = Feature("month", "month_of_year", "datetime", tuple(str(month) for month in range(12)))
WEEK = Feature("week", "week_of_year", "datetime", tuple(str(week) for week in range(53)))
SIDE = (PRICE, COLOUR, TAGS, HOUR, STOCK, DAY)
TITLE = Feature("title", "text", "name", width=5, buckets=64)
IMAGE = Feature("image", "vector", "pixels", width=3, scale=2.0)
ALL_KINDS = (*SIDE, TITLE, IMAGE, MONTH, WEEK)
COLUMNS = ("farbe", "tags", "price", "datetime", "name", "pixels")


def test_integers_that_a_gap_made_floats_in_a_csv_are_known_as_integers():
    feature = Feature("aisle", "categorical", "aisle", vocabulary=("7.0", "1.5", "-12.0"))
    values = ["7.0", "7", 7, 7.0, " 7 ", -12, 1.5, 1, "12", None]
    expected = [2, 2, 2, 2, 2, 4, 3, 1, 1, 1]
    assert encode_features((feature,), {"aisle": values}, 10).codes[:, 0].tolist() == expected


@pytest.mark.parametrize("vocabulary", [("7.0", "7"), ("2.0", "beta"), ("2.0", "07")])
def test_texts_among_which_one_looks_like_a_fraction_are_what_they_are(vocabulary):
    assert Feature("version", "categorical", "version", vocabulary).codes == {
        vocabulary[0]: 2,
        vocabulary[1]: 3,
    }


@pytest.mark.parametrize(
    "vocabulary",
    [("False", "True"), ("TRUE", "FALSE"), ("true",), ("True", "true", "FALSE")],
)
@pytest.mark.parametrize("kind", ["categorical", "multi_categorical"])
def test_true_and_false_are_known_however_they_are_written(kind, vocabulary):
    feature = Feature("vegan", kind, "vegan", vocabulary)
    codes = {text: 2 + place for place, text in enumerate(vocabulary)}
    folded = {text.lower(): code for text, code in codes.items()}
    values = [
        True,
        False,
        "true",
        "True",
        "TRUE",
        "FALSE",
        "false",
        "yes",
        None,
        np.True_,
    ]
    texts = ["true", "false", *values[2:8], None, "true"]
    expected = [codes.get(text, folded.get(text.lower(), 1)) if text else 1 for text in texts]
    assert encode_features((feature,), {"vegan": values}, len(values)).codes.tolist() == [
        [code] for code in expected
    ]


def test_true_is_a_value_like_any_other_beside_others():
    feature = Feature("title", "categorical", "title", ("True", "Grit"))
    assert encode_features(
        (feature,), {"title": ["True", "true", True, "grit"]}, 4
    ).codes.tolist() == [
        [2],
        [1],
        [1],
        [1],
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (" red ", "red"),
        ("007", "007"),
        (7, "7"),
        (7.0, "7"),
        (-0.0, "0"),
        (7.5, "7.5"),
        (np.float32(0.1), "0.1"),
        (np.int8(7), "7"),
        (np.str_(" x"), "x"),
        (Decimal("7.00"), "7"),
        (1e22, "10000000000000000000000"),
        (True, "true"),
        (np.False_, "false"),
        (float("inf"), "inf"),
        (None, None),
        ("", None),
        ("  ", None),
        (float("nan"), None),
        (np.float32("nan"), None),
        (Decimal("nan"), None),
        (np.datetime64("NaT", "s"), None),
    ],
)
def test_to_text(value, text):
    assert to_text(value) == text


def test_categories():
    values = ["red", " red", "blue", None, 7, 7.0, "7", True, 1, ""]
    encoded = encode_features((COLOUR,), {"farbe": values}, len(values))
    assert encoded.codes[:, 0].tolist() == [2, 2, 1, 1, 3, 3, 3, 4, 1, 1]
    for column in (np.array([7, 8]), np.array([7.0, np.nan]), np.array(["7", "8"])):
        assert encode_features((COLOUR,), {"farbe": column}, 2).codes[:, 0].tolist() == [3, 1]


def test_cells_of_several_values():
    cells = ["a|b|c", "d|x|y", None, "", "a|a", ["c", "a"], "a|b|c|d", "x"]
    cells += [
        " a | |b|",
        ["b", None, "a", 7.0],
        ["a|b", "b"],
        np.array(["c", "d"]),
        7,
        float("nan"),
        [],
    ]
    encoded = encode_features((TAGS,), {"tags": cells}, len(cells))
    assert encoded.codes.tolist() == [
        [2, 3, 4],
        [5, 1, 0],
        [1, 0, 0],
        [1, 0, 0],
        [2, 0, 0],
        [4, 2, 0],
        [2, 3, 4],
        [1, 0, 0],
        *([2, 3, 0], [3, 2, 1], [2, 3, 0], [4, 5, 0], *[[1, 0, 0]] * 3),
    ]


def test_numbers_are_standardised_clipped_and_flagged():
    values = encode_features(
        (STOCK, PRICE), {"price": ["12", None, 1e9, -1e308, Decimal(10)]}, 5
    ).values
    expected = [
        [0, 1, 0.5, 0],
        [0, 1, 0, 1],
        [0, 1, 10, 0],
        [0, 1, -10, 0],
        [0, 1, 0, 0],
    ]
    assert values.dtype == np.float32
    assert values.tolist() == expected


@pytest.mark.parametrize("value", [float("inf"), -np.inf, "1e999", "cheap"])
def test_what_is_no_finite_number_is_an_error(value):
    with pytest.raises(
        SchemaError, match=r"'price': (a value is infinite|could not convert .*'cheap')"
    ):
        encode_features((PRICE,), {"price": [1.0, value]}, 2)


@pytest.mark.parametrize("zone", [None, "America/New_York"])
def test_calendar(zone):
    seconds = np.array([0, 1_700_000_000, 1_710_054_000, 1_710_057_600, 951_782_400])
    kinds = (DAY, HOUR, MONTH, WEEK)
    encoded = encode_features(kinds, {"datetime": seconds}, 5, zone)
    moments = [
        datetime.fromtimestamp(int(s), UTC).astimezone(ZoneInfo(zone or "UTC")) for s in seconds
    ]
    for code, moment in zip(encoded.codes.tolist(), moments, strict=True):
        week = (moment.timetuple().tm_yday - 1) // 7
        assert code == [2 + moment.weekday(), 2 + moment.hour, 1 + moment.month, 2 + week]
    assert encode_features((HOUR,), {"datetime": [None, 7200]}, 2).codes.tolist() == [
        [1],
        [4],
    ]


def test_absent_columns_are_missing_everywhere():
    encoded = encode_features(SIDE, {}, 3)
    assert encoded.codes.tolist() == [[1, 1, 0, 0, 1, 1]] * 3
    assert encoded.values.tolist() == [[0, 1, 0, 1]] * 3


@pytest.mark.parametrize("n", [0, 5])
def test_no_features_and_no_rows(n):
    none = encode_features((), {}, n)
    assert (none.codes.shape, none.values.shape) == ((n, 0), (n, 0))
    empty = encode_features(SIDE, {"farbe": [], "tags": [], "price": [], "datetime": []}, 0)
    assert (empty.codes.shape, empty.values.shape) == ((0, 6), (0, 4))


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_infinity=False)
    | st.text(max_size=3)
)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
rows = st.fixed_dictionaries(
    {
        "farbe": scalars | st.sampled_from(["red", 7, True]),
        "tags": scalars
        | st.lists(scalars, max_size=5)
        | st.lists(st.sampled_from("abcdx")).map("|".join),
        "price": st.none() | st.floats(allow_infinity=False) | st.integers(-(2**63), 2**63),
        "datetime": st.none() | st.integers(-(10**9), 4 * 10**9),
        "name": st.none()
        | st.text(max_size=12)
        | st.lists(st.none() | st.text(max_size=5), max_size=3),
        "pixels": st.none()
        | st.lists(finite, min_size=3, max_size=3)
        | st.just([])
        | st.just("1 2 3"),
    }
)


@given(table=st.lists(rows, max_size=7))
@settings(max_examples=60, deadline=None)
def test_a_batch_is_its_rows_one_by_one_and_within_bounds(table):
    columns = {name: [row[name] for row in table] for name in COLUMNS}
    batch = encode_features(ALL_KINDS, columns, len(table), "Asia/Kolkata")
    single = [
        encode_features(ALL_KINDS, {name: [row[name]] for name in row}, 1, "Asia/Kolkata")
        for row in table
    ]
    assert batch.codes.tolist() == [row.codes[0].tolist() for row in single]
    assert batch.values.tolist() == [row.values[0].tolist() for row in single]
    for feature, columns in code_slices(ALL_KINDS):
        codes = batch.codes[:, columns]
        assert ((codes >= 0) & (codes < feature.n_codes)).all()
        assert (codes[:, 0] > 0).all()
    assert (np.abs(batch.values) <= 10).all()
    for _, columns in value_slices(ALL_KINDS):
        assert np.isin(batch.values[:, columns.stop - 1], [0, 1]).all()


def test_equal_contexts_have_equal_keys_in_every_schema_and_others_have_others():
    cells = {
        "place": ["shop", "web", "web", "shop", None, "mars"],
        "day": ["mon", "mon", "sun", None, None, "moon"],
    }

    def keys(places, days):
        features = (
            Feature("place", "categorical", "place", places),
            Feature("day", "categorical", "day", days),
        )
        return context_keys(features, encode_features(features, cells, 6).codes)

    found = keys(("shop", "web"), ("mon", "sun"))
    assert found.tolist() == keys(("web", "app", "shop"), ("sun", "tue", "mon")).tolist()
    assert len(set(found[:4].tolist())) == 4
    assert found[4:].tolist() == [0, 0]  # nothing is known


def test_a_hierarchy_is_the_paths_to_its_levels_however_it_is_written():
    shelf = Feature(
        "shelf",
        "hierarchical",
        "shelf",
        ("a", "a > b", "a > b > c", "b"),
        separator=">",
        width=3,
    )
    cells = ["a > b > c", "a>b", ["a", "b", "c"], "a > x > c", "b", " > ", None]
    expected = [
        [2, 3, 4],
        [2, 3, 0],
        [2, 3, 4],
        [2, 1, 0],
        [5, 0, 0],
        [1, 0, 0],
        [1, 0, 0],
    ]
    assert encode_features((shelf,), {"shelf": cells}, 7).codes.tolist() == expected
    written = [shelf.write(cell) for cell in cells]
    assert written == ["a > b > c", "a > b", "a > b > c", "a > x > c", "b", None, None]
    assert encode_features((shelf,), {"shelf": written}, 7).codes.tolist() == expected


def test_a_date_is_an_age_in_days_that_moves_with_the_moment():
    joined, income = (
        Feature("joined", "date", "joined", mean=-19_000.0, scale=100.0),
        replace(PRICE, column="income"),
    )
    dates = [
        "2022-01-01",
        "2022-01-01T12:00:00+02:00",
        None,
        datetime(2022, 3, 1, tzinfo=UTC),
        "1000-01-01",
        "",
    ]
    rows = encode_features(
        (income, joined), {"joined": dates, "income": [14.0] * 6}, 6, "Europe/Berlin"
    ).values
    days = np.array(
        [18_993 - 1 / 24, 18_993 + 10 / 24, np.nan, 19_052, np.nan, np.nan]
    )  # since 1970
    for later in (0.0, 365.25, -20.5):
        expected = (-days + 19_000 + later) / 100
        found = age_values((income, joined), rows, np.full(6, later))
        assert found[[0, 1, 3], 2] == pytest.approx(expected[[0, 1, 3]], abs=1e-5)
        assert found[:, 3].tolist() == [0, 0, 1, 0, 0, 1]
        assert found[[2, 5], 2].tolist() == [0, 0]
        assert (found[:, :2] == [1.0, 0.0]).all()
    with pytest.raises(SchemaError, match=r"'joined': 'soon' \(str\) is no date"):
        encode_features((joined,), {"joined": ["soon"]}, 1)


JOINED = Feature("joined", "date", "joined", mean=-19_000.0, scale=100.0)
SHELF = Feature("shelf", "hierarchical", "shelf", ("a", "a > b"), separator=">", width=2)


@pytest.mark.parametrize(
    "feature", [PRICE, COLOUR, TAGS, TITLE, IMAGE, JOINED, SHELF], ids=lambda f: f.kind
)
def test_a_drawn_value_is_one_of_its_kind_and_is_read_back_from_its_text(feature):
    value = feature.parse(feature.draw(np.random.default_rng(3)), "features.x")
    encoded = feature.encode([value, None])
    assert encoded.shape == (2, feature.width + feature.has_values)
    assert not feature.has_values or encoded[:, -1].tolist() == [0, 1]
    assert feature.has_values or encoded[1, 0] == 1 < encoded[0, 0]
    if feature.kind != "vector":
        assert feature.encode([feature.write(value), ""]).tolist() == encoded.tolist()


def test_every_kind_has_its_entry_in_the_table():
    assert set(get_args(Kind)) == set(KINDS)
    assert {feature.kind for feature in (*ALL_KINDS, JOINED, SHELF)} == set(KINDS)
