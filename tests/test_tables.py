import csv
import io

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.config import DataConfig, FeatureConfig, FeaturesConfig, SplitConfig, TableConfig
from datamodules.rejects import write_rejects
from datamodules.tables import read_tables, tables_from_frames
from serve.errors import SchemaError

EVENTS = "user_id,item_id,datetime,weight\n"


def configure(folder, text, **options):
    path = folder / "events.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return DataConfig(interactions=TableConfig(str(path)), **{"max_reject_rate": 1.0, **options})


def read(folder, text, **options):
    return read_tables(configure(folder, text, **options))


def list_rejects(rejects):
    frame = rejects.frame.astype(object).where(rejects.frame.notna(), None)
    return list(zip(frame["line"], frame["column"], frame["reason"], strict=True))


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


@pytest.mark.parametrize(
    ("ids", "kind"),
    [([1.5, 2.0], "floating"), ([True, False], "boolean"), ([pd.Timestamp(0)] * 2, "datetime64")],
)
def test_ids_of_another_kind_are_refused(ids, kind):
    with pytest.raises(SchemaError, match=f"column 'item_id' is {kind}; allowed for an id"):
        tables_from_frames(DataConfig(), pd.DataFrame({"user_id": [1, 2], "item_id": ids}))


FAULTS = {
    "good": ("1,2,2017-12-01,3\n", []),
    "no id": (",2,2017-12-01,3\n", [(3, "user_id", "missing")]),
    "blank id": ('1,"  ",2017-12-01,3\n', [(3, "item_id", "missing")]),
    "no time": ("1,2,,3\n", [(3, "datetime", "missing")]),
    "bad time": ("1,2,2017-13-01,3\n", [(3, "datetime", "not a time")]),
    "no weight": ("1,2,2017-12-01,\n", [(3, "weight", "missing")]),
    "bad weight": ("1,2,2017-12-01,many\n", [(3, "weight", "not a number")]),
    "endless weight": ("1,2,2017-12-01,inf\n", [(3, "weight", "not finite")]),
    "weight nan": ("1,2,2017-12-01,nan\n", [(3, "weight", "missing")]),
    "two faults are one record": (",,x,y\n", [(3, "user_id", "missing")]),
    "short": ("1,2,2017-12-01\n", [(3, "weight", "too few columns")]),
    "long": ("1,2,2017-12-01,3,4,5\n", [(3, None, "too many columns")]),
    "one empty cell more": ("1,2,2017-12-01,3,\n", [(3, None, "too many columns")]),
    "empty cells more": ("1,2,2017-12-01,3,,,\n", [(3, None, "too many columns")]),
    "delimiters alone": (",,,,,\n", [(3, None, "too many columns")]),
    "a byte and an empty cell more": (b"\xff,2,2017-12-01,3,\n", [(3, "user_id", "not UTF-8")]),
    "bytes": (b"1,\xff,2017-12-01,3\n", [(3, "item_id", "not UTF-8")]),
    "a byte and too long": (b"\xff,\xff,2017-12-01,3,9\n", [(3, "user_id", "not UTF-8")]),
    "quote": ('1,"2"2,2017-12-01,3\n', [(3, "item_id", "a quote is not closed properly")]),
}


def encode(record):
    return record if isinstance(record, bytes) else record.encode()


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_record_is_named_once_and_its_neighbours_are_kept(tmp_path, name):
    record, expected = FAULTS[name]
    text = EVENTS.encode() + b"8,8,2017-12-01,1\n" + encode(record) + b"9,9,2017-12-02,1\n"
    tables, rejects = read(tmp_path, text)
    assert list_rejects(rejects) == expected
    assert tables.interactions["item_id"].tolist() == ([8, 9] if expected else [8, 2, 9])


def test_bad_records_are_named_where_lines_end_as_on_windows(tmp_path):
    text = EVENTS.encode() + b"".join(encode(record) for record, _ in FAULTS.values())
    tables, rejects = read(tmp_path, text.replace(b"\n", b"\r\n"))
    expected = [
        (line, column, reason)
        for line, (_, faults) in enumerate(FAULTS.values(), start=2)
        for _, column, reason in faults
    ]
    assert list_rejects(rejects) == expected
    assert tables.interactions["item_id"].tolist() == [2]


HOSTILE = st.lists(st.sampled_from(["1", "a", '"', '""', ",", "\n", " ", "\\", "#", "\0", "ü", "\udcff"]), max_size=30)


