from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.config import DataConfig, FeatureConfig, FeaturesConfig, TableConfig
from datamodules.tables import read_tables, tables_from_frames
from serve.errors import SchemaError
from tests.written_tables import read


@pytest.fixture
def frames():
    interactions = pd.DataFrame(
        {
            "customer": [7, 7, 3],
            "sku": ["007", "b", "007"],
            "ts": pd.to_datetime(["2017-12-01", "2017-12-02", "2017-12-03"], utc=True),
            "action": ["view", None, "buy"],
            "device": pd.Categorical(["tv", "phone", None]),
            "secret": [1, 2, 3],
        }
    )
    users = pd.DataFrame({"user_id": [3, 7, 5], "age": [31.0, np.nan, 20.0], "town": ["x", "y", None]})
    items = pd.DataFrame(
        {"item_id": ["007", "b", "c", "d"], "price": [1, 2, 3, None], "genres": [["a", "b"], [], ["c"], None]}
    )
    return interactions, users, items


@pytest.fixture
def config():
    return DataConfig(
        interactions=TableConfig(
            columns={"user_id": "customer", "item_id": "sku", "datetime": "ts", "event": "action"}
        ),
        users=TableConfig(),
        items=TableConfig(),
        features=FeaturesConfig(
            user={"age": "numeric"},
            item={"price": "numeric", "genres": "multi_categorical"},
            context={"hour": "hour_of_day", "device": "categorical"},
        ),
        audit_only=["town"],
    )


def test_frames_become_canonical_tables(config, frames):
    tables, rejects = tables_from_frames(config, *frames)
    assert list(tables.interactions) == ["user_id", "item_id", "datetime", "event", "device"]
    assert tables.interactions["user_id"].tolist() == [7, 7, 3]
    assert tables.interactions["datetime"].tolist() == [1512086400, 1512172800, 1512259200]
    assert tables.interactions["datetime"].dtype == "int64"
    assert list(tables.users) == ["user_id", "age", "town"]
    assert list(tables.items) == ["item_id", "price", "genres"]
    assert tables.items["genres"].tolist() == [("a", "b"), (), ("c",), None]
    assert tables.items["price"].dtype == "float64"
    assert rejects.dropped == {"interactions": ("secret",), "users": (), "items": ()}
    assert rejects.records == {"interactions": 3, "users": 3, "items": 4}
    assert rejects.frame.empty


def test_parquet_files_give_the_tables_of_their_frames(tmp_path, config, frames):
    expected, _ = tables_from_frames(config, *frames)
    tables = {}
    for name, frame in zip(("interactions", "users", "items"), frames, strict=True):
        frame.to_parquet(tmp_path / f"{name}.parquet")
        tables[name] = TableConfig(str(tmp_path / f"{name}.parquet"), getattr(config, name).columns)
    got, _ = read_tables(DataConfig(features=config.features, audit_only=config.audit_only, **tables))
    pd.testing.assert_frame_equal(got.interactions, expected.interactions)
    pd.testing.assert_frame_equal(got.users, expected.users)
    pd.testing.assert_frame_equal(got.items, expected.items)


def test_a_table_that_is_not_given_holds_the_ids_alone(frames):
    events = pd.DataFrame({"user_id": [5, 3, 5], "item_id": ["x", "y", "x"]})
    tables, _ = tables_from_frames(DataConfig(), events)
    assert tables.users["user_id"].tolist() == [5, 3]
    assert list(tables.items) == ["item_id"]
    assert tables.items.empty


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "-2", "0"], [1, -2, 0]),
        (["007", "1", "2"], ["007", "1", "2"]),
        (["9223372036854775807", "1", "2"], [9223372036854775807, 1, 2]),
        (["9223372036854775808", "1", "2"], ["9223372036854775808", "1", "2"]),
        (["1.0", "2", "3"], ["1.0", "2", "3"]),
        (["+1", "2", "3"], ["+1", "2", "3"]),
        (["-0", "2", "3"], ["-0", "2", "3"]),
        (["a", " b ", "ü"], ["a", " b ", "ü"]),
        (["NULL", "nan", "NA"], ["NULL", "nan", "NA"]),
    ],
)
def test_ids_of_a_csv_are_integers_only_if_all_are_written_so(tmp_path, cells, expected):
    text = "user_id,item_id\n" + "".join(f"{cell},{7}\n" for cell in cells)
    tables, _ = read(tmp_path, text)
    assert tables.interactions["user_id"].tolist() == expected
    assert tables.interactions["item_id"].tolist() == [7, 7, 7]


