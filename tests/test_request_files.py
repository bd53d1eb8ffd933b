import csv
import json
import subprocess
import sys
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.errors import SchemaError
from serve.request_files import read_requests
from serve.requests import History, Request, parse_request
from serve.schema import Feature, Schema

SCHEMA = Schema(
    user_features=(
        Feature("age", "numeric", "birth_year"),
        Feature("gender", "categorical", "gender", ("f", "m")),
        Feature("likes", "multi_categorical", "likes", ("a", "b"), width=2),
        Feature("place", "categorical", "place", ("n",)),
    ),
    item_features=(),
    context_features=(
        Feature("hour", "hour_of_day", "datetime"),
        Feature("device", "categorical", "device", ("tv",)),
        Feature("place", "categorical", "store", ("s",)),
    ),
    user_id_type="string",
    item_id_type="integer",
    event_types=("view",),
    has_datetime=True,
    has_weight=True,
    weight_mean=0.0,
    weight_scale=1.0,
    timezone="Europe/Berlin",
    ties="ordered",
    repeats="exclude",
    history_length=5,
    memory_length=11,
    decay_days=(1.0,),
    popularity_days=(),
    data_until=0,
)
NOON = 1_704_110_400
RAW = [
    {"user_id": "007", "features": {"age": 3.5, "gender": "f"}},
    {"history": [{"item_id": 11, "datetime": "2024-01-01T12:00:00Z", "weight": 2}], "exclude": [7]},
    {"user_id": "é", "context": {"device": "tv"}, "datetime": "2024-01-01 13:00:00"},
]
EXPECTED = [
    Request(user_id="007", features={"age": 3.5, "gender": "f"}),
    Request(history=History([11], [NOON], None, [2.0]), exclude=(7,)),
    Request(user_id="é", context={"device": "tv"}, datetime=NOON),
]


def read(path: Path, content: str | bytes) -> list[Request]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_requests(path, SCHEMA))


def test_json_lines(tmp_path):
    lines = [json.dumps(raw) for raw in RAW]
    assert read(tmp_path / "r.jsonl", "\n".join(lines)) == EXPECTED
    assert read(tmp_path / "r.jsonl", "\ufeff" + "\r\n\r\n".join(lines) + "\r\n") == EXPECTED
    assert read(tmp_path / "r.jsonl", "") == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"r\.jsonl, line 3: not one JSON object in UTF-8: Expecting"),
        (b'{"user_id": "\xff"}', r"line 3: .*utf-8"),
        (b"[" * 100_000, "line 3: .*recursion"),
        (b'{"datetime": ' + b"9" * 5000 + b"}", "line 3: .*4300"),
        (b'{"user_id": "a", "user_id": "b"}', "line 3: .*key 'user_id' .*twice"),
        (b'{"features": {"age": NaN}}', r"line 3: features\.age is nan"),
        (b'{"features": {"age": 1e999}}', r"line 3: features\.age is inf"),
        (b'{"user_id": "\\ud800"}', "line 3: user_id"),
        (b'{"\\ud800": 1}', r"line 3: request: unknown name '\\ud800'"),
        (b"7", "line 3: request is 7"),
        (b'{"hisotry": []}', "line 3: .*did you mean 'history'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    with pytest.raises(SchemaError, match=message) as error:
        read(tmp_path / "r.jsonl", b'{"user_id": "a"}\n\n' + line + b"\n")
    assert len(str(error.value)) < 250


def test_lines_before_a_bad_one_are_read(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"user_id": "a"}\n{', encoding="utf-8")
    requests = read_requests(tmp_path / "r.jsonl", SCHEMA)
    assert next(requests).user_id == "a"
    with pytest.raises(SchemaError, match="line 2"):
        next(requests)


def test_csv(tmp_path):
    text = (
        "device,user_id,age,likes,datetime,gender\n"
        "tv,007,3.5,a|b,2024-01-01 13:00:00,f\n"
        "\n"
        ',"x, ""y""\n z", ,,1704110400,\n'
        ",,,,,\n"
    )
    features = {"age": 3.5, "likes": "a|b", "gender": "f"}
    assert read(tmp_path / "r.csv", text) == [
        Request(user_id="007", features=features, context={"device": "tv"}, datetime=NOON),
        Request(user_id='x, "y"\n z', datetime=NOON),
        Request(),
    ]
    assert read(tmp_path / "r.csv", "\ufeffuser_id\r\n7\r\n") == [Request(user_id="7")]
    assert read(tmp_path / "r.csv", "user_id\n") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"r\.csv, line 1: the header is"),
        ("user_id,user_id\n", "line 1: the header is .*distinct"),
        ("user_id,gendre\n", "line 1: unknown column 'gendre' .*did you mean 'gender'"),
        ("user_id,hour\n", "line 1: unknown column 'hour'"),
        ("history\n", "line 1: 'history' does not fit in CSV"),
        ("place\n", "line 1: 'place' is a feature of user and of context"),
        ('user_id,age\n"a\nb",3\na,3,4\n', "line 4: 3 cells; the header has 2"),
        ("user_id,age\na,3\n\nb,old\n", r"line 4: features\.age is 'old'"),
        ("user_id,age\na,nan\n", r"line 2: features\.age is nan"),
        ("user_id,datetime\na,noon\n", "line 2: datetime is 'noon'"),
        ('user_id,age\na,3\n"b,4\n', "after line 3: no CSV .*unexpected end"),
        (b"user_id\n\xff\n", "no CSV in UTF-8"),
    ],
)
def test_a_bad_csv_is_named(tmp_path, text, message):
    with pytest.raises(SchemaError, match=message):
        read(tmp_path / "r.csv", text)