@given(HOSTILE)
@settings(max_examples=20, deadline=None)
def test_every_record_is_kept_or_rejected_or_the_file_is_refused(tmp_path_factory, parts):
    text = f"user_id,item_id,note\n1,2,3\n{''.join(parts)}\n5,6,7\n".encode(errors="surrogateescape")
    try:
        tables, rejects = read(tmp_path_factory.getbasetemp(), text)
    except SchemaError as refusal:
        tables, message = None, str(refusal)
    if tables is None:
        assert "last good line" in message
        return
    ids = tables.interactions["user_id"].astype(str).tolist()
    assert (ids[0], ids[-1]) == ("1", "5")
    assert rejects.frame["line"].is_unique
    lines = [line for line in text.split(b"\n")[1:] if line]
    assert len(lines) == len(ids) + len(rejects.frame) or b'"' in text


def test_lines_are_those_of_the_file(tmp_path):
    lines = [
        "user_id,item_id,datetime,weight,note",
        '1,2,2017-12-01,3,"a',
        "",
        'b ""c"""',
        "",
        "1,2,x,3,d",
        "1,2",
    ]
    lines += ["", '1,,2017-12-01,3,"', '"', "5,6,2017-12-01,7,e", ",6,2017-12-01,7,e"]
    _, rejects = read(tmp_path, "\n".join(lines))
    assert list_rejects(rejects) == [
        (6, "datetime", "not a time"),
        (7, "datetime", "too few columns"),
        (9, "item_id", "missing"),
        (12, "user_id", "missing"),
    ]


def test_a_blank_line_of_one_column_is_a_missing_id(tmp_path):
    (tmp_path / "users.csv").write_text("user_id\n1\n\n2\n")
    _, rejects = read(tmp_path, "user_id,item_id\n1,2\n", users=TableConfig(str(tmp_path / "users.csv")))
    assert rejects.frame[["line", "column", "reason"]].to_numpy().tolist() == [[3, "user_id", "missing"]]


@pytest.mark.parametrize("tail", ['1,2,2017-12-01,"3\n4,5,2017-12-01,6\n', '1,2,2017-12-01,"3\n4,5,x,"6"\n7,8,x,9\n'])
def test_an_open_quote_stops_and_names_the_last_good_line(tmp_path, tail):
    with pytest.raises(SchemaError, match="quote opened on line 4 is not closed; the last good line is 3"):
        read(tmp_path, EVENTS + "8,8,2017-12-01,1\n9,9,2017-12-01,1\n" + tail)


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


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_told_by_the_header(tmp_path, delimiter):
    tables, _ = read(tmp_path, "\ufeffuser_id,item_id\n1,2\n".replace(",", delimiter))
    assert tables.interactions.to_numpy().tolist() == [[1, 2]]


NAMES = ["user_id", "item_id", "datetime", "weight"]


def read_bare(folder, text, **layout):
    """Read events without a header line from a file of a suffix of no meaning."""
    path = folder / "events.data"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    layout = {"names": NAMES, **layout}
    return read_tables(DataConfig(interactions=TableConfig(str(path), **layout), max_reject_rate=1.0))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_file_without_a_header_has_its_names_declared(tmp_path, delimiter, mark):
    text = '"1",7,2017-12-01,2\n3,8,2017-12-02,5\n4,,2017-12-02,5\n'
    tables, rejects = read_bare(tmp_path, mark + text.replace(",", delimiter))
    assert tables.interactions.to_numpy().tolist() == [[1, 7, 1512086400, 2], [3, 8, 1512172800, 5]]
    assert list(tables.interactions) == NAMES
    assert list_rejects(rejects) == [(3, "item_id", "missing")]
    assert rejects.records == {"interactions": 3}


@pytest.mark.parametrize("name", FAULTS)
def test_lines_are_counted_from_the_first_without_a_header(tmp_path, name):
    record, expected = FAULTS[name]
    tables, rejects = read_bare(tmp_path, b"8,8,2017-12-01,1\n\n" + encode(record) + b"9,9,2017-12-02,1\n")
    assert list_rejects(rejects) == expected  # its record is on line 3 in either file
    assert tables.interactions["item_id"].tolist() == ([8, 9] if expected else [8, 2, 9])


def test_a_bad_first_record_is_one_without_a_header(tmp_path):
    tables, rejects = read_bare(tmp_path, b"1,\xff,2017-12-01,3\n9,9,2017-12-02,1\n")
    assert list_rejects(rejects) == [(1, "item_id", "not UTF-8")]
    assert tables.interactions["item_id"].tolist() == [9]


