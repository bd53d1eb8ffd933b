"""Columns of data frames encode as lists and arrays do."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from serve.clock import to_seconds
from serve.encode import encode_features, to_numbers, to_text
from serve.profiles import feature_values
from serve.schema import Feature

COLOUR = Feature("colour", "categorical", "farbe", vocabulary=("9", "7"))
PRICE = Feature("price", "numeric", "price", mean=10.0, scale=4.0)


@pytest.mark.parametrize("kind", ["str", "Int64", "category"])
def test_series_give_the_codes_of_their_values(kind):
    column = pd.Series([7, None, 7, 9, 8], dtype="Int64", index=[3, 1, 4, 5, 9]).astype(kind)
    assert encode_features((COLOUR,), {"farbe": column}, 5).codes[:, 0].tolist() == [3, 1, 3, 2, 1]


def test_missing_values_of_pandas_are_missing():
    assert to_text(pd.NA) is to_text(pd.NaT) is None
    np.testing.assert_array_equal(to_numbers(PRICE, np.asarray(pd.Series([2, None], dtype="Int64"))), [2.0, np.nan])
    cells = np.array([pd.Timestamp("2017-12-01T00:00:00.75"), pd.NaT, pd.Timestamp("2017-12-01 02:00+01:00")], object)
    seconds, is_valid = to_seconds(cells, None)
    assert (seconds.tolist(), is_valid.tolist()) == ([1_512_086_400, 0, 1_512_090_000], [True, False, True])


def test_a_frame_is_stored_as_its_lists_are():
    columns = {"farbe": ["7", None, " 9"], "price": [1.5, None, 4]}
    for name in ("colour", "price"):
        left, right = (feature_values((COLOUR, PRICE), one)[name] for one in (columns, pd.DataFrame(columns)))
        assert pd.isna(left).tolist() == pd.isna(right).tolist() == [False, True, False]
        assert left[[0, 2]].tolist() == right[[0, 2]].tolist()
