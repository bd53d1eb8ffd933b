import gzip

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from datamodules.config import DataConfig, FeatureConfig, FeaturesConfig, SplitConfig, TableConfig
from datamodules.tables import read_tables, tables_from_frames
from serve.errors import SchemaError
from tests.written_tables import EVENTS, read

TABLE_FAULTS = [
    ("", {}, "is empty"),
    (EVENTS, {}, "is empty: expected at least one record"),
    (
        "user_id,item\n1,2\n",
        {},
        "column 'item_id' is absent, the default of data.interactions.columns.item_id; did you mean 'item'",
    ),
    ("user_id,item_id,item_id\n1,2,3\n", {}, "2 columns are called 'item_id'"),
    (EVENTS + "1,2,20171201,3\n", {}, "column 'datetime': the unit of time '20171201' is ambiguous"),
    (
        EVENTS + "1,2,2017-12-01,3\n",
        {"features": FeaturesConfig(user={"age": "numeric"})},
        "'age' is declared.*data.users",
    ),
    (
        EVENTS + "1,2,2017-12-01,3\n",
        {"features": FeaturesConfig(context={"devce": "categorical"})},
        "'devce' is absent",
    ),
    (
        "user_id,item_id\n1,2\n",
        {"features": FeaturesConfig(context={"hour": "hour_of_day"})},
        "'datetime' is absent",
    ),
    ("user_id,item_id\n1,2\n", {"split": SplitConfig("time", "2017-12-01")}, "'datetime' is absent"),
    (
        "user_id,item_id,weight\n1,2,3\n1,3,red\n1,4,blue\n",
        {},
        "column 'weight' does not hold numbers: 2 of its 3 values are not, the first in .*events.csv, line 3: 'red'",
    ),
    (
        EVENTS + "1,2,noon,3\n",
        {},
        "column 'datetime' does not hold times: 1 of its 1 values are not.*'noon'; allowed: ISO dates and times",
    ),
    (
        "user_id,item_id,colour\n1,2,red\n1,3,\n1,4,blue\n",
        {"features": FeaturesConfig(context={"colour": "numeric"})},
        "column 'colour' does not hold numbers: 2 of its 2 values",
    ),
    (b"user_id,it\xffem_id\n1,2\n", {}, "header is not UTF-8"),
]


@pytest.mark.parametrize(("text", "options", "message"), TABLE_FAULTS)
def test_a_table_that_does_not_fit_is_refused_in_one_line(tmp_path, text, options, message):
    with pytest.raises(SchemaError, match=message) as error:
        read(tmp_path, text, **options)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"PAR1 no more PAR1")
    (tmp_path / "events.xlsx").touch()
    (tmp_path / "reviews.json").touch()
    for path, message in [
        ("none.csv", "^none.csv does not exist; data.interactions.path is relative to /"),
        (tmp_path / "events.xlsx", r"unknown suffix '.xlsx'; allowed: .csv.*as 'names'"),
        (tmp_path / "reviews.json", r"'.json': if each line is one object, .*call the file .jsonl; allowed: .csv"),
        (damaged, "damaged.parquet cannot be read"),
        (tmp_path, r"is a folder; .*a pattern such as .*\*.parquet"),
        (tmp_path / "none-*.csv", r"none-\*.csv matches no file; correct data.interactions.path$"),
        ("none-*.csv", r"^none-\*.csv matches no file; data.interactions.path is relative to /"),
        (tmp_path / "none.csv", r"none.csv does not exist; correct data.interactions.path$"),
    ]:
        with pytest.raises(SchemaError, match=message):
            read_tables(DataConfig(interactions=TableConfig(str(path))))
    with pytest.raises(SchemaError, match=r"data.interactions.path is not set"):
        read_tables(DataConfig())


PACKED = {"": b"1,2\n", ".gz": gzip.compress(b"1,2\n"), ".zip": b"PK\x03\x04" + bytes(26) + b"events.csv1,2\n"}


@pytest.mark.parametrize("layout", [{}, {"names": ["user_id", "item_id"]}, {"delimiter": ","}])
@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("ratings.dat", ".gz", "ratings.dat is compressed by gzip, .* let its name end in .gz .*, or else unpack it"),
        ("events.csv", ".gz", "events.csv is compressed by gzip, which its name does not say"),
        ("events.csv.gz", ".zip", "events.csv.gz is compressed by zip"),
        ("events.csv.gz", "", "events.csv.gz is not compressed by gzip, .* take .gz from its name"),
        ("events.zip", ".zip", "events.zip is compressed by zip, .* unpack it"),
        ("events.xlsx", ".zip", "events.xlsx is compressed by zip, as spreadsheets are; .* save a spreadsheet as CSV"),
        ("events.jsonl", ".gz", "events.jsonl is compressed by gzip, which its name does not say"),
        ("events.zip", ".zip", r"allowed: .csv, .tsv, .parquet, .jsonl, .ndjson \(.gz may follow all but .parquet\)"),
    ],
)
def test_a_compressed_file_is_told_by_its_first_bytes(tmp_path, name, kind, message, layout):
    path = tmp_path / name
    path.write_bytes(PACKED[kind])
    with pytest.raises(SchemaError, match=message):
        read_tables(DataConfig(interactions=TableConfig(str(path), **layout)))