@given(ids=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5), max_size=7))
@settings(max_examples=40, deadline=None)
def test_csv_ids_come_back_exactly(tmp_path_factory, ids):
    ids = [user_id for user_id in ids if user_id.strip()]
    path = tmp_path_factory.mktemp("csv") / "r.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["user_id"], *([user_id] for user_id in ids)])
    assert [request.user_id for request in read_requests(path, SCHEMA)] == ids


def nested_table() -> pa.Table:
    event = pa.struct([("item_id", pa.int32()), ("datetime", pa.timestamp("ns", "Asia/Tokyo"))])
    events = [[{"item_id": 11, "datetime": datetime(2024, 1, 1, 12, 0, 0, 900_000)}], [], None]
    return pa.table(
        {
            "user_id": pa.array(["a", None, "c"]).dictionary_encode(),
            "features": pa.array([{"age": 3, "likes": ["a", "b"]}, None, {"age": None, "likes": None}]),
            "history": pa.array(events, pa.list_(event)),
            "datetime": pa.array([datetime(2024, 1, 1, 13), None, None], pa.timestamp("ms")),
        }
    )


def test_parquet(tmp_path):
    pq.write_table(nested_table(), tmp_path / "r.parquet")
    assert list(read_requests(tmp_path / "r.parquet", SCHEMA)) == [
        Request("a", {"age": 3.0, "likes": ["a", "b"]}, History([11], [NOON]), None, NOON),
        Request(history=History([])),
        Request("c", {"age": None, "likes": None}),
    ]


@pytest.mark.parametrize("list_of", [pa.list_, pa.large_list])
@pytest.mark.parametrize(("unit", "zone"), [("s", "UTC"), ("ms", "UTC"), ("ns", "Europe/Berlin")])
def test_times_within_lists_are_read_as_those_beside_them(tmp_path, list_of, unit, zone):
    kind = pa.timestamp(unit, zone)
    times = pa.array([NOON], pa.timestamp("s", zone)).cast(kind)
    history = pa.array(
        [[{"item_id": 11, "datetime": times[0].as_py()}]], list_of(pa.struct({"item_id": "int64", "datetime": kind}))
    )
    pq.write_table(pa.table({"datetime": times, "history": history}), tmp_path / "r.parquet")
    expected = [Request(history=History([11], [NOON]), datetime=NOON)]
    assert list(read_requests(tmp_path / "r.parquet", SCHEMA)) == expected


def test_decimals_of_a_database_are_the_ids_and_times_that_training_read(tmp_path):
    columns = {"user_id": [Decimal(7), Decimal(8)], "datetime": [Decimal(NOON), None], "exclude": [[Decimal(3)], None]}
    kinds = (pa.decimal128(18, 0), pa.decimal128(20, 2), pa.list_(pa.decimal128(38, 0)))
    arrays = [pa.array(values, kind) for values, kind in zip(columns.values(), kinds, strict=True)]
    pq.write_table(pa.table(arrays, names=list(columns)), tmp_path / "r.parquet")
    expected = [Request(user_id="7", datetime=NOON, exclude=(3,)), Request(user_id="8")]
    assert list(read_requests(tmp_path / "r.parquet", SCHEMA)) == expected


