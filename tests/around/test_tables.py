"""Rows of files: the three formats hold the same requests and items, and a fault names file and place."""

import csv
import gzip
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datamodules.read import read_columns, read_rows
from serve.errors import SchemaError
from serve.kinds import Feature
from serve.requests import Request
from service.export import write_tables
from service.request_files import read_filters, read_items, read_requests
from tests.linear_bundle import SHOP

SCHEMA = replace(
    SHOP,
    user_features=(
        Feature("age", "numeric", "birth_year"),
        Feature("gender", "categorical", "gender", ("f", "m")),
        Feature("likes", "multi_categorical", "likes", ("a", "b"), width=2),
        Feature("place", "categorical", "place", ("n",)),
    ),
    context_features=(
        Feature("hour", "hour_of_day", "datetime"),
        Feature("device", "categorical", "device", ("tv",)),
        Feature("place", "categorical", "store", ("s",)),
    ),
    item_id_type="integer",
    event_types=("view",),
    timezone="Europe/Berlin",
)
NOON = 1_704_110_400
RAW = [
    {"user_id": "007", "features": {"age": 3.5, "gender": "f"}},
    {
        "history": [{"item_id": 11, "datetime": "2024-01-01T12:00:00Z", "weight": 2}],
        "exclude": [7],
    },
    {"user_id": "é", "context": {"device": "tv"}, "datetime": "2024-01-01 13:00:00"},
]


def read(path: Path, content: str | bytes) -> list[Request]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_requests(path, SCHEMA))


def check(requests: list[Request]) -> None:
    """Compare requests with `RAW`."""
    first, second, third = requests
    assert (first.user_id, first.features) == ("007", {"age": 3.5, "gender": "f"})
    columns = {name: values.tolist() for name, values in second.history.columns().items()}
    assert (columns, second.exclude) == (
        {"item_id": [11], "datetime": [NOON], "weight": [2.0]},
        (7,),
    )
    assert (third.user_id, third.context, third.datetime) == (
        "é",
        {"device": "tv"},
        NOON,
    )


def test_json_lines_also_compressed(tmp_path):
    text = "\ufeff" + "\n\n".join(map(json.dumps, RAW)) + "\n"
    check(read(tmp_path / "r.jsonl", text))
    check(read(tmp_path / "r.jsonl.gz", gzip.compress(text.encode())))
    with pytest.raises(SchemaError, match=r"r\.jsonl\.gz cannot be read"):
        read(tmp_path / "r.jsonl.gz", gzip.compress(text.encode())[:-9])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"user_id"', "line 3: not JSON"),
        ("[1]", "line 3: not a JSON object"),
        (
            '{"usr_id": "a"}',
            "line 3: request: unknown name 'usr_id' .*did you mean 'user_id'",
        ),
        ("\ud800", "line 3: not UTF-8"),
        ('{"features": {"age": NaN}}', "line 3: features.age is nan"),
    ],
)
def test_a_bad_line_is_named_and_those_before_are_read(tmp_path, line, message):
    path = tmp_path / "r.jsonl"
    path.write_text(f'{{"user_id": "a"}}\n\n{line}\n', encoding="utf-8", errors="surrogatepass")
    requests = read_requests(path, SCHEMA)
    assert next(requests).user_id == "a"
    with pytest.raises(SchemaError, match=message):
        next(requests)


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "tsv"])
def test_csv(tmp_path, suffix):
    rows = [
        ["user_id", "age", "gender", "likes", "device", "datetime"],
        ["007", "3.5", " f", "a|b", "", "2024-01-01 13:00:00"],
        ["a\nb", "", "", "", "tv", ""],
        ['"quoted", twice', "1e2", "", "", "", ""],
    ]
    delimiter = "\t" if suffix == "tsv" else ","
    text = "\ufeff" + "".join(
        delimiter.join('"' + cell.replace('"', '""') + '"' if cell else "" for cell in row) + "\r\n"
        for row in rows
    )
    content = text.encode()
    found = read(
        tmp_path / f"r.{suffix}",
        gzip.compress(content) if suffix.endswith("gz") else content,
    )
    assert found == [
        Request("007", {"age": 3.5, "gender": " f", "likes": "a|b"}, datetime=NOON),
        Request("a\nb", context={"device": "tv"}),
        Request('"quoted", twice', {"age": 100.0}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("user_id,user_id\na,b\n", "the columns are .*distinct"),
        ("user_id,gendre\na,f\n", "line 2: column 'gendre'"),
        ("user_id,hour\na,3\n", "column 'hour'"),
        ("history\n[]\n", "column 'history'"),
        ("place\nx\n", "column 'place' .*give JSON Lines"),
        (
            "user_id,age\na,3,4\n",
            r"r\.csv, line 2: too many columns",
        ),
        ("user_id,age\na,3\n\nb,old\n", "line 4: features\\.age is 'old'"),
        ("user_id,age\na,nan\n", "line 2: features\\.age is nan"),
        ("user_id,datetime\na,noon\n", "line 2: datetime is 'noon'"),
        (b"user_id\n\xff\n", "cannot be read"),
    ],
)
def test_a_bad_csv_is_named(tmp_path, text, message):
    with pytest.raises(SchemaError, match=message):
        read(tmp_path / "r.csv", text)