def test_texts_of_a_typed_table_stay_texts():
    events = pd.DataFrame({"user_id": ["1", "2"], "item_id": pd.array([2**53 + 1, 4], dtype="Int64")})
    tables, _ = tables_from_frames(DataConfig(), events)
    assert tables.interactions["user_id"].tolist() == ["1", "2"]
    assert tables.interactions["item_id"].tolist() == [2**53 + 1, 4]


def test_columns_of_a_frame_may_be_called_by_numbers():
    config = DataConfig(interactions=TableConfig(columns={"user_id": "0", "item_id": "2"}))
    tables, rejects = tables_from_frames(config, pd.DataFrame([[3, 5, 7], [11, 13, 17]]))
    assert tables.interactions.to_dict("list") == {"user_id": [3, 11], "item_id": [7, 17]}
    assert rejects.dropped["interactions"] == ("1",)


@pytest.mark.parametrize("dtype", ["uint64", "UInt64", "uint64[pyarrow]"])
@pytest.mark.parametrize(("most", "expected"), [(2**63 - 1, [2**63 - 1, 7]), (2**63, [str(2**63), "7"])])
def test_unsigned_ids_above_int64_are_texts(tmp_path, dtype, most, expected):
    events = pd.DataFrame({"user_id": pd.Series([most, 7], dtype=dtype), "item_id": [1, 2]})
    assert tables_from_frames(DataConfig(), events)[0].interactions["user_id"].tolist() == expected
    events.to_parquet(tmp_path / "events.parquet")
    tables, _ = read_tables(DataConfig(interactions=TableConfig(str(tmp_path / "events.parquet"))))
    assert tables.interactions["user_id"].tolist() == expected


def test_one_table_with_texts_makes_all_ids_texts(tmp_path):
    (tmp_path / "items.csv").write_text("item_id\n7\n08\n")
    tables, _ = read(tmp_path, "user_id,item_id\n1,7\n2,9\n", items=TableConfig(str(tmp_path / "items.csv")))
    assert tables.interactions["item_id"].tolist() == ["7", "9"]
    assert tables.items["item_id"].tolist() == ["7", "08"]
    assert tables.interactions["user_id"].tolist() == [1, 2]


def test_integers_with_a_gap_stay_exact(tmp_path):
    frame = pd.DataFrame({"user_id": pd.array([2**53 + 1, None, 5], dtype="Int64"), "item_id": [1, 2, 3]})
    frame.to_parquet(tmp_path / "events.parquet")
    config = DataConfig(interactions=TableConfig(str(tmp_path / "events.parquet")), max_reject_rate=1)
    tables, rejects = read_tables(config)
    assert tables.interactions["user_id"].tolist() == [2**53 + 1, 5]
    assert rejects.frame[["line", "column", "reason"]].to_numpy().tolist() == [[2, "user_id", "missing"]]


def test_a_number_may_be_the_least_and_the_most_that_is_declared():
    features = FeaturesConfig(item={"price": FeatureConfig("numeric", min=0, max=10)})
    items = pd.DataFrame({"item_id": range(5), "price": [-1e-9, 0, 5, 10, 10.000001]})
    events = pd.DataFrame({"user_id": [1], "item_id": [2]})
    tables, _ = tables_from_frames(DataConfig(items=TableConfig(), features=features), events, items=items)
    assert tables.items["price"].tolist() == [0, 5, 10]


def test_of_several_limits_of_a_column_the_narrowest_count():
    one, other = FeatureConfig("numeric", "price", min=0, max=8), FeatureConfig("numeric", "price", min=-2, max=10)
    items = pd.DataFrame({"item_id": range(5), "price": [-1, 0, 5, 8, 9]})
    config = DataConfig(items=TableConfig(), features=FeaturesConfig(item={"one": one, "other": other}))
    tables, _ = tables_from_frames(config, pd.DataFrame({"user_id": [1], "item_id": [2]}), items=items)
    assert tables.items["price"].tolist() == [0, 5, 8]


