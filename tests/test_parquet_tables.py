"""Parquet files: each declared column is the one of that name, whatever else the file or its folder is called."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.config import DataConfig, FeaturesConfig, TableConfig
from datamodules.tables import read_tables


def read(path, columns, **context):
    pq.write_table(pa.table(list(map(pa.array, columns.values())), names=list(columns)), path)
    config = DataConfig(interactions=TableConfig(str(path)), features=FeaturesConfig(context=context))
    return read_tables(config)


def test_names_that_differ_by_case_are_names_of_two_columns(tmp_path):
    columns = {"User_ID": [7, 8], "user_id": [1, 2], "item_id": [3, 4], "Price": [0.5, 0.7], "price": [5.0, 7.0]}
    tables, rejects = read(tmp_path / "events.parquet", columns, price="numeric", Price="numeric")
    expected = pd.DataFrame({name: columns[name] for name in ("user_id", "item_id", "price", "Price")})
    pd.testing.assert_frame_equal(tables.interactions, expected)
    assert rejects.dropped == {"interactions": ("User_ID",)}


def test_a_folder_that_is_called_as_a_column_says_nothing_of_it(tmp_path):
    folder = tmp_path / "device=tv"
    folder.mkdir()
    columns = {"user_id": [1, 2], "item_id": [3, 4], "device": ["phone", "tablet"]}
    tables, _ = read(folder / "events.parquet", columns, device="categorical")
    assert tables.interactions["device"].tolist() == ["phone", "tablet"]
