"""Reading files: each record becomes a row or a reject, whatever the layout."""

from __future__ import annotations

import gzip
import json
import re
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from datamodules.config import DataConfig, FeatureConfig, FeaturesConfig, TableConfig
from datamodules.read import read_rows
from datamodules.tables import read_tables
from serve.errors import SchemaError

NAMES = ("user_id", "item_id", "datetime", "weight", "note", "price")
NOTES = (
    "plain",
    None,
    "two\nlines",
    'say "hi"',
    "a, b",
    '"',
    "ends in\n",
    "größe",
    "\n\n",
    "semi;colon",
    '","',
)
FEATURES = FeaturesConfig(
    context={"note": "text", "price": FeatureConfig("numeric", min=0, max=100)}
)


def put(column: str, cell: bytes):
    return lambda cells: [
        cell if name == column else old for name, old in zip(NAMES, cells, strict=True)
    ]


SPOILERS = [
    (lambda cells: cells[:5], None, "too few columns"),
    (lambda cells: cells[:2], None, "too few columns"),
    (lambda cells: [*cells, b"9"], None, "too many columns"),
    (lambda cells: [*cells, b"", b""], None, "too many columns"),
    (lambda cells: [*put("user_id", b"\xc3")(cells), b"9"], None, "too many columns"),
    (put("user_id", b""), "user_id", "missing"),
    (put("item_id", b'"  "'), "item_id", "missing"),
    (put("item_id", b"\xff\xfe"), "item_id", "not UTF-8"),
    (put("note", b"caf\xe9"), "note", "not UTF-8"),
    (put("datetime", b""), "datetime", "missing"),
    (put("datetime", b"2017-13-01"), "datetime", "not a time"),
    (put("weight", b"many"), "weight", "not a number"),
    (put("weight", b"nan"), "weight", "missing"),
    (put("weight", b"inf"), "weight", "not finite"),
    (put("price", b"1e999"), "price", "not finite"),
    (put("price", b"-0.5"), "price", "below the minimum 0"),
    (put("price", b"100.5"), "price", "above the maximum 100"),
    (
        lambda cells: put("user_id", b"")(put("weight", b"many")(cells)),
        "user_id",
        "missing",
    ),
]
"""What makes a record of good cells a bad one, and the column and the reason of its first fault."""


def quote(text: str | None) -> bytes:
    needs = text is not None and any(letter in text for letter in '",\n\r')
    return ('"' + text.replace('"', '""') + '"' if needs else text or "").encode()


def write_row(row: tuple) -> list[bytes]:
    user, item, seconds, weight, note, price = row
    time = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return [
        str(user).encode(),
        item.encode(),
        time.encode(),
        str(weight).encode(),
        quote(note),
        quote(price),
    ]


def write_records(
    seed: int, n_good: int, n_bad: int, end: bytes
) -> tuple[bytes, list[tuple], list[tuple]]:
    """Write good and bad records in random order, without any reader.

    Returns:
        The file, its good rows, and line, column and reason of the others.
    """
    rng = np.random.default_rng(seed)
    pieces, rows, rejects, line = [",".join(NAMES).encode() + end], [], [], 2
    for at, bad in enumerate(rng.permutation(np.repeat([False, True], [n_good, n_bad])).tolist()):
        if rng.random() < 0.05:
            pieces.append(end)  # a blank line is no record
            line += 1
        note, price = NOTES[rng.integers(len(NOTES))], rng.integers(-40, 401) / 4
        row = (
            int(rng.integers(1, 5000)),
            f"i{at % 97}",
            1_500_000_000 + 60 * at,
            rng.integers(1, 9) / 2,
            note,
        )
        row = (*row, None if price < 0 else str(price))
        cells = write_row(row)
        if bad:
            spoil, column, reason = SPOILERS[len(rejects) % len(SPOILERS)]
            cells = spoil(cells)
            rejects.append((line, column, reason))
        else:
            rows.append(row)
        record = b",".join(cells)
        pieces.append(record + end)
        line += 1 + record.count(b"\n")
    return b"".join(pieces), rows, rejects


def read(folder, content: str | bytes, name: str = "events.csv", features=None, **layout):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    config = DataConfig(
        TableConfig(str(path), **layout),
        features=features or FeaturesConfig(),
        max_reject_rate=1.0,
    )
    return read_tables(config)