def nested_table() -> pa.Table:
    event = pa.struct([("item_id", pa.int32()), ("datetime", pa.timestamp("ns", "Asia/Tokyo"))])
    events = [
        [{"item_id": 11, "datetime": datetime(2024, 1, 1, 12, 0, 0, 900_000)}],
        [],
        None,
    ]
    return pa.table(
        {
            "user_id": pa.array(["a", None, "c"]).dictionary_encode(),
            "features": pa.array(
                [{"age": 3, "likes": ["a", "b"]}, None, {"age": None, "likes": None}]
            ),
            "history": pa.array(events, pa.list_(event)),
            "datetime": pa.array([datetime(2024, 1, 1, 13), None, None], pa.timestamp("ms")),
        }
    )


def test_parquet(tmp_path):
    path = tmp_path / "r.parquet"
    pq.write_table(nested_table(), path, row_group_size=1)
    names = [request.user_id for request in read_requests(path, SCHEMA)]
    assert len(names) == nested_table().num_rows
    pq.write_table(pa.table({"user_id": ["a", ""]}), path)
    with pytest.raises(SchemaError, match=r"r\.parquet, row 2: user_id is ''"):
        list(read_requests(path, SCHEMA))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SchemaError, match=r"r\.parquet cannot be read"):
        list(read_requests(path, SCHEMA))


