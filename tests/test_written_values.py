"""Values that a column and an array of it write in two ways: a category is found under the text it was fitted as."""

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from datamodules.config import DataConfig, FeaturesConfig, TableConfig
from datamodules.schema_fitting import fit_schema
from datamodules.sequences import build_catalogue
from datamodules.tables import read_tables, tables_from_frames
from serve.encode import encode_features
from serve.filters import Columns, parse_where

EVENTS = pd.DataFrame({"user_id": [1, 1, 2, 2], "item_id": [3, 4, 5, 6]})
FLOATS = ["float16", "float32", "Float32", "float[pyarrow]", "float64", "Float64", "double[pyarrow]"]


def fit(values, kind="categorical"):
    """Return the vocabulary, and the codes by item, of one feature."""
    config = DataConfig(features=FeaturesConfig(item={"size": kind}))
    items = pd.DataFrame({"item_id": EVENTS["item_id"], "size": values})
    tables, _ = tables_from_frames(config, EVENTS, items=items)
    schema = fit_schema(tables, tables.interactions, config)
    catalogue = build_catalogue(tables.items, tables.interactions, schema)
    return schema.item_features, catalogue


@pytest.mark.parametrize("kind", ["categorical", "multi_categorical"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_fractions_of_any_width_are_the_categories_that_a_request_names(dtype, kind):
    features, catalogue = fit(pd.Series([0.1, 4.9, None, 0.1]).astype(dtype), kind)
    asked = encode_features(features, {"size": [0.1, 4.9, None, "0.1"]}, 4)
    assert features[0].vocabulary == ("0.1", "4.9")
    assert catalogue.features.codes[:, 0].tolist() == asked.codes[:, 0].tolist() == [2, 3, 1, 2]
    assert catalogue.to_arrow()["size"].to_pylist() == [0.1, 4.9, None, 0.1]


def test_fractions_of_32_bits_in_a_file_are_categories(tmp_path):
    items = pd.DataFrame({"item_id": [3, 4], "size": np.array([0.1, 4.9], np.float32)})
    for name, frame in (("events", EVENTS), ("items", items)):
        frame.to_parquet(tmp_path / f"{name}.parquet")
    files = {"interactions": "events", "items": "items"}
    config = DataConfig(
        **{table: TableConfig(str(tmp_path / f"{name}.parquet")) for table, name in files.items()},
        features=FeaturesConfig(item={"size": "categorical"}),
    )
    assert read_tables(config)[0].items["size"].tolist() == [0.1, 4.9]


@pytest.mark.parametrize(
    "dtype", ["datetime64[us]", "datetime64[ns, Europe/Berlin]", "timedelta64[s]", pd.ArrowDtype(pa.timestamp("ms"))]
)
def test_moments_are_categories(dtype):
    features, catalogue = fit(pd.Series([10**9, 2 * 10**9, None, 10**9], dtype="Int64").astype("float").astype(dtype))
    assert len(features[0].vocabulary) == 2
    assert catalogue.features.codes[:, 0].tolist() == [2, 3, 1, 2]
    asked = encode_features(features, {"size": catalogue.to_arrow()["size"].to_pylist()}, 4)
    assert asked.codes[:, 0].tolist() == [2, 3, 1, 2]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.5, None, 1.5, 3.0], [2.5, None, 1.5, 3.0]),
        ([2, 1.5, None, 3], [2.0, 1.5, None, 3.0]),
        ([2, None, 1, 3], [2, None, 1, 3]),
        ([2, "1.5", None, 3], ["2", "1.5", None, "3"]),
        ([2.5, 10**400, None, 3], ["2.5", f"1{'0' * 400}", None, "3"]),
    ],
    ids=["fractions", "both", "integers", "a text", "beyond every number"],
)
def test_numbers_of_a_category_are_served_as_numbers(values, expected):
    _, catalogue = fit(pd.Series(values, dtype=object))
    assert catalogue.to_arrow()["size"].to_pylist() == expected


@pytest.mark.parametrize("kind", ["categorical", "multi_categorical", "text"])
@pytest.mark.parametrize("values", [[None] * 4, pd.Series([None] * 4, dtype="str"), [math.nan] * 4])
def test_a_column_without_a_value_is_one_of_texts_that_filters_name(kind, values):
    features, catalogue = fit(pd.Series(values, dtype=getattr(values, "dtype", object)), kind)
    columns = Columns(catalogue.to_arrow(), features)
    assert not columns.admit(parse_where("size = 'large'")).any()