@pytest.mark.parametrize("layout", [{"names": ["user_id", "item_id"]}, {"delimiter": ","}, {"encoding": "latin-1"}])
def test_a_text_layout_of_parquet_is_refused(tmp_path, layout):
    path = tmp_path / "events.parquet"
    pd.DataFrame({"user_id": [1], "item_id": [2]}).to_parquet(path)
    with pytest.raises(SchemaError, match="names, delimiter and encoding are those of a text file"):
        read_tables(DataConfig(interactions=TableConfig(str(path), **layout)))


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        ([1.5, 2.0], "floating"),
        ([2.0**53, 1.0], "floating"),
        ([True, False], "boolean"),
        ([pd.Timestamp(0)] * 2, "datetime64"),
    ],
)
def test_ids_of_another_kind_are_refused(ids, kind):
    with pytest.raises(SchemaError, match=f"column 'item_id' is {kind}; allowed for an id"):
        tables_from_frames(DataConfig(), pd.DataFrame({"user_id": [1, 2], "item_id": ids}))


def test_ids_that_a_float_holds_exactly_are_integers():
    events = pd.DataFrame({"user_id": [1, 2], "item_id": [2.0**53 - 1, -(2.0**53) + 1]})
    tables, _ = tables_from_frames(DataConfig(), events)
    assert tables.interactions["item_id"].tolist() == [2**53 - 1, -(2**53) + 1]


DEVICE = FeatureConfig("categorical", "devise")
ASKED_BY = [
    ({}, "'item_id' is absent, the default of data.interactions.columns.item_id; did you mean 'itemid'"),
    (
        {"interactions": {"weight": "tier"}},
        "'tier' is absent, named in data.interactions.columns.weight; did you mean 'tiers'",
    ),
    (
        {"split": SplitConfig("time", "2017-12-01")},
        "'datetime' is absent, needed by data.split.kind 'time'; .*said in data.interactions.columns.datetime; did you",
    ),
    (
        {"features": FeaturesConfig(context={"hour": "hour_of_day"})},
        "'datetime' is absent, read by data.features.context.hour; .* in data.interactions.columns.datetime; did you",
    ),
    (
        {"features": FeaturesConfig(context={"device": DEVICE})},
        "'devise' is absent, read by data.features.context.device.column; did you mean 'device'",
    ),
]


@pytest.mark.parametrize(("options", "message"), ASKED_BY)
def test_an_absent_column_is_named_with_the_key_that_asks_for_it(tmp_path, options, message):
    path = tmp_path / "events.csv"
    item = "itemid" if not options else "item_id"
    path.write_text(f"user_id,{item},tiers,date_time,device\n1,2,3,2017-12-01,x\n")
    table = TableConfig(str(path), options.get("interactions", {}))
    with pytest.raises(SchemaError, match=f"events.csv: column {message}"):
        read_tables(DataConfig(**{**options, "interactions": table}))


def test_an_absent_column_of_users_is_named_with_the_key_that_asks_for_it():
    events = pd.DataFrame({"user_id": [1], "item_id": [2]})
    users = pd.DataFrame({"user_id": [1], "towns": ["x"]})
    for config, message in [
        (DataConfig(features=FeaturesConfig(user={"town": "text"})), "read by data.features.user.town"),
        (DataConfig(audit_only=["town"]), "named in data.audit_only"),
    ]:
        with pytest.raises(SchemaError, match=f"users: column 'town' is absent, {message}; did you mean 'towns'"):
            tables_from_frames(config, events, users)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_lists_in_a_column_of_single_values_are_refused(tmp_path, suffix):
    items = pd.DataFrame({"item_id": [2, 3, 4], "genres": [None, ["a", "b"], ["c"]]})
    path = tmp_path / f"items{suffix}"
    items.to_parquet(path) if suffix == ".parquet" else items.to_json(path, orient="records", lines=True)
    (tmp_path / "events.csv").write_text("user_id,item_id\n1,2\n")
    tables = {"interactions": TableConfig(str(tmp_path / "events.csv")), "items": TableConfig(str(path))}
    message = (
        rf"items{suffix}: column 'genres', read by data.features.item.genres as categorical, holds lists, the first in "
        r"line 2: .*'a', 'b'.*declare the kind multi_categorical for several values, or vector"
    )
    with pytest.raises(SchemaError, match=message):
        read_tables(DataConfig(**tables, features=FeaturesConfig(item={"genres": "categorical"})))
    read_tables(DataConfig(**tables, features=FeaturesConfig(item={"genres": "multi_categorical"})))