def test_other_files_are_refused(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    for name in ("r.txt", "r.json", "r.parquet.gz", "missing.csv", "folder.csv"):
        with pytest.raises(SchemaError, match=r"cannot read|no such file"):
            next(read_requests(tmp_path / name, SCHEMA))


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_the_formats_hold_the_same_items(tmp_path, suffix):
    path = tmp_path / f"i.{suffix}"
    rows = [
        {
            "item_id": 100 + n,
            "brand": ["x", "y|z", None][n % 3],
            "price": n - 4,
            "size": 7,
        }
        for n in range(9)
    ]
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    elif suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    read = list(read_items(path, SHOP))
    places = {"jsonl": "line {}", "csv": "line {}", "parquet": "row {}"}
    n_above = suffix == "csv"  # a header
    assert [place for place, _ in read] == [
        f"{path.name}, {places[suffix].format(number + n_above)}" for number in range(1, 10)
    ]
    expected = [{name: row[name] for name in ("item_id", "brand", "price")} for row in rows]
    if suffix == "csv":
        expected = [
            {name: None if value is None else str(value) for name, value in row.items()}
            for row in expected
        ]
    assert [item for _, item in read] == expected


def test_a_file_that_is_none_of_items_is_refused(tmp_path):
    path = tmp_path / "i.jsonl"
    for rows, message in (
        ([{"sku": 1, "brand": "x"}], "no 'item_id'; name it with --columns"),
        ([{"item_id": 1, "size": 3}], "no column is a feature of items"),
        ([[1]], "not a JSON object"),
    ):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(SchemaError, match=rf"i\.jsonl, line 1: {message}"):
            list(read_items(path, SHOP))
    with pytest.raises(
        SchemaError, match="no feature of items reads 'prise'; did you mean 'price'"
    ):
        list(read_items(path, SHOP, {"prise": "cost"}))


def test_ids_and_filters_of_a_command(tmp_path):
    path = tmp_path / "only.csv"
    path.write_text("item_id;brand\n7;x\n8;y\n")
    filters = read_filters("price <= 2", path, ["brand=2", "a=b=1"], "integer")
    assert (filters.where, filters.only, filters.at_most) == (
        "price <= 2",
        (7, 8),
        (("a=b", 1), ("brand", 2)),
    )
    assert read_filters(None, None, [], "integer") is None
    for option in (["brand"], ["brand=x"], ["=1"], ["brand=1", "brand=2"], ["brand=0"]):
        with pytest.raises(SchemaError, match=r"at.most"):
            read_filters(None, None, option, "integer")


@pytest.mark.parametrize(
    ("name", "header", "delimiter"),
    [
        ("a.csv", "a;b,c;d", ";"),
        ("a.csv", '"a;b;c",d', ","),
        ("a.csv", "a,b|c|d", "|"),
        ("a.TSV", "a,b,c\td", "\t"),
    ],
)
def test_the_delimiter_shows_in_the_header(tmp_path, name, header, delimiter):
    names = next(csv.reader([header], delimiter=delimiter))
    (tmp_path / name).write_text(f"{header}\n{delimiter.join('x' * len(names))}\n")
    assert [list(row) for _, row in read_rows(tmp_path / name)] == [names]
    (tmp_path / name).write_text("a;sku;c\n1;2;3\n".replace(";", "\t" if name == "a.TSV" else ";"))
    assert [row for _, row in read_rows(tmp_path / name, read_columns("sku=a"))] == [
        {"sku": "1", "c": "3"}
    ]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_is_as_it_was_until_the_new_one_is_complete(tmp_path, suffix):
    path = tmp_path / "deep" / f"out{suffix}"
    tables = [
        pa.table({"user_id": ["a", None], "score": [0.5, 1.0]}),
        pa.table({"user_id": ['b,"'], "score": [2.0]}),
    ]

    def failing():
        yield tables[1]
        raise OSError("disk full")

    write_tables(tables[:1], tables[0].schema, path)
    before = path.read_bytes()
    with pytest.raises(OSError, match="disk full"):
        write_tables(failing(), tables[0].schema, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    write_tables(tables, tables[0].schema, path)
    if suffix == ".csv":
        assert path.read_text() == 'user_id,score\n"a",0.5\n,1\n"b,""",2\n'
    else:
        assert pq.read_table(path).to_pydict() == {
            "user_id": ["a", None, 'b,"'],
            "score": [0.5, 1.0, 2.0],
        }
    with pytest.raises(SchemaError, match="cannot write"):
        write_tables(failing(), tables[0].schema, tmp_path / "out.txt")


def test_a_cell_that_looks_like_a_formula_is_quoted_in_csv_alone(tmp_path):
    cells = ["=cmd()", "@sum", "+x", "-x", "-5", "+49 30", "a=b", "", None]
    table = pa.table({"user_id": cells, "rank": range(len(cells))})
    for suffix in ("csv", "parquet"):
        write_tables([table], table.schema, tmp_path / f"t.{suffix}")
    lines = (tmp_path / "t.csv").read_text().splitlines()[1:]
    quoted = ["'=cmd()", "'@sum", "'+x", "'-x", "-5", "+49 30", "a=b", "", ""]
    assert [line.split(",")[0].strip('"') for line in lines] == quoted
    assert pq.read_table(tmp_path / "t.parquet").equals(table)
