import json
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.config import DataConfig, FeatureConfig, FeaturesConfig, TableConfig
from datamodules.tables import read_tables, tables_from_frames
from serve.errors import SchemaError
from tests.written_tables import list_rejects


def read_lines(folder, content, columns=None, **options):
    path = folder / "events.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    options = {"max_reject_rate": 1.0, **options}
    return read_tables(DataConfig(interactions=TableConfig(str(path), columns or {}), **options))


def test_records_become_rows(tmp_path):
    lines = [
        {"item_id": "a", "user_id": 7, "ts": "2017-12-01", "weight": 2, "tags": ["x", "y"], "device": "tv", "more": {}},
        {"user_id": 3, "item_id": "b", "ts": "2017-12-02T00:00:00Z", "weight": 2.5, "device": None},
        {"user_id": 7, "item_id": "a", "ts": "2017-12-03", "weight": 1, "tags": [], "other": [1]},
    ]
    text = "\ufeff\n" + "\r\n \t\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    features = FeaturesConfig(context={"tags": "multi_categorical", "device": "categorical"})
    tables, rejects = read_lines(tmp_path, text, {"datetime": "ts"}, features=features)
    events = tables.interactions
    assert list(events) == ["user_id", "item_id", "datetime", "weight", "tags", "device"]
    assert events["user_id"].tolist() == [7, 3, 7]
    assert events["item_id"].tolist() == ["a", "b", "a"]
    assert events["datetime"].tolist() == [1512086400, 1512172800, 1512259200]
    assert events["weight"].tolist() == [2, 2.5, 1]
    assert events["tags"].tolist() == [("x", "y"), None, ()]
    assert events["device"].tolist()[0] == "tv"
    assert events["device"].isna().tolist() == [False, True, True]
    assert rejects.records == {"interactions": 3}
    assert rejects.dropped == {"interactions": ("more", "other")}
    assert rejects.frame.empty


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, -2, 0], [1, -2, 0]),
        (["007", "7", "8"], ["007", "7", "8"]),
        (["007", 7, 8], ["007", "7", "8"]),
        ([2**53 + 1, 1, 2**63 - 1], [2**53 + 1, 1, 2**63 - 1]),
        ([2**63, 1, 2], [str(2**63), "1", "2"]),
        ([7.0, 8.0, 9.0], [7, 8, 9]),
        (["1", "2", "3"], ["1", "2", "3"]),
    ],
)
def test_ids_keep_the_type_they_are_written_as(tmp_path, ids, expected):
    text = "".join(json.dumps({"user_id": value, "item_id": 5}) + "\n" for value in ids)
    tables, rejects = read_lines(tmp_path, text)
    assert tables.interactions["user_id"].tolist() == expected
    assert list(map(type, tables.interactions["user_id"].tolist())) == list(map(type, expected))
    assert rejects.frame.empty


def test_an_integer_beside_a_gap_stays_exact(tmp_path):
    tables, rejects = read_lines(tmp_path, f'{{"user_id": {2**53 + 1}, "item_id": 5}}\n{{"item_id": 6}}\n')
    assert tables.interactions["user_id"].tolist() == [2**53 + 1]
    assert list_rejects(rejects) == [(2, "user_id", "missing")]


CELLS = {
    "user_id": "5",
    "item_id": '"i"',
    "datetime": '"2017-12-01"',
    "price": "1.5",
    "tags": '["a"]',
    "event": '"buy"',
}
ROW = (json.dumps({name: json.loads(cell) for name, cell in CELLS.items()}) + "\n").encode()


def spoil(column, cell):
    return ("{" + ", ".join(f'"{name}": {cell if name == column else CELLS[name]}' for name in CELLS) + "}").encode()


NO_RECORDS = [
    (b'["user_id", 1]', "not a JSON object"),
    (b"17", "not a JSON object"),
    (b'"user_id"', "not a JSON object"),
    (ROW[:-5], "not JSON"),
    (ROW[:-1] + b" " + ROW[:-1], "not JSON"),
    (ROW[:-1] + b",", "not JSON"),
    (b"{'user_id': 1, 'item_id': 2}", "not JSON"),
    (b'{"user_id": 1, "item_id": 2, "x": ' + b"[" * 100_000, "not JSON"),
    (spoil("user_id", "1" * 5000), "not JSON"),
    (b'{"user_id": 1, "user_id": 1, "item_id": 2}', "a key is given twice"),
    (spoil("tags", '[{"a": 1, "a": 1}]'), "a key is given twice"),
    (spoil("user_id", '"?"').replace(b"?", b"\xff"), "not UTF-8"),
    (spoil("user_id", '"\\ud83d"'), "a text is not Unicode"),
    (b'{"user_id": 1, "item_id": 2, "\\uDC00": 3}', "a text is not Unicode"),
]
BAD_CELLS = [
    ("user_id", "null", "missing"),
    ("user_id", '" "', "missing"),
    ("user_id", "NaN", "missing"),
    ("user_id", "[1]", "not an id"),
    ("user_id", '{"id": 1}', "not an id"),
    ("user_id", "true", "not an id"),
    ("item_id", "1.5", "not an id"),
    ("datetime", "[1]", "not a time"),
    ("datetime", "{}", "not a time"),
    ("datetime", "true", "not a time"),
    ("price", '"cheap"', "not a number"),
    ("price", "[1, 2]", "not a number"),
    ("price", '{"eur": 1}', "not a number"),
    ("price", "Infinity", "not finite"),
    ("price", "1e999", "not finite"),
    ("price", "-1", "below the minimum 0"),
    ("tags", "{}", "not a value or a list of values"),
    ("tags", '["a", ["b"]]', "a list of lists"),
    ("event", '["buy"]', "not a text"),
]
FAULTS = [(line, (None, reason)) for line, reason in NO_RECORDS]
FAULTS += [(spoil(column, cell), (column, reason)) for column, cell, reason in BAD_CELLS]
FAULTS += [
    (b'{"item_id": 2, "datetime": "2017-12-01"}', ("user_id", "missing")),
    (b'{"user_id": [], "item_id": null, "price": "x"}', ("user_id", "not an id")),
]
FEATURES = FeaturesConfig(context={"price": FeatureConfig("numeric", min=0), "tags": "multi_categorical"})