@given(HOSTILE)
@settings(max_examples=20, deadline=None)
def test_a_declared_header_reads_as_a_written_one(tmp_path_factory, parts):
    body = f"1,2,2017-12-01,3\n{''.join(parts)}\n5,6,2017-12-01,7\n".encode(errors="surrogateescape")
    folder = tmp_path_factory.getbasetemp()
    try:
        expected, written = read(folder, EVENTS.encode() + body)
    except SchemaError:
        with pytest.raises(SchemaError):
            read_bare(folder, body)
        return
    tables, rejects = read_bare(folder, body)
    pd.testing.assert_frame_equal(tables.interactions, expected.interactions)
    assert list_rejects(rejects) == [(line - 1, *rest) for line, *rest in list_rejects(written)]
    assert rejects.frame["value"].equals(written.frame["value"])


def test_latin_1_is_read_as_declared(tmp_path):
    text = "user_id,item_id,größe\nRenée,ÿ,ß\nb,\xa0c,\n"
    path = tmp_path / "events.csv"
    path.write_bytes(text.encode("latin-1"))
    features = FeaturesConfig(context={"größe": "categorical"})
    table = TableConfig(str(path), encoding="latin-1")
    tables, rejects = read_tables(DataConfig(interactions=table, features=features))
    assert rejects.frame.empty
    assert tables.interactions["user_id"].tolist() == ["Renée", "b"]
    assert tables.interactions["item_id"].tolist() == ["ÿ", "\xa0c"]
    assert tables.interactions["größe"].fillna("").tolist() == ["ß", ""]
    with pytest.raises(SchemaError, match=r"header is not UTF-8; .*declare its encoding"):
        read_tables(DataConfig(interactions=TableConfig(str(path))))


def test_a_declared_delimiter_is_not_guessed(tmp_path):
    tables, _ = read_bare(tmp_path, "a,b c\nd,e f\n", names=NAMES[:2], delimiter=" ")
    assert tables.interactions.to_numpy().tolist() == [["a,b", "c"], ["d,e", "f"]]


def test_cells_too_many_are_shown_and_counted_once(tmp_path):
    _, rejects = read_bare(tmp_path, "1,2\n3,é,,\n5,6,7\n8,9\n", names=NAMES[:2])
    assert rejects.frame[["line", "value"]].to_numpy().tolist() == [[2, "3,é,,"], [3, "5,6,7"]]
    assert rejects.records == {"interactions": 4}


@pytest.mark.parametrize(
    ("text", "layout", "message"),
    [
        ("1,2,3\n", {}, "4 names are declared, but line 1 has 3 cells between ','"),
        ("1,2,3,4,5\n", {}, "4 names are declared, but line 1 has 5 cells"),
        ("1,2,3,4\n", {"delimiter": ";"}, "4 names are declared, but line 1 has 1 cells between ';'"),
        ("1\n", {"names": []}, "0 names are declared, but line 1 has 1 cells"),
        ("", {}, "events.data is empty"),
        ("\n1,2,3,4\n", {}, "is empty, or its first line is"),
        ("1,2,3,4\n", {"names": ["user_id", "item_id", "x", "item_id"]}, "2 columns are called 'item_id'"),
        ("1,2,3,4\n", {"names": ["user_id", "item", "x", "y"]}, "'item_id' is absent; did you mean 'item'"),
        ('1,2,3,"4\n5,6,7,8\n', {}, "quote opened on line 1 is not closed"),
    ],
)
def test_names_that_do_not_fit_the_file_are_refused(tmp_path, text, layout, message):
    with pytest.raises(SchemaError, match=message):
        read_bare(tmp_path, text, **layout)


@pytest.mark.parametrize("layout", [{"names": NAMES}, {"delimiter": ","}, {"encoding": "latin-1"}])
def test_a_text_layout_of_parquet_is_refused(tmp_path, layout):
    path = tmp_path / "events.parquet"
    pd.DataFrame({"user_id": [1], "item_id": [2]}).to_parquet(path)
    with pytest.raises(SchemaError, match="names, delimiter and encoding are those of a text file"):
        read_tables(DataConfig(interactions=TableConfig(str(path), **layout)))


def test_an_open_quote_in_the_header_is_named(tmp_path):
    with pytest.raises(SchemaError, match="quote opened on line 1 is not closed"):
        read(tmp_path, 'user_id,item_id,"note\n1,2,3\n')


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (["\n", "\n", "\r\n", "\n"], "line 3 ends in CR LF, the lines before it in LF"),
        (["\r\n", "\r\n", "\r\n", "\n"], "line 4 ends in LF, the lines before it in CR LF"),
        (["\n", "\r", "\n", "\n"], "line 2 ends in CR, the lines before it in LF"),
    ],
)
def test_mixed_line_ends_are_named(tmp_path, ends, message):
    lines = ["user_id,item_id", "1,2", "3,4", "5,6"]
    with pytest.raises(SchemaError, match=f"{message}; save the file with one kind of line end"):
        read(tmp_path, "".join(line + end for line, end in zip(lines, ends, strict=True)))