@pytest.mark.parametrize("layout", [{"names": ["user_id", "item_id"]}, {"delimiter": ","}])
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson"])
def test_a_text_layout_of_json_lines_is_refused(tmp_path, layout, suffix):
    path = tmp_path / f"events{suffix}"
    path.write_text('{"user_id": 1, "item_id": 2}\n')
    with pytest.raises(SchemaError, match=f"those of a text file; take them out for {suffix}"):
        read_tables(DataConfig(interactions=TableConfig(str(path), **layout)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"interactions": TableConfig(columns={"user": "u"})},
            "'user' is no column of ours; did you mean 'user_id'",
        ),
        ({"features": FeaturesConfig(user={"h": "hour_of_day"})}, "kind hour_of_day of column 'datetime'"),
        (
            {"features": FeaturesConfig(user={"town": "categorical"}), "audit_only": ["town"]},
            "'town' is a feature",
        ),
        ({"interactions": TableConfig(columns={"weight": "stars"})}, "'stars' is absent"),
        (
            {
                "repeats": "allow",
                "items": TableConfig("x"),
                "features": FeaturesConfig(item={"repeat_rate": "numeric"}),
            },
            "column 'repeat_rate' is reserved where repeats are allowed: rename yours",
        ),
        (
            {"features": FeaturesConfig(context={"item_id": "vector"})},
            "column 'item_id', read by data.features.context.item_id as vector, holds ids; allowed: categorical",
        ),
        (
            {"features": FeaturesConfig(context={"kind": FeatureConfig("numeric", column="event")})},
            "column 'event', read by data.features.context.kind.column as numeric, holds texts; allowed: categorical",
        ),
        (
            {"items": TableConfig("x"), "features": FeaturesConfig(item={"item_id": "numeric"})},
            "column 'item_id', read by data.features.item.item_id as numeric, holds ids; allowed: categorical",
        ),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(options, message):
    events = pd.DataFrame({"user_id": [1], "item_id": [2], "u": [1]})
    users = pd.DataFrame({"user_id": [1], "town": ["x"]})
    with pytest.raises(SchemaError, match=message):
        tables_from_frames(DataConfig(**options), events, users)


def test_rows_of_one_id_that_differ_are_refused_and_equal_ones_are_not():
    events = pd.DataFrame({"user_id": [1], "item_id": [2]})
    config = DataConfig(features=FeaturesConfig(user={"age": "numeric", "town": "categorical", "pet": "categorical"}))
    equal = pd.DataFrame({"user_id": [4, 4], "age": [None, np.nan], "town": ["x", "x"], "pet": ["dog", "dog"]})
    assert len(tables_from_frames(config, events, equal)[0].users) == 2
    ids, towns, pets = [4, 4, 4, 5], ["x", "x", "x", "y"], ["", "cat", "dog", ""]
    differing = pd.DataFrame({"user_id": ids, "age": [1, 2, 3, 4], "town": towns, "pet": pets})
    with pytest.raises(SchemaError, match=r"users: user_id 4 has rows that differ \(1 such ids\).*: in 'age', 'pet'; "):
        tables_from_frames(config, events, differing)


def test_a_table_of_which_every_row_is_rejected_does_not_make_texts_of_ids():
    events = pd.DataFrame({"user_id": [1], "item_id": [2]})
    users = pd.DataFrame({"user_id": [None], "town": ["x"]})
    config = DataConfig(features=FeaturesConfig(user={"town": "categorical"}))
    tables, rejects = tables_from_frames(config, events, users)
    assert (len(tables.users), len(rejects.frame)) == (0, 1)
    assert tables.interactions["user_id"].tolist() == [1]


@pytest.mark.parametrize("frame", [{"user_id": [1], "item_id": [2]}, pa.table({"user_id": [1], "item_id": [2]})])
def test_what_is_no_data_frame_is_refused(frame):
    with pytest.raises(SchemaError, match=r"^interactions is a (builtins.dict|pyarrow.lib.Table); allowed: a pandas"):
        tables_from_frames(DataConfig(), frame)