@pytest.mark.parametrize(("line", "fault"), FAULTS, ids=range(len(FAULTS)))
def test_a_bad_record_is_named_once_and_its_neighbours_are_kept(tmp_path, line, fault):
    tables, rejects = read_lines(tmp_path, ROW + b"\n" + line + b"\n" + ROW + ROW, features=FEATURES)
    assert list_rejects(rejects) == [(3, *fault)]
    assert [int(user) for user in tables.interactions["user_id"]] == [5, 5, 5]
    assert rejects.records == {"interactions": 4}
    assert rejects.frame["value"].isna().all() or rejects.frame["value"].str.len().max() <= 200


def test_all_bad_records_of_one_file_are_named(tmp_path):
    tables, rejects = read_lines(tmp_path, b"".join(line + b"\n" + ROW for line, _ in FAULTS), features=FEATURES)
    assert list_rejects(rejects) == [(2 * at + 1, *fault) for at, (_, fault) in enumerate(FAULTS)]
    assert len(tables.interactions) == len(FAULTS)


def test_a_file_without_a_record_is_refused(tmp_path):
    for content in (b"", b"\n \n", b"\xef\xbb\xbf"):
        with pytest.raises(SchemaError, match=r"events.jsonl is empty"):
            read_lines(tmp_path, content)


def test_a_declared_key_that_no_record_has_is_refused(tmp_path):
    with pytest.raises(
        SchemaError, match=r"column 'sku' is absent, named in data.interactions.columns.item_id; did you mean 'sku_'"
    ):
        read_lines(tmp_path, b'{"user_id": 1, "sku_": 2}\n', {"item_id": "sku"})


SCALAR = st.one_of(
    st.none(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=4), st.booleans()
)
VALUE = st.one_of(SCALAR, st.lists(SCALAR, max_size=3), st.dictionaries(st.text(max_size=2), SCALAR, max_size=2))
KEYS = st.sampled_from(["user_id", "item_id", "datetime", "price", "tags", "event", "other"])


@given(st.lists(st.dictionaries(KEYS, VALUE), min_size=1, max_size=11))
@settings(max_examples=15, deadline=None)
def test_whatever_the_values_records_are_conserved(tmp_path_factory, records):
    text = ROW + b"".join(json.dumps(record).encode() + b"\n" for record in records)
    try:
        tables, rejects = read_lines(tmp_path_factory.getbasetemp(), text, features=FEATURES)
    except SchemaError as refusal:
        tables, message = None, str(refusal)
    if tables is None:
        assert any(words in message for words in ("does not hold", "the unit of time", "times are in mixed units"))
        return
    assert len(tables.interactions) + len(rejects.frame) == len(records) + 1
    assert rejects.frame["line"].is_unique


ID = st.one_of(st.integers(-(2**64), 2**64), st.text(st.characters(codec="utf-8"), min_size=1, max_size=4))


@given(st.lists(st.tuples(ID, ID), min_size=1, max_size=11))
@settings(max_examples=15, deadline=None)
def test_what_is_written_comes_back(tmp_path_factory, pairs):
    text = "".join(json.dumps({"user_id": user, "item_id": item}) + "\n" for user, item in pairs)
    tables, rejects = read_lines(tmp_path_factory.getbasetemp(), text)
    good = [at for at, pair in enumerate(pairs) if all(str(cell).strip() for cell in pair)]
    assert rejects.frame["line"].tolist() == [at + 1 for at in range(len(pairs)) if at not in good]
    for name, side in (("user_id", 0), ("item_id", 1)):
        cells = [pairs[at][side] for at in good]
        present = [pair[side] for pair in pairs if str(pair[side]).strip()]
        is_integer = all(isinstance(cell, int) and -(2**63) <= cell < 2**63 for cell in present)
        if cells:
            assert tables.interactions[name].tolist() == (cells if is_integer else list(map(str, cells)))


def test_a_frame_of_the_same_cells_gives_the_same_table(tmp_path):
    records = [{"user_id": 1, "item_id": "a", "tags": ["x"]}, {"user_id": 2, "item_id": "b", "tags": None}]
    got, _ = read_lines(
        tmp_path, "\n".join(map(json.dumps, records)), features=FeaturesConfig(context={"tags": "multi_categorical"})
    )
    frame = pd.DataFrame({"user_id": [1, 2], "item_id": ["a", "b"], "tags": [np.array(["x"], dtype=object), None]})
    expected, _ = tables_from_frames(DataConfig(features=FeaturesConfig(context={"tags": "multi_categorical"})), frame)
    pd.testing.assert_frame_equal(got.interactions, expected.interactions)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with mock.patch("pathlib.Path.open", side_effect=OSError(5, "Input/output error")):
        (tmp_path / "events.jsonl").touch()
        config = DataConfig(interactions=TableConfig(str(tmp_path / "events.jsonl")))
        with pytest.raises(SchemaError, match=r"events.jsonl cannot be read: .*Input/output error"):
            read_tables(config)