def test_parquet_is_read_in_batches_and_a_bad_row_is_named(tmp_path):
    users = [f"u{row}" for row in range(10_001)]
    pq.write_table(pa.table({"user_id": [*users, " "]}), tmp_path / "r.parquet")
    requests = read_requests(tmp_path / "r.parquet", SCHEMA)
    assert [next(requests).user_id for _ in users] == users
    with pytest.raises(SchemaError, match=r"r\.parquet, row 10002: user_id is ' '"):
        next(requests)


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array([3.5]), pa.array(["b"])], names=["user_id", "x", "user_id"])
    pq.write_table(table, tmp_path / "r.parquet")
    with pytest.raises(SchemaError, match=r"r\.parquet: column 'user_id' .* is there twice"):
        list(read_requests(tmp_path / "r.parquet", SCHEMA))


def test_what_is_no_parquet_is_named(tmp_path):
    pq.write_table(nested_table(), tmp_path / "r.parquet")
    content = (tmp_path / "r.parquet").read_bytes()
    for broken in (b"", b"PAR1", content[:-5], content[: len(content) // 2]):
        with pytest.raises(SchemaError, match=r"r\.parquet: no Parquet that can be read"):
            read(tmp_path / "r.parquet", broken)


def test_other_files_are_refused_at_once(tmp_path):
    with pytest.raises(SchemaError, match=r"requests\.xlsx: cannot read '\.xlsx'; allowed: \.jsonl"):
        read_requests(tmp_path / "requests.xlsx", SCHEMA)
    with pytest.raises(SchemaError, match=r"gone\.csv: no such file"):
        read_requests(tmp_path / "gone.csv", SCHEMA)


@pytest.mark.parametrize(
    "text",
    [
        '[{"user_id": "a"},{"user_id": "b"}]',
        '\n [\n{"user_id": "a"},\n{"user_id": "b"}]\n',
        '\ufeff[{"user_id": "a"},{"user_id": "b"}]',
    ],
)
def test_an_array_is_told_how_to_become_lines(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SchemaError, match=r"^r\.jsonl: expected an object on each line; .* > r-lines\.jsonl$") as error:
        read(tmp_path / "r.jsonl", text)
    command = str(error.value).partition("one array: ")[2]
    subprocess.run(["bash", "-c", command], check=True)
    assert [request.user_id for request in read_requests(tmp_path / "r-lines.jsonl", SCHEMA)] == ["a", "b"]
    with pytest.raises(SchemaError, match=r"r\.json: cannot read '\.json'; .*to make lines of one array: "):
        read_requests(tmp_path / "r.json", SCHEMA)


def test_semicolons_and_tabs_are_told_from_the_header(tmp_path):
    expected = [Request(user_id="a,b", features={"gender": "f"})]
    assert read(tmp_path / "r.csv", "user_id;gender\na,b;f\n") == expected
    assert read(tmp_path / "r.csv", 'user_id|"gender"\n"a,b"|f\n') == expected
    assert read(tmp_path / "r.tsv", "user_id\tgender\na,b\tf\n") == expected


def test_the_three_formats_agree(tmp_path):
    raw = {"user_id": "a", "features": {"age": 3.5, "gender": "f"}, "datetime": NOON}
    pq.write_table(pa.Table.from_pylist([raw]), tmp_path / "r.parquet")
    read_all = [
        read(tmp_path / "r.jsonl", json.dumps(raw)),
        read(tmp_path / "r.csv", f"user_id,age,gender,datetime\na,3.5,f,{NOON}\n"),
        list(read_requests(tmp_path / "r.parquet", SCHEMA)),
    ]
    assert read_all == [[parse_request(raw, SCHEMA)]] * 3


@pytest.mark.parametrize("list_of", [pa.list_, pa.large_list])
def test_reading_parquet_imports_no_pandas(tmp_path, list_of):
    table, place = nested_table(), nested_table().column_names.index("history")
    history = table.column(place).cast(list_of(table.field(place).type.value_type))
    pq.write_table(table.set_column(place, "history", history), tmp_path / "r.parquet")
    (tmp_path / "schema.json").write_text(SCHEMA.to_json(), encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from serve.schema import Schema\n"
        "from serve.request_files import read_requests\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "schema = Schema.from_json((folder / 'schema.json').read_text(encoding='utf-8'))\n"
        "assert len(list(read_requests(folder / 'r.parquet', schema))) == 3\n"
        "assert not {'pandas', 'torch', 'pytorch_lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
