"""Typed tables: ids, times, numbers and vectors, missing marks, forgotten users, rejects and refusals."""

from __future__ import annotations

import hmac
from datetime import date
from decimal import Decimal

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datamodules.clean import clean
from datamodules.config import DataConfig, FeaturesConfig, SplitConfig, TableConfig
from datamodules.rejects import check_reject_rates, write_rejects
from datamodules.schema_fitting import fit_schema
from datamodules.sequences import build_catalogue
from datamodules.tables import read_tables, tables_from_frames
from datamodules.values import date_baskets
from serve.clock import DAY
from serve.errors import SchemaError
from serve.files import read_erasure_list
from service.forget import add_to_erasure_list

EVENTS = pd.DataFrame({"user_id": [1, 1, 2, 3], "item_id": [3, 4, 5, 6]})


def read(folder, text, **options):
    (folder / "events.csv").write_text(text)
    return read_tables(
        DataConfig(
            TableConfig(str(folder / "events.csv")),
            **{"max_reject_rate": 1.0, **options},
        )
    )


def read_items(column: pd.Series, kind, **options):
    """Type one column of the items."""
    items = pd.DataFrame({"item_id": EVENTS["item_id"].to_numpy()[: len(column)], "x": column})
    config = DataConfig(features=FeaturesConfig(item={"x": kind}), max_reject_rate=1, **options)
    return tables_from_frames(config, EVENTS, items=items)


def test_frames_and_files_become_the_same_canonical_tables(tmp_path):
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
    users = pd.DataFrame(
        {"user_id": [3, 7, 5], "age": [31.0, np.nan, 20.0], "town": ["x", "y", None]}
    )
    items = pd.DataFrame({"item_id": ["007", "b", "c", "d"], "price": [1, 2, 3, None]})
    items["genres"] = [["a", "b"], [], ["c"], None]
    config = DataConfig(
        TableConfig(
            columns={
                "user_id": "customer",
                "item_id": "sku",
                "datetime": "ts",
                "event": "action",
            }
        ),
        features=FeaturesConfig(
            user={"age": "numeric"},
            item={"price": "numeric", "genres": "multi_categorical"},
            context={"hour": "hour_of_day", "device": "categorical"},
        ),
        audit_only=["town"],
    )
    tables, rejects = tables_from_frames(config, interactions, users, items)
    assert list(tables.interactions) == [
        "user_id",
        "item_id",
        "datetime",
        "event",
        "device",
    ]
    assert tables.interactions["datetime"].tolist() == [
        1512086400,
        1512172800,
        1512259200,
    ]
    assert tables.items["genres"].tolist() == [("a", "b"), (), ("c",), None]
    assert rejects.dropped == {"interactions": ("secret",), "users": (), "items": ()}
    assert (rejects.records, len(rejects.frame)) == (
        {"interactions": 3, "users": 3, "items": 4},
        0,
    )
    paths = {}
    for name, frame in {
        "interactions": interactions,
        "users": users,
        "items": items,
    }.items():
        frame.to_parquet(tmp_path / f"{name}.parquet")
        columns = config.interactions.columns if name == "interactions" else {}
        paths[name] = TableConfig(str(tmp_path / f"{name}.parquet"), columns)
    got, _ = read_tables(
        DataConfig(features=config.features, audit_only=config.audit_only, **paths)
    )
    for name in paths:
        pd.testing.assert_frame_equal(getattr(got, name), getattr(tables, name))