def test_line_ends_inside_quotes_are_cells(tmp_path):
    tables, rejects = read(tmp_path, 'user_id,item_id\r\n1,"a\nb"\r\n2,"c\rd"\r\n')
    assert tables.interactions["item_id"].tolist() == ["a\nb", "c\rd"]
    assert rejects.frame.empty


TABLE_FAULTS = [
    ("", {}, "is empty"),
    (EVENTS, {}, "is empty: expected at least one record"),
    ("user_id,item\n1,2\n", {}, "column 'item_id' is absent; did you mean 'item'"),
    ("user_id,item_id,item_id\n1,2,3\n", {}, "2 columns are called 'item_id'"),
    (EVENTS + "1,2,20171201,3\n", {}, "column 'datetime': the unit of time 20171201 is ambiguous"),
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
        EVENTS + "1,2,x,3\n1,2,2017-12-01,3\n",
        {"max_reject_rate": 0.25},
        "1 of 2 records.*0.25.*line 2.*'x': not a time",
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
    for path, message in [
        (tmp_path / "none.csv", "does not exist"),
        (tmp_path / "events.xlsx", r"unknown suffix '.xlsx'; allowed: .csv.*as 'names'"),
        (damaged, "damaged.parquet cannot be read"),
    ]:
        with pytest.raises(SchemaError, match=message):
            read_tables(DataConfig(interactions=TableConfig(str(path))))
    with pytest.raises(SchemaError, match=r"data.interactions.path is not set"):
        read_tables(DataConfig())


def test_rows_of_one_id_that_differ_are_refused_and_equal_ones_are_not():
    events = pd.DataFrame({"user_id": [1], "item_id": [2]})
    config = DataConfig(features=FeaturesConfig(user={"age": "numeric"}))
    equal = pd.DataFrame({"user_id": [4, 4], "age": [None, np.nan]})
    assert len(tables_from_frames(config, events, equal)[0].users) == 2
    with pytest.raises(SchemaError, match=r"users: user_id 4 has rows that differ \(1 such ids\)"):
        tables_from_frames(config, events, pd.DataFrame({"user_id": [4, 4, 5], "age": [1, 2, 3]}))


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
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(options, message):
    events = pd.DataFrame({"user_id": [1], "item_id": [2], "u": [1]})
    users = pd.DataFrame({"user_id": [1], "town": ["x"]})
    with pytest.raises(SchemaError, match=message):
        tables_from_frames(DataConfig(**options), events, users)


CELL = st.text(st.sampled_from('ab,"\n;ü '), max_size=5)


@given(st.lists(st.tuples(st.integers(0, 9), CELL, CELL), min_size=1, max_size=11))
@settings(max_examples=20, deadline=None)
def test_a_well_written_csv_comes_back_as_it_was(tmp_path_factory, records):
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("user_id", "item_id", "note"), *records])
    features = FeaturesConfig(context={"note": "categorical"})
    frame, rejects = read(tmp_path_factory.getbasetemp(), text.getvalue(), features=features)
    good = [record for record in records if record[1].strip()]
    assert frame.interactions["item_id"].tolist() == [item for _, item, _ in good]
    assert frame.interactions["note"].fillna("").tolist() == [note for *_, note in good]
    lines = np.cumsum([1, *(1 + item.count("\n") + note.count("\n") for _, item, note in records)]) + 1
    bad = [line for line, record in zip(lines, records, strict=False) if not record[1].strip()]
    assert rejects.frame["line"].tolist() == bad


def test_rejects_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    _, rejects = read(tmp_path, EVENTS + "1,2,x,3\n1,2,2017-12-01\n,2,2017-12-01,4\n5,5,2017-12-01,5\n")
    target = tmp_path / "rejects.parquet"
    write_rejects(rejects, target)
    written = pq.read_table(target)
    assert written.column_names == ["file", "line", "column", "value", "reason"]
    assert written["line"].to_pylist() == [2, 3, 4]
    assert written["value"].to_pylist() == ["x", "1,2,2017-12-01", None]
    before = target.read_bytes()

    def fail(table, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="No space"):
        write_rejects(rejects, target)
    assert target.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"events.csv", "rejects.parquet"}
