"""Columns of data frames encode as lists and arrays do."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from serve.clock import to_seconds
from serve.encode import encode_features, to_numbers, to_text
from serve.profiles import feature_values
from serve.schema import Feature

COLOUR = Feature("colour", "categorical", "farbe", vocabulary=("9", "7"))
PRICE = Feature("price", "numeric", "price", mean=10.0, scale=4.0)


@pytest.mark.parametrize("value", [pd.NA, pd.NaT])
def test_missing_values_of_pandas_are_missing(value):
    assert to_text(value) is None


def test_a_missing_time_of_pandas_beside_others_is_invalid():
    cells = np.empty(3, object)
    cells[:] = [pd.Timestamp("2017-12-01T00:00:00.75"), pd.NaT, pd.Timestamp("2017-12-01 02:00", tz="Europe/Berlin")]
    seconds, is_valid = to_seconds(cells, None)
    assert seconds.tolist() == [1_512_086_400, 0, 1_512_090_000]
    assert is_valid.tolist() == [True, False, True]


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(["7", None, "7", "9", "7"]),
        pd.Series([7, None, 7, 9, 7], dtype="Int64"),
        pd.Series([7, 8, 7, 9, 7], index=[3, 1, 4, 5, 9]),
        pd.Series(["7", "8", "7", "9", "7"], dtype="category"),
    ],
    ids=["texts", "nullable", "indexed", "category"],
)
def test_series_give_the_codes_of_their_values(column):
    expected = [{"7": 3, "9": 2}.get(str(value), 1) for value in column]
    assert encode_features((COLOUR,), {"farbe": column}, 5).codes[:, 0].tolist() == expected


@pytest.mark.parametrize("column", [pd.Series([2, None], dtype="Int64"), [Decimal(2), pd.NA]])
def test_numbers_of_series(column):
    column = column if isinstance(column, list) else np.asarray(column)
    np.testing.assert_array_equal(to_numbers(PRICE, column), [2.0, np.nan])


def test_a_frame_is_stored_as_its_lists_are():
    columns = {"farbe": ["7", None, " 9"], "price": [1.5, None, 4]}
    stored = [feature_values((COLOUR, PRICE), given) for given in (columns, pd.DataFrame(columns))]
    for name in ("colour", "price"):
        left, right = (values[name] for values in stored)
        np.testing.assert_array_equal(pd.isna(left), pd.isna(right))
        assert left[~pd.isna(left)].tolist() == right[~pd.isna(right)].tolist()