def test_faults_of_features(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,price,kind\n1,5,a\n2,,\n3,x,b\n4,-1,c\n5,11,d\n6,nan,e\n7,inf,f\n")
    features = FeaturesConfig(item={"price": FeatureConfig("numeric", min=0, max=10), "kind": "categorical"})
    tables, rejects = read(
        tmp_path, "user_id,item_id\n1,2\n", items=TableConfig(str(tmp_path / "items.csv")), features=features
    )
    assert tables.items["item_id"].tolist() == [1, 2, 6]
    assert tables.items["price"].isna().tolist() == [False, True, True]
    assert rejects.frame[["line", "value", "reason"]].to_numpy().tolist() == [
        [4, "x", "not a number"],
        [5, "-1", "below the minimum 0"],
        [6, "11", "above the maximum 10"],
        [8, "inf", "not finite"],
    ]


def test_declared_columns_are_kept_and_the_others_named(tmp_path):
    text = "user_id,card,item_id,device,position\n1,x,2,tv,1\n1,x,2,tv,0.5\n"
    tables, rejects = read(tmp_path, text, features=FeaturesConfig(context={"device": "categorical"}))
    assert list(tables.interactions) == ["user_id", "item_id", "position", "device"]
    assert tables.interactions["position"].tolist() == [1, 0.5]
    assert rejects.dropped == {"interactions": ("card",)}


def test_a_large_order_stays_exact():
    order = [2**62 + 1, 2**62]
    frame = pd.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "position": order})
    assert tables_from_frames(DataConfig(), frame)[0].interactions["position"].tolist() == order


@pytest.mark.parametrize("odd", [None, "", "x", 10**400, [1]], ids=["none", "blank", "text", "huge", "list"])
@pytest.mark.parametrize("kind", [int, str])
def test_a_large_order_stays_exact_beside_what_is_rejected(odd, kind):
    order = [2**62 + 1, 2**62]
    position = pd.Series([kind(order[0]), odd, kind(order[1])], dtype=object)
    frame = pd.DataFrame({"user_id": 1, "item_id": [1, 2, 3], "position": position})
    tables, rejects = tables_from_frames(DataConfig(), frame)
    assert tables.interactions["position"].tolist() == order
    assert rejects.frame["line"].tolist() == [2]


def test_decimals_without_a_fraction_are_integers(tmp_path):
    path = tmp_path / "events.parquet"
    columns = {
        "user_id": pa.array([Decimal(7), None, Decimal(2**62)], pa.decimal128(38, 0)),
        "item_id": pa.array([Decimal("3.00"), Decimal(4), Decimal(5)], pa.decimal128(10, 2)),
        "datetime": pa.array([Decimal(1_700_000_000)] * 3, pa.decimal128(19, 0)),
        "weight": pa.array([Decimal("1.5"), Decimal(2), Decimal(2)], pa.decimal128(10, 2)),
    }
    pq.write_table(pa.table(columns), path)
    tables, rejects = read_tables(DataConfig(interactions=TableConfig(str(path)), max_reject_rate=1))
    events = tables.interactions
    assert events["user_id"].tolist() == [7, 2**62]
    assert events["item_id"].tolist() == [3, 5]
    assert events["datetime"].tolist() == [1_700_000_000] * 2
    assert events["weight"].tolist() == [1.5, 2]
    assert rejects.frame["column"].tolist() == ["user_id"]


@pytest.mark.parametrize("odd", ["4.5", "Infinity"])
def test_decimals_that_are_no_integers_are_no_ids(odd):
    events = pd.DataFrame({"user_id": [Decimal(1), Decimal(odd)], "item_id": [3, 4]})
    with pytest.raises(SchemaError, match="'user_id' is decimal; allowed for an id: integers or texts"):
        tables_from_frames(DataConfig(), events)


CLASSES = FeaturesConfig(item={"class": "categorical"})


def _read_classes(values):
    events = pd.DataFrame({"user_id": [1, 1, 2], "item_id": [3, 4, 5]})
    items = pd.DataFrame({"item_id": [3, 4, 5], "class": values})
    return tables_from_frames(DataConfig(features=CLASSES), events, items=items)[0]


def _write_events(folder):
    path = folder / "events.csv"
    path.write_text("user_id,item_id\n1,3\n1,4\n2,5\n")
    return path


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pd.cut(pd.Series([1, 5, 9]), [0, 3, 6, 9]), ["(0, 3]", "(3, 6]", "(6, 9]"]),
        (pd.cut(pd.Series([1, 5, None]), [0, 3, 6]), ["(0, 3]", "(3, 6]"]),
        (pd.Series(pd.period_range("2024", periods=3, freq="M")), ["2024-01", "2024-02", "2024-03"]),
    ],
    ids=["intervals", "intervals with a gap", "periods"],
)
def test_what_pandas_alone_knows_becomes_text(values, expected):
    tables = _read_classes(values)
    assert isinstance(tables.items["class"].dtype, pd.StringDtype)
    assert tables.items["class"].dropna().tolist() == expected