class Stream:
    """A table of a library that nobody knows."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


def widen(table):
    """Make a table of large strings."""
    for place, field in enumerate(table.schema):
        if field.type == pa.string():
            cells = table.column(place).cast(pa.large_string())
            table = table.set_column(place, field.name, cells)
    return table


@pytest.mark.parametrize(
    "convert",
    [
        pytest.param(lambda table: table, id="pyarrow"),
        pytest.param(lambda table: table.to_reader(), id="reader"),
        pytest.param(lambda table: Stream(widen(table)), id="large strings of a stranger"),
        pytest.param(lambda table: duckdb.from_arrow(table), id="duckdb"),
        pytest.param(lambda table: pytest.importorskip("polars").from_arrow(table), id="polars"),
        pytest.param(lambda table: table.to_pylist(), id="rows"),
        pytest.param(lambda table: table.to_pydict(), id="columns"),
    ],
)
def test_a_table_in_memory_is_read_alike_whichever_library_made_it(convert):
    events = pa.table(
        {
            "user_id": pa.array([2**53 + 1, 2**53 + 2, None]),
            "item_id": ["a", "b", "c"],
            "datetime": pa.array([1704067200, 1709254800, 1], pa.timestamp("s")),
            "weight": [1.5, 2.5, 2.0],
            "event": pa.array(["view", None, "buy"]).dictionary_encode(),
        }
    )
    items = pa.table(
        {
            "item_id": ["a", "b", "d"],
            "genres": [["p", "q"], None, []],
            "price": [1, None, 3],
            "day": [date(2020, 1, 1), None, date(2021, 1, 1)],
            "look": [[1.0, 2.0], [3.0, 4.0], None],
            "kind": pa.array(["u", None, "w"]).dictionary_encode(),
            "sold": [True, None, False],
        }
    )
    kinds = dict.fromkeys(("kind", "sold"), "categorical")
    kinds |= {"genres": "multi_categorical", "price": "numeric", "day": "date", "look": "vector"}
    config = DataConfig(features=FeaturesConfig(item=kinds), max_reject_rate=1.0)
    tables, rejects = tables_from_frames(config, convert(events), items=convert(items))
    assert tables.interactions["user_id"].tolist() == [2**53 + 1, 2**53 + 2]
    assert tables.interactions["datetime"].tolist() == [1704067200, 1709254800]
    assert tables.interactions["event"].fillna("").tolist() == ["view", ""]
    assert tables.interactions["weight"].tolist() == [1.5, 2.5]
    assert rejects.records == {"interactions": 3, "items": 3}
    assert tables.items["genres"].tolist() == [("p", "q"), None, ()]
    assert tables.items["price"].fillna(-1).tolist() == [1, -1, 3]
    assert tables.items["day"].fillna("").tolist() == ["2020-01-01", "", "2021-01-01"]
    entries = [
        None if cell is None else np.frombuffer(cell.packed, np.float32).tolist()
        for cell in tables.items["look"]
    ]
    assert entries == [[1, 2], [3, 4], None]
    assert tables.items["kind"].fillna("").tolist() == ["u", "", "w"]
    assert tables.items["sold"].tolist() == [True, None, False]


@pytest.mark.parametrize(
    "table",
    [
        None,
        5,
        "events",
        [7],
        pd.Series([7]),
        pa.chunked_array([[7]]),
        {"user_id": [1], "item_id": [1, 2]},
        {},
        [],
    ],
    ids=str,
)
def test_what_is_no_table_is_refused_in_one_line(table):
    with pytest.raises(SchemaError) as error:
        tables_from_frames(DataConfig(), table)
    assert len(str(error.value).splitlines()) == 1
    assert "interactions" in str(error.value)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "-2", "0"], [1, -2, 0]),
        (["007", "1", "2"], ["007", "1", "2"]),
        (["9223372036854775807", "1", "2"], [9223372036854775807, 1, 2]),
        (["9223372036854775808", "1", "2"], ["9223372036854775808", "1", "2"]),
        (["1.0", "2", "3"], ["1.0", "2", "3"]),
        (["a", " b ", "ü\xa0"], ["a", "b", "ü"]),
        (["1", " 2", "\xa03"], [1, 2, 3]),
        (["NULL", "nan", "NA"], ["NULL", "nan", "NA"]),
    ],
)
def test_ids_of_a_text_file_are_integers_only_if_all_are_written_so(tmp_path, cells, expected):
    tables, _ = read(tmp_path, "user_id,item_id\n" + "".join(f"{cell},7\n" for cell in cells))
    assert tables.interactions["user_id"].tolist() == expected
    assert tables.interactions["item_id"].tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pd.Series(["1", "2"]), ["1", "2"]),
        (pd.Series([2**53 + 1, None], dtype="Int64"), [2**53 + 1]),
        (pd.Series([2**53 - 1.0, 5.0]), [2**53 - 1, 5]),
        (pd.Series([2**63, 7], dtype="uint64"), [str(2**63), "7"]),
        (pd.Series([Decimal("3.00"), Decimal(2**62)]), [3, 2**62]),
        (pd.Series([7, "x"], dtype=object), ["7", "x"]),
        (pd.Series(pd.Categorical([2**53 + 1, 5])), [2**53 + 1, 5]),
        (pd.Series(["a", "  "]), ["a"]),
        (pd.Series([7, " x "], dtype=object), ["7", "x"]),
        (pd.Series(pd.Categorical(["a ", "b"])), ["a", "b"]),
    ],
)
def test_ids_keep_their_type_and_value(tmp_path, ids, expected):
    events = pd.DataFrame({"user_id": ids, "item_id": [1, 2]})
    config = DataConfig(max_reject_rate=1)
    assert tables_from_frames(config, events)[0].interactions["user_id"].tolist() == expected


@pytest.mark.parametrize(
    "ids",
    [
        [1.5, 2.5],
        [2.0**53, 2.0**54],
        [True, False],
        [pd.Timestamp(0)] * 2,
        [Decimal("4.5")] * 2,
    ],
)
def test_ids_of_another_kind_are_refused(ids):
    with pytest.raises(SchemaError, match="does not hold ids"):
        tables_from_frames(DataConfig(), pd.DataFrame({"user_id": [1, 2], "item_id": ids}))


def test_one_table_with_texts_makes_all_ids_of_its_side_texts(tmp_path):
    (tmp_path / "items.csv").write_text("item_id\n7\n08\n")
    tables, _ = read(
        tmp_path,
        "user_id,item_id\n1,7\n2,9\n",
        items=TableConfig(str(tmp_path / "items.csv")),
    )
    assert (
        tables.interactions["item_id"].tolist(),
        tables.items["item_id"].tolist(),
    ) == (["7", "9"], ["7", "08"])
    assert tables.interactions["user_id"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([1, 2, None, 4], "numeric", [1.0, 2.0, None, 4.0]),
        (["1.5", "", " ", "1e3"], "numeric", [1.5, None, None, 1000.0]),
        ([Decimal("1.5"), Decimal(2), None, 3], "numeric", [1.5, 2.0, None, 3.0]),
        (
            pd.Categorical.from_codes([1, -1, 0, 0], [2**53 + 1, 5]),
            "categorical",
            [5, None, 2**53 + 1, 2**53 + 1],
        ),
        (
            [["a", "b"], "c|d", None, []],
            "multi_categorical",
            [("a", "b"), "c|d", None, ()],
        ),
        (np.float32([0.1, 0.2, 0.1, 0.5]), "categorical", [0.1, 0.2, 0.1, 0.5]),
        (
            pd.to_datetime(["2024-05-01"] * 4),
            "categorical",
            ["2024-05-01 00:00:00"] * 4,
        ),
    ],
)
def test_values_of_features_are_read_alike_from_every_type(values, kind, expected):
    tables, rejects = read_items(pd.Series(values), kind)
    assert rejects.frame.empty
    cells = tables.items["x"]
    assert cells.astype(object).where(cells.notna(), None).tolist() == expected


def test_a_bad_cell_of_an_item_costs_the_cell_and_is_listed_with_a_reason():
    tables, rejects = read_items(pd.Series(["x", {"a": 1}, "y", b"z"], dtype=object), "text")
    listed = rejects.frame[["line", "reason", "costs"]].to_numpy().tolist()
    assert listed == [[2, "not a value", "cell"], [4, "not a value", "cell"]]
    assert tables.items["x"].isna().tolist() == [False, True, False, True]
    _, rejects = read_items(pd.Series([["a"], "b", "c", "d"], dtype=object), "categorical")
    assert rejects.frame[["line", "reason", "costs"]].to_numpy().tolist() == [[1, "a list", "cell"]]
    with pytest.raises(SchemaError, match=r"does not hold single values.*multi_categorical"):
        read_items(pd.Series([["a"], ["b"], ["c"], "d"], dtype=object), "categorical")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "user_id,item_id,weight\n1,2,3\n1,3,red\n1,4,blue\n",
            "'weight' does not hold numbers .*line 3.*'red'",
        ),
        (
            "user_id,item_id,datetime\n1,2,noon\n",
            "'datetime' does not hold times .*'noon'",
        ),
        (
            "user_id,item_id,datetime\n1,2,20171201\n",
            "the unit of time '20171201' is ambiguous",
        ),
    ],
)
def test_a_column_of_another_kind_is_refused(tmp_path, text, message):
    with pytest.raises(SchemaError, match=message):
        read(tmp_path, text)


def test_declared_columns_and_tables_must_be_there(tmp_path):
    text = "user_id,item_id,devise\n1,2,tv\n"
    for options, message in [
        (
            {"features": FeaturesConfig(user={"age": "numeric"})},
            "'age' is declared.*set data.users",
        ),
        (
            {"features": FeaturesConfig(context={"device": "categorical"})},
            "'device' is absent.*did you mean 'devise'",
        ),
        (
            {"features": FeaturesConfig(context={"hour": "hour_of_day"})},
            "'datetime' is absent",
        ),
        ({"split": SplitConfig("time", "2017-12-01")}, "'datetime' is absent"),
    ]:
        with pytest.raises(SchemaError, match=message):
            read(tmp_path, text, **options)


@pytest.mark.parametrize("ids", [[3, 4], [3, 3]])
def test_an_id_that_is_called_otherwise_is_named_beside_the_features_that_are_there(ids):
    items = pd.DataFrame({"sku": ids, "price": [1, 2]})
    config = DataConfig(features=FeaturesConfig(item={"price": "numeric"}))
    with pytest.raises(SchemaError, match=r"'item_id' is absent.*data\.items\.columns\.item_id"):
        tables_from_frames(config, EVENTS, items=items)


def test_rows_of_one_id_that_differ_are_refused_and_equal_ones_are_one():
    items = pd.DataFrame(
        {"item_id": [3, 4, 3, 5], "brand": ["a", "b", "a", "c"], "price": [1, 2, 1, 3]}
    )
    config = DataConfig(features=FeaturesConfig(item={"brand": "categorical", "price": "numeric"}))
    tables, _ = tables_from_frames(config, EVENTS, items=items)
    assert clean(tables)[0].items["item_id"].tolist() == [3, 4, 5]
    with pytest.raises(
        SchemaError,
        match=r"items: item_id '3' has rows that differ in 'price': line 1 of items and line 3 of items; .*keep: last",
    ):
        tables_from_frames(config, EVENTS, items=items.assign(price=[1, 2, 9, 3]))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_declared_mark_is_an_empty_cell_in_files_of_every_kind(tmp_path, suffix):
    frame = pd.DataFrame(
        {
            "item_id": [3, 4, 5, 6],
            "price": ["1", "NA", " ? ", "4"],
            "kind": ["NA", "a", "NAN", "?"],
        }
    )
    path = tmp_path / f"items.{suffix}"
    writers = {"csv": frame.to_csv, "parquet": frame.to_parquet}
    frame.to_json(path, orient="records", lines=True) if suffix == "jsonl" else writers[suffix](
        path, index=False
    )
    features = FeaturesConfig(item={"price": "numeric", "kind": "categorical"})
    items = TableConfig(str(path), missing=["NA", "?"])
    tables, rejects = read(tmp_path, "user_id,item_id\n1,3\nNA,4\n", items=items, features=features)
    assert rejects.frame.empty
    assert tables.items["price"].isna().tolist() == [False, True, True, False]
    assert tables.items["kind"].isna().tolist() == [True, False, False, True]
    assert tables.interactions["user_id"].tolist() == [
        "1",
        "NA",
    ]  # marks are those of their own table


VECTORS = [[0.5, -1.0, 2.0], None, [3.0, 4.0, 5.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_files_of_every_kind_hold_vectors_that_are_served_as_they_were_read(tmp_path, suffix):
    frame = pd.DataFrame({"item_id": [3, 4, 5, 6], "image": VECTORS})
    path = tmp_path / f"items.{suffix}"
    if suffix == "csv":
        frame.assign(image=["[0.5, -1, 2]", "", "3 4 5", "(0,0,1)"]).to_csv(path, index=False)
    else:
        frame.to_parquet(path) if suffix == "parquet" else frame.to_json(
            path, orient="records", lines=True
        )
    config = DataConfig(
        items=TableConfig(str(path)), features=FeaturesConfig(item={"image": "vector"})
    )
    tables, rejects = read(
        tmp_path,
        EVENTS.to_csv(index=False),
        items=config.items,
        features=config.features,
    )
    assert rejects.frame.empty
    schema = fit_schema(tables, tables.interactions, config)
    assert (
        build_catalogue(tables.items, tables.interactions, schema).to_arrow()["image"].to_pylist()
        == VECTORS
    )


def test_vectors_at_fault_and_a_few_of_another_width_are_missing_and_mixed_widths_refused():
    tables, rejects = read_items(
        pd.Series([[1.0, 2.0], ["x", 1], [np.inf, 1.0], [3, 4]], dtype=object), "vector"
    )
    assert tables.items["x"].isna().tolist() == [False, True, True, False]
    assert rejects.frame["reason"].tolist() == [
        "no list of numbers",
        "an entry is not finite",
    ]
    many = [[1.0, 2.0]] * 18 + [[1.0, 2.0, 3.0], None]
    items = pd.DataFrame({"item_id": range(20), "x": pd.Series(many, dtype=object)})
    tables, rejects = tables_from_frames(
        DataConfig(features=FeaturesConfig(item={"x": "vector"})), EVENTS, items=items
    )
    assert (tables.items["x"].isna().sum(), rejects.frame["line"].tolist()) == (2, [19])
    with pytest.raises(SchemaError, match="one length"):
        read_items(pd.Series([[1.0, 2.0], [1.0, 2.0, 3.0]]), "vector")


def test_records_of_forgotten_users_are_neither_rows_nor_rejects(tmp_path):
    add_to_erasure_list(tmp_path, ["gone", "7"])
    erased = read_erasure_list(tmp_path)
    lines = [
        "user_id,item_id,weight",
        "u1,a,3",
        "gone,a,3",
        "gone,b,x",
        "u2,b,many",
        "gone,c",
        "u3,gone,2",
        "7,a,1",
    ]
    (tmp_path / "e.csv").write_text("\n".join(lines))
    (tmp_path / "u.csv").write_text("user_id,town\nu1,x\ngone,secret town\nu2,y\n")
    config = DataConfig(
        TableConfig(str(tmp_path / "e.csv")),
        TableConfig(str(tmp_path / "u.csv")),
        features=FeaturesConfig(user={"town": "categorical"}),
        max_reject_rate=1.0,
    )
    tables, rejects = read_tables(config, erased)
    assert list(tables.interactions.itertuples(index=False, name=None)) == [
        ("u1", "a", 3.0),
        ("u3", "gone", 2.0),
    ]
    assert tables.users["user_id"].tolist() == ["u1", "u2"]
    assert rejects.frame["line"].tolist() == [5, 6]
    assert "gone" not in rejects.frame.to_csv()  # whose a torn line is, nobody knows
    assert (rejects.forgotten, rejects.records) == (
        {"interactions": 3, "users": 1},
        {"interactions": 4, "users": 2},
    )


@pytest.mark.parametrize(
    "ids", [[7, 8], [7.0, 8.0], ["7", "8"], [" 7", "8"], pd.array([7, 8], dtype="Int64")]
)
def test_an_id_of_any_type_is_found_among_the_forgotten(tmp_path, ids):
    add_to_erasure_list(tmp_path, [7])
    frame = pd.DataFrame({"user_id": ids, "item_id": [1, 2]})
    tables, _ = tables_from_frames(DataConfig(), frame, erased=read_erasure_list(tmp_path))
    assert tables.interactions["item_id"].tolist() == [2]
    assert len(frame) == 2


def test_whoever_was_forgotten_with_blanks_around_the_id_stays_forgotten(tmp_path):
    add_to_erasure_list(tmp_path, ["u1 "])
    frame = pd.DataFrame({"user_id": ["u1 ", "u2"], "item_id": [1, 2]})
    tables, rejects = tables_from_frames(DataConfig(), frame, erased=read_erasure_list(tmp_path))
    assert tables.interactions["user_id"].tolist() == ["u2"]
    assert rejects.forgotten == {"interactions": 1}


# ---- pseudonyms


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "users.key"
    path.write_text(f"{'1f' * 32}\n{'2e' * 32}\n")
    path.chmod(0o600)
    return str(path)


def name_by_hand(user_id, *keys):
    name = user_id
    for digits in keys:
        key = bytes.fromhex(digits * 32)
        mark = hmac.new(key, b"", "sha256").hexdigest()[:8]
        name = f"p{mark}-{hmac.new(key, name.encode(), 'sha256').hexdigest()[:32]}"
    return name


@pytest.mark.parametrize("ids", [[7, 8], [7.0, 8.0], ["7", " 8"], pd.array([7, 8], dtype="Int64")])
def test_a_pseudonym_is_the_hmac_of_the_id_as_a_text_by_one_key_after_the_other(key_file, ids):
    frame = pd.DataFrame({"user_id": ids, "item_id": [1, 2]})
    tables, _ = tables_from_frames(DataConfig(pseudonyms=key_file), frame)
    expected = [name_by_hand("7", "1f", "2e"), name_by_hand("8", "1f", "2e")]
    assert tables.interactions["user_id"].tolist() == expected
    again, _ = tables_from_frames(DataConfig(pseudonyms=key_file), tables.interactions)
    assert again.interactions["user_id"].tolist() == expected
    earlier = pd.DataFrame({"user_id": [name_by_hand("7", "1f")], "item_id": [1]})
    renamed, _ = tables_from_frames(DataConfig(pseudonyms=key_file), earlier)
    assert renamed.interactions["user_id"].tolist() == expected[:1]


def test_a_pseudonym_by_another_key_is_refused(key_file):
    frame = pd.DataFrame({"user_id": [name_by_hand("7", "3d")], "item_id": [1]})
    with pytest.raises(SchemaError, match="another key"):
        tables_from_frames(DataConfig(pseudonyms=key_file), frame)


@pytest.mark.parametrize("keys", [(), ("1f",), ("1f", "2e")])
def test_whoever_was_forgotten_under_any_of_their_names_stays_forgotten(tmp_path, key_file, keys):
    add_to_erasure_list(tmp_path, [name_by_hand("7", *keys)])
    frame = pd.DataFrame({"user_id": [7, 8], "item_id": [1, 2]})
    erased = read_erasure_list(tmp_path)
    tables, _ = tables_from_frames(DataConfig(pseudonyms=key_file), frame, erased=erased)
    assert tables.interactions["item_id"].tolist() == [2]


def test_rejects_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    _, rejects = read(tmp_path, "user_id,item_id,weight\n1,2,x\n1,2\n,2,4\n5,5,5\n6,6,6\n")
    target = tmp_path / "rejects.parquet"
    write_rejects(rejects, target)
    written = pq.read_table(target)
    assert written.column_names == [
        "file",
        "line",
        "column",
        "value",
        "reason",
        "costs",
    ]
    assert (written["line"].to_pylist(), written["value"].to_pylist()) == (
        [2, 3, 4],
        ["x", "1,2", None],
    )
    before = target.read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_rejects(rejects, target)
    assert target.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {
        "events.csv",
        "rejects.parquet",
    }


def test_too_many_bad_records_are_refused_once_they_are_known(tmp_path):
    _, rejects = read(tmp_path, "user_id,item_id,weight\n1,2,x\n1,2\n5,5,5\n6,6,6\n7,7,7\n")
    check_reject_rates(rejects, 0.4)
    with pytest.raises(
        SchemaError,
        match=r"2 of 5 records are bad.*line 2, column 'weight', value 'x': not a number",
    ):
        check_reject_rates(rejects, 0.39)


def test_positions_of_baskets_are_days_in_their_order_whatever_lies_between_them():
    rows = pd.DataFrame({"user_id": list("aabbb"), "position": [7, 7, 2, 7, 10**12]})
    dated = date_baskets(rows)
    assert (dated["datetime"] // DAY).tolist() == [2, 2, 1, 2, 3]
    assert "position" not in dated


def test_many_positions_fill_no_more_than_a_century():
    rows = pd.DataFrame({"position": np.arange(10**6)[::-1]})
    times = date_baskets(rows)["datetime"]
    assert times.is_unique
    assert 99 * 365 * DAY < times.max() - times.min() < 100 * 365 * DAY
    assert times.is_monotonic_decreasing