def list_rejects(rejects) -> list[tuple]:
    frame = rejects.frame.astype(object).where(rejects.frame.notna(), None)
    return list(zip(frame["line"], frame["column"], frame["reason"], strict=True))


def without_nan(frame: pd.DataFrame) -> list[tuple]:
    return list(frame.astype(object).where(frame.notna(), None).itertuples(index=False, name=None))


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("seed", range(6))
def test_every_record_is_a_row_or_a_reject_with_its_line_and_first_fault(tmp_path, seed, end):
    content, rows, bad = write_records(seed, 7 * len(SPOILERS), 3 * len(SPOILERS), end)
    tables, rejects = read(tmp_path, content, features=FEATURES)
    assert list_rejects(rejects) == bad
    assert rejects.records == {"interactions": len(rows) + len(bad)}
    expected = [
        (*row[:4], row[4] if (row[4] or "").strip() else None, row[5] and float(row[5]))
        for row in rows
    ]  # a blank cell is missing
    assert without_nan(tables.interactions[list(NAMES)]) == expected
    assert set(rejects.frame["file"]) == {str(tmp_path / "events.csv")}


def test_records_are_conserved_over_the_batches_that_a_file_is_read_in(tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.read.ROWS_AT_ONCE", 40)
    content, rows, bad = write_records(9, 900, 90, b"\n")
    tables, rejects = read(tmp_path, content, features=FEATURES)
    assert list_rejects(rejects) == bad
    assert tables.interactions["user_id"].tolist() == [row[0] for row in rows]


@pytest.mark.parametrize("suffix", ["csv", "tsv.gz"])
def test_rows_of_a_text_file_come_before_a_later_one_is_looked_at(tmp_path, suffix):
    path = tmp_path / f"r.{suffix}"
    text = "user_id\tage\n" + "a\t3\n" * 50_000 + "b\n"
    path.write_bytes(gzip.compress(text.encode()) if suffix == "tsv.gz" else text.encode())
    rows = read_rows(path)
    assert [next(rows) for _ in range(3)] == [
        (f"line {line}", {"user_id": "a", "age": "3"}) for line in (2, 3, 4)
    ]
    with pytest.raises(SchemaError, match="line 50002: too few columns"):
        list(rows)


def test_a_stray_quote_costs_its_record(tmp_path):
    tables, rejects = read(tmp_path, 'user_id,item_id\n1,a\n2,"b" c\n3,5" pipe\n')
    assert tables.interactions["item_id"].tolist() == ["a", '5" pipe']
    assert rejects.frame[["line", "costs"]].to_numpy().tolist() == [[3, "record"]]


@pytest.mark.parametrize("late", ["1,a,2017-12-01", '1,"x",2017-12-01'])
@pytest.mark.parametrize("opened", ['2,"b,2017-12-01', '2,b,"2017-12-01'])
def test_an_open_quote_swallows_no_record(tmp_path, opened, late):
    text = "user_id,item_id,datetime\n1,a,2017-12-01\n" + opened + "\n" + f"{late}\n" * 5
    with pytest.raises(
        SchemaError,
        match="the quote opened on line 3 is not closed; the last good line is 2",
    ):
        read(tmp_path, text)


EVENTS = pd.DataFrame(
    {
        "user_id": [7, 7, 3],
        "item_id": ["007", "b", "ü"],
        "datetime": [1512086400, 1512172800, 5 * 10**8],
    }
)
EVENTS["weight"] = [1.5, 2.0, 4.0]


def write(frame: pd.DataFrame, path) -> None:
    packed = "gzip" if path.suffix == ".gz" else None
    if ".jsonl" in path.name or ".ndjson" in path.name:
        frame.to_json(path, orient="records", lines=True, compression=packed)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(
            path,
            index=False,
            sep="\t" if ".tsv" in path.name else ",",
            compression=packed,
        )


@pytest.mark.parametrize(
    "name",
    [
        "e.csv",
        "e.tsv",
        "e.csv.gz",
        "e.jsonl",
        "e.ndjson",
        "e.jsonl.gz",
        "e.parquet",
        "E.CSV",
        "e.TSV.GZ",
    ],
)
def test_files_of_every_kind_give_the_same_table(tmp_path, name):
    write(EVENTS, tmp_path / name) if name.islower() else EVENTS.to_csv(
        tmp_path / name,
        index=False,
        sep="," if name == "E.CSV" else "\t",
        compression="infer" if name == "E.CSV" else "gzip",
    )
    tables, rejects = read_tables(DataConfig(TableConfig(str(tmp_path / name))))
    pd.testing.assert_frame_equal(tables.interactions, EVENTS)
    assert rejects.frame.empty


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t", "::", "~", " - "])
@pytest.mark.parametrize("has_header", [True, False])
def test_delimiters_are_guessed_or_declared_with_and_without_a_header(
    tmp_path, delimiter, has_header
):
    rows = [
        ["user_id", "item_id", "weight"],
        ["1", "a b", "2"],
        ["2", '"c::d;e"', "4.5"],
    ]
    text = "\n".join(delimiter.join(row) for row in rows[not has_header :])
    layout = {} if has_header else {"names": rows[0]}
    if delimiter in ("~", " - "):
        layout["delimiter"] = delimiter
    tables, _ = read(tmp_path, text, "events.csv" if has_header else "u.data", **layout)
    assert tables.interactions.to_dict("list") == {
        "user_id": [1, 2],
        "item_id": ["a b", "c::d;e"],
        "weight": [2.0, 4.5],
    }


def test_columns_are_renamed_and_the_others_named(tmp_path):
    text = "\ufeffcard,who,sku,device\nx,1,a,tv\n"
    features = FeaturesConfig(context={"screen": FeatureConfig("categorical", "device")})
    tables, rejects = read(
        tmp_path, text, features=features, columns={"user_id": "who", "item_id": "sku"}
    )
    assert tables.interactions.to_dict("list") == {
        "user_id": [1],
        "item_id": ["a"],
        "device": ["tv"],
    }
    assert rejects.dropped == {"interactions": ("card",)}


def test_another_encoding_is_declared(tmp_path):
    text = "user_id,item_id\n1,Misérables\n".encode("latin-1")
    assert read(tmp_path, text, encoding="latin-1")[0].interactions["item_id"].tolist() == [
        "Misérables"
    ]
    assert list_rejects(read(tmp_path, text + b"1,b\n")[1]) == [(2, "item_id", "not UTF-8")]
    with pytest.raises(SchemaError, match=r"line 2, column 'item_id'.*encoding: cp1252"):
        read(tmp_path, text)


@pytest.mark.parametrize(("encoding", "header"), [("cp1252", "Größe"), ("utf-16", "size")])
def test_a_header_of_another_encoding_names_the_one_that_reads_it(tmp_path, encoding, header):
    content = f"user_id,item_id,{header}\n1,“Käse”,3\n".encode(encoding)
    with pytest.raises(SchemaError, match=rf"line 1.*declare encoding: {encoding} in data.inter"):
        read(tmp_path, content)
    tables, _ = read(tmp_path, content, encoding=encoding)
    assert tables.interactions["item_id"].tolist() == ["“Käse”"]


def test_a_column_that_is_there_twice_is_refused_only_if_it_is_read(tmp_path):
    text = "user_id,item_id,note,note\n1,a,x,y\n"
    assert read(tmp_path, text)[0].interactions["item_id"].tolist() == ["a"]
    text = "user_id,item_id,user_id\n1,a,7\n2,b,8\n"
    with pytest.raises(SchemaError, match=r"2 columns .*declare names: (\[.*\]) in") as error:
        read(tmp_path, text)
    names = json.loads(re.search(r"names: (\[.*\]) in", str(error.value))[1])
    tables, rejects = read(tmp_path, text, names=names)
    assert tables.interactions["user_id"].tolist() == [1, 2]
    assert rejects.frame.empty
    assert rejects.records == {"interactions": 2}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_ids_are_stripped_and_counted_and_blank_ones_rejected_with_their_place(tmp_path, suffix):
    ids = [" KAF 0051", "KAF 0051", "b\xa0", "  ", "\xa0"]
    frame = pd.DataFrame({"user_id": range(5), "item_id": ids})
    write(frame, tmp_path / f"e.{suffix}")
    content = (tmp_path / f"e.{suffix}").read_bytes()
    tables, rejects = read(tmp_path, content, f"e.{suffix}")
    assert tables.interactions["item_id"].tolist() == ["KAF 0051", "KAF 0051", "b"]
    assert [hint.split(" had ")[0] for hint in rejects.hints] == ["2 ids of interactions"]
    first = {"csv": 2}.get(suffix, 1)
    assert list_rejects(rejects) == [
        (first + 3, "item_id", "missing"),
        (first + 4, "item_id", "missing"),
    ]


def test_json_lines_keep_types_and_name_what_is_no_row(tmp_path):
    lines = [
        b'{"user_id": 9007199254740993, "item_id": "007", "weight": 1}',
        b'{"item_id": "b", "weight": 1}',
        b"",
        b'{"user_id": 5, "item_id": "\xff"}',
        b'{"user_id": 5, "item_id"',
        b"[1, 2]",
        b'{"user_id": [5], "item_id": "c", "weight": 1}',
        b'{"user_id": true, "item_id": "c", "weight": 1}',
        b'{"user_id": -3, "item_id": "c", "weight": 2.5, "more": 1}',
    ]
    tables, rejects = read(tmp_path, b"\n".join(lines), "events.jsonl")
    assert without_nan(tables.interactions) == [
        (9007199254740993, "007", 1.0),
        (-3, "c", 2.5),
    ]
    assert list_rejects(rejects) == [
        (2, "user_id", "missing"),
        (4, None, "not UTF-8"),
        (5, None, "not JSON"),
        (6, None, "not a JSON object"),
        (7, "user_id", "not an id"),
        (8, "user_id", "not an id"),
    ]
    assert rejects.records == {"interactions": 8}
    assert rejects.dropped == {"interactions": ("more",)}


def test_all_files_of_a_pattern_are_one_table_in_the_order_of_their_names(tmp_path):
    (tmp_path / "b").mkdir()
    write(EVENTS.tail(1), tmp_path / "b" / "3.jsonl")
    write(EVENTS.head(1), tmp_path / "1.csv")
    write(EVENTS.iloc[1:2], tmp_path / "2.parquet")
    (tmp_path / "2b.csv").write_text("user_id,item_id,datetime,weight\n")
    tables, rejects = read_tables(DataConfig(TableConfig(f"{tmp_path}/**/*.*")))
    pd.testing.assert_frame_equal(tables.interactions, EVENTS)
    assert rejects.records == {"interactions": 3}
    (tmp_path / "4.csv").write_text("user_id,item_id,datetime\n1,2,2017-12-01\n")
    with pytest.raises(SchemaError, match=r"4.csv: column 'weight' is absent, which .*1.csv has"):
        read_tables(DataConfig(TableConfig(f"{tmp_path}/*.csv")))


PAIR = "user_id,item_id\n1,2\n"
REFUSED = [
    ("", "e.csv", {}, "is empty"),
    ("user_id,item_id\n", "e.csv", {}, "is empty"),
    ("\nuser_id,item_id\n1,2\n", "e.csv", {}, "its first line is"),
    (
        "user_id,item\n1,2\n",
        "e.csv",
        {},
        "column 'item_id' is absent.*did you mean 'item'",
    ),
    ("user_id,item_id,item_id\n1,2,3\n", "e.csv", {}, "2 columns are called 'item_id'"),
    (PAIR, "e.dat", {}, "unknown suffix '.dat'"),
    (PAIR, "e.json", {}, "unknown suffix '.json'"),
    ("{}", "e.jsonl", {"delimiter": ","}, "those of a text file"),
    (gzip.compress(PAIR.encode(), mtime=0)[:-9], "e.csv.gz", {}, "cannot be read"),
    (b"PAR1 no more PAR1", "e.parquet", {}, "cannot be read"),
    (PAIR, "e.csv", {"encoding": "utf-16"}, "cannot be read.*declare its encoding"),
]


@pytest.mark.parametrize(("content", "name", "layout", "message"), REFUSED)
def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path, content, name, layout, message):
    with pytest.raises(SchemaError, match=message) as error:
        read(tmp_path, content, name, **layout)
    assert "\n" not in str(error.value)


def test_a_path_that_names_no_file_is_refused_with_its_setting(tmp_path):
    for path, message in (
        (None, "is not set"),
        (tmp_path, "is a folder"),
        (tmp_path / "*.csv", "matches no file"),
    ):
        with pytest.raises(SchemaError, match=rf"data\.interactions\.path.*|.*{message}"):
            read_tables(DataConfig(TableConfig(None if path is None else str(path))))