@pytest.mark.parametrize("categories", [[2**53 + 1, 5], ["a", "b"], [1.5, 2.5], [True, False]])
def test_categories_with_a_gap_are_the_values_they_stand_for(categories, tmp_path):
    values = pd.Series(pd.Categorical.from_codes([1, -1, 0], categories))
    from_frame = _read_classes(values)
    path = tmp_path / "items.parquet"
    pd.DataFrame({"item_id": [3, 4, 5], "class": values}).to_parquet(path)
    from_file, _ = read_tables(
        DataConfig(
            interactions=TableConfig(str(_write_events(tmp_path))), items=TableConfig(str(path)), features=CLASSES
        )
    )
    for tables in (from_frame, from_file):
        cells = tables.items["class"]
        assert cells.isna().tolist() == [False, True, False]
        assert cells.dropna().tolist() == [categories[1], categories[0]]


def _read_items(path, kind):
    config = DataConfig(
        interactions=TableConfig(str(_write_events(path.parent))),
        items=TableConfig(str(path)),
        features=FeaturesConfig(item={"class": kind}),
        max_reject_rate=1,
    )
    return read_tables(config)


@pytest.mark.parametrize("kind", ["categorical", "multi_categorical", "text"])
def test_bytes_are_no_values(tmp_path, kind):
    path = tmp_path / "items.parquet"
    pd.DataFrame({"item_id": [3, 4, 5], "class": [b"red", None, b"\xff"]}).to_parquet(path)
    tables, rejects = _read_items(path, kind)
    assert tables.items["item_id"].tolist() == [4]
    assert rejects.frame[["line", "reason"]].to_numpy().tolist() == [[1, "bytes, not a text"], [3, "bytes, not a text"]]


@pytest.mark.parametrize("kind", ["categorical", "multi_categorical", "text"])
@pytest.mark.parametrize(
    "dtype", ["category", *map(pd.ArrowDtype, (pa.binary(), pa.dictionary(pa.int32(), pa.binary())))], ids=str
)
def test_bytes_that_pandas_packs_are_no_values(dtype, kind):
    items = pd.DataFrame({"item_id": [3, 4, 5], "class": pd.Series([b"red", None, b"\xff"], dtype=dtype)})
    config = DataConfig(features=FeaturesConfig(item={"class": kind}), max_reject_rate=1)
    tables, rejects = tables_from_frames(
        config, pd.DataFrame({"user_id": [1, 1, 2], "item_id": [3, 4, 5]}), items=items
    )
    assert tables.items["item_id"].tolist() == [4]
    assert rejects.frame[["line", "reason"]].to_numpy().tolist() == [[1, "bytes, not a text"], [3, "bytes, not a text"]]


@pytest.mark.parametrize("kind", ["multi_categorical", "text"])
def test_lists_of_bytes_are_no_values(tmp_path, kind):
    path = tmp_path / "items.parquet"
    values = pa.array([[b"red", b"blue"], None, [b"\xff"], []], pa.list_(pa.binary()))
    pq.write_table(pa.table({"item_id": [3, 4, 5, 6], "class": values}), path)
    tables, rejects = _read_items(path, kind)
    assert tables.items["item_id"].tolist() == [4, 6]
    reason = "a list of bytes, not of texts"
    assert rejects.frame[["line", "reason"]].to_numpy().tolist() == [[1, reason], [3, reason]]


def test_an_array_of_bytes_is_no_list_of_values():
    items = pd.DataFrame({"item_id": [3, 4], "class": [np.array([b"red"]), np.array(["red"])]})
    config = DataConfig(features=FeaturesConfig(item={"class": "multi_categorical"}), max_reject_rate=1)
    tables, rejects = tables_from_frames(config, pd.DataFrame({"user_id": [1, 1], "item_id": [3, 4]}), items=items)
    assert tables.items["item_id"].tolist() == [4]
    assert rejects.frame["reason"].tolist() == ["a list of bytes, not of texts"]


def test_bytes_and_objects_of_one_column_are_both_rejected():
    events = pd.DataFrame({"user_id": [1, 1, 2], "item_id": [3, 4, 5], "event": [b"buy", {"is": "buy"}, "buy"]})
    tables, rejects = tables_from_frames(DataConfig(max_reject_rate=1), events)
    assert tables.interactions["event"].tolist() == ["buy"]
    assert rejects.frame["reason"].tolist() == ["bytes, not a text", "not a text"]
