import gc
import operator
import weakref

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import SchemaError
from serve.filters import Columns, parse_where
from serve.recommendations import to_arrow
from serve.schema import Feature

TABLE = pa.table(
    {
        "item_id": ["7", "007", "x", "y", "z"],
        "whole": pa.array([1, None, 2**53 + 1, -3, 0], pa.int64()),
        "small": pa.array([200, None, 0, 1, 2], pa.uint8()),
        "price": pa.array([0.1, float("nan"), 5.0, None, -0.0], pa.float64()),
        "rough": pa.array([0.1, None, 5.0, 3e38, -1.0], pa.float32()),
        "label": pa.array([" dairy", "", "meat", None, "dairy "], pa.large_string()),
        "flag": pa.array([True, None, False, True, False]),
        "said": pa.array(["True", None, "false", "TRUE", ""], pa.string()),
        "genres": pa.array(["a| b", "b|", None, "c|a", "||"], pa.string()),
        "tags": pa.array([["a", "b"], [], None, ["c"], ["a", None]], pa.list_(pa.string())),
        "year": pa.array(["1995", "2000", "1995", None, "1996"], pa.string()),
        "image": pa.array([[1.0]] * 5, pa.list_(pa.float32())),
        "empty": pa.array([None] * 5, pa.string()),
        "repeat_rate": pa.array([0.5] * 5, pa.float32()),
    }
)
COLUMNS = Columns(TABLE, (Feature("kinds", "multi_categorical", "genres", separator="|"),))


def admitted(text):
    return np.flatnonzero(COLUMNS.admit(parse_where(text))).tolist()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("item_id = '7'", [0]),
        ("item_id in ['007', 'x', 'q']", [1, 2]),
        ("whole = 9007199254740993", [2]),
        ("whole = 9007199254740992", []),
        ("whole in [9007199254740992, 9007199254740993, 1.0, 1.5, 1e300]", [0, 2]),
        ("whole < 1.5", [0, 3, 4]),
        ("whole < 99999999999999999999", [0, 2, 3, 4]),
        ("whole != 1", [2, 3, 4]),
        ("not whole = 1", [1, 2, 3, 4]),
        ("small = 200", [0]),
        ("small > -1", [0, 2, 3, 4]),
        ("price <= 0.1", [0, 4]),
        ("price = 0", [4]),
        ("price != 5", [0, 4]),
        ("not price < 6", [1, 3]),
        ("price not in [5]", [0, 4]),
        ("not price in [5]", [0, 1, 3, 4]),
        ("price in []", []),
        ("price not in []", [0, 2, 4]),
        ("rough <= 0.1", [0, 4]),
        ("rough in [0.1, 1e300]", [0]),
        ("rough < 1e300", [0, 2, 3, 4]),
        ("label = 'dairy'", [0, 4]),
        ("label = ' dairy '", [0, 4]),
        ("label != 'dairy'", [2]),
        ("not label = 'dairy'", [1, 2, 3]),
        ("label = ''", []),
        ("label not in ['meat', 'q']", [0, 4]),
        ("flag", [0, 3]),
        ("not flag", [1, 2, 4]),
        ("flag = false", [2, 4]),
        ("flag != true", [2, 4]),
        ("flag in [true, false]", [0, 2, 3, 4]),
        ("said", [0, 3]),
        ("said = false", [2]),
        ("genres = 'a'", [0, 3]),
        ("genres in ['b', 'c']", [0, 1, 3]),
        ("genres != 'a'", [1]),
        ("genres not in ['b']", [3]),
        ("not genres = 'a'", [1, 2, 4]),
        ("tags = 'a'", [0, 4]),
        ("tags not in ['a']", [3]),
        ("year in ['1995']", [0, 2]),
        ("empty = 'x' or not empty = 'x'", [0, 1, 2, 3, 4]),
    ],
)
def test_items_that_an_expression_lets_in(text, rows):
    assert admitted(text) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("price <= 'x'", r"column 'price' holds numbers; got 'x' \(str\): give a number"),
        ("price = true", r"column 'price' holds numbers; got True \(bool\)"),
        ("price in [1, 'x']", r"column 'price' holds numbers; got 'x'"),
        ("price", "column 'price' holds numbers: compare it, as in `price` <= 20"),
        ("item_id = 7", r"column 'item_id' holds texts; got 7 \(int\): give a text in quotes, '7'"),
        ("year >= 1995", "column 'year' holds texts, which have no order; got >="),
        ("year = 1995.0", "column 'year' holds texts; got 1995.0 .*: give a text in quotes, '1995'"),
        ("label = true", r"column 'label' holds texts; got True \(bool\): give a text in quotes, 'true'"),
        ("label", "column 'label' holds texts: compare it, as in `label` = 'x'"),
        ("genres", "column 'genres' holds texts"),
        ("flag = 1", r"column 'flag' holds true or false; got 1 \(int\): write flag or not flag"),
        ("flag < true", "column 'flag' holds true or false; got <: allowed are = and !="),
        ("flag in ['true']", "column 'flag' holds true or false; got 'true'"),
        ("said = 'True'", "column 'said' holds true or false; got 'True'"),
        ("image = 3", r"column 'image' holds list<.*float>; allowed are columns of numbers, texts"),
        ("genre = 'a'", "unknown column 'genre'; did you mean 'genres'"),
        ("repeat_rate > 0", "unknown column 'repeat_rate'"),
        ("y" * 100 + " = 3", "unknown column 'y{40}'; allowed:"),
        ("q = 3", "unknown column 'q'; allowed: empty, flag, genres, image, item_id, label"),
    ],
)
def test_a_value_that_is_not_of_its_columns_type_is_refused(text, message):
    with pytest.raises(SchemaError, match=message):
        COLUMNS.admit(parse_where(text))


def test_values_of_a_cell_are_texts_even_where_all_are_true_or_false():
    table = pa.table({"marks": ["true|false", "TRUE", None, "false", "true"]})
    columns = Columns(table, (Feature("kinds", "multi_categorical", "marks", separator="|"),))
    for text, rows in (("marks = 'true'", [0, 4]), ("marks = 'false'", [0, 3]), ("marks != 'false'", [1, 4])):
        assert np.flatnonzero(columns.admit(parse_where(text))).tolist() == rows
    with pytest.raises(SchemaError, match="column 'marks' holds texts"):
        columns.admit(parse_where("marks"))


def test_what_lies_beneath_a_missing_value_does_not_matter():
    is_known = np.array([False, True])
    values = {"flag": np.array([True, True]), "price": np.array([7.0, 7.0]), "n": np.array([7, 7])}
    columns = Columns(pa.table({name: to_arrow(cells, is_known) for name, cells in values.items()}), ())
    for text in ("flag", "flag = true", "flag != false", "flag in [true]", "flag not in [false]"):
        assert columns.admit(parse_where(text)).tolist() == [False, True], text
    for name in ("price", "n"):
        for test in ("= 7", "!= 3", "in [7]", "not in [3]", ">= 7"):
            assert columns.admit(parse_where(f"{name} {test}")).tolist() == [False, True], (name, test)


def test_only_columns_of_many_values_are_split():
    table = pa.table({"name": ["a|b", "a", "b"]})
    for kind in ("categorical", "text"):
        columns = Columns(table, (Feature("title", kind, "name", separator="|"),))
        assert columns.admit(parse_where("name = 'a'")).tolist() == [False, True, False]
        assert columns.admit(parse_where("name = 'a|b'")).tolist() == [True, False, False]


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.large_string())])
def test_a_value_that_a_list_holds_twice_counts_once(kind):
    columns = Columns(pa.table({"tags": pa.array([["a", "a", " a"], ["b", "a"], None], kind)}), ())
    assert columns.admit(parse_where("tags = 'a'")).tolist() == [True, True, False]
    assert [len(codes) for codes in columns.read("tags").labels.codes_of(np.arange(3))] == [1, 2, 0]


def test_a_mask_is_computed_once_for_a_text_and_cannot_be_changed():
    columns = Columns(TABLE, ())
    first = columns.admit(parse_where("flag and whole < 3"))
    assert columns.admit(parse_where("flag and whole < 3")) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = True


def test_the_masks_that_were_asked_for_last_are_kept():
    columns, texts = Columns(TABLE, ()), [f"whole = {number}" for number in range(33)]
    masks = [columns.admit(parse_where(text)) for text in texts[:32]]
    assert columns.admit(parse_where(texts[0])) is masks[0]
    columns.admit(parse_where(texts[32]))
    assert [columns.admit(parse_where(texts[n])) is masks[n] for n in (0, 2, 31, 1)] == [True, True, True, False]


def test_columns_end_without_the_garbage_collector():
    columns = Columns(TABLE, ())
    columns.admit(parse_where("flag and whole < 3"))
    ended = weakref.ref(columns)
    gc.disable()
    try:
        del columns
        assert ended() is None
    finally:
        gc.enable()


def test_columns_that_changed_hold_only_those_of_the_bundle():
    columns = Columns(TABLE, ())
    between = columns.changed(TABLE)
    last, ended = between.changed(TABLE), weakref.ref(between)
    gc.disable()
    try:
        del between
        assert ended() is None
    finally:
        gc.enable()
    assert last.admit(parse_where("said")).tolist() == columns.admit(parse_where("said")).tolist()


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("whole", [[1], [], [2**53 + 1], [-3], [0]]),
        ("price", [[0.1], [], [5.0], [], [0.0]]),
        ("flag", [[True], [], [False], [True], [False]]),
        ("label", [["dairy"], [], ["meat"], [], ["dairy"]]),
        ("genres", [["a", "b"], ["b"], [], ["c", "a"], []]),
    ],
)
def test_items_share_a_code_where_they_share_a_value(column, cells):
    labels = COLUMNS.read(column).labels
    codes = labels.codes_of(np.arange(5))
    assert [len(of) for of in codes] == [len(of) for of in cells]
    shared = {
        (value, code) for values, of in zip(cells, codes, strict=True) for value, code in zip(values, of, strict=True)
    }
    assert len({value for value, _ in shared}) == len({code for _, code in shared}) == len(shared)


OPERATORS = {"=": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}


@given(
    values=st.lists(st.none() | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, 2**53, 2**53 + 1])),
    sign=st.sampled_from(sorted(OPERATORS)),
    number=st.integers(-(2**70), 2**70) | st.sampled_from([0, 1, 1.5, 2**53, 2**53 + 1, -1e300]),
)
def test_integers_are_compared_exactly(values, sign, number):
    table = pa.table({"n": pa.array(values, pa.int64())})
    compare = getattr(operator, OPERATORS[sign])
    expected = [value is not None and compare(value, number) for value in values]
    assert Columns(table, ()).admit(parse_where(f"n {sign} {number!r}")).tolist() == expected
    among = Columns(table, ()).admit(parse_where(f"n in [{number!r}, 1]")).tolist()
    assert among == [value is not None and value in (number, 1) for value in values]


def test_whole_numbers_are_among_those_that_are_whole_and_none_other():
    table = pa.table({"n": pa.array([20, 21, 2**63 - 1, None]), "u": pa.array([2**64 - 1, 3, 2**63, 0], pa.uint64())})
    table = table.append_column("least", pa.array([-(2**63), 0, 2**63 - 1, None]))
    columns = Columns(table, ())
    for text, expected in (
        ("n in [20.5]", []),
        ("n in [20.0, 21.5]", [0]),
        (f"n in [{2**63}, {2**63 - 1}]", [2]),
        (f"n not in [{2**63}, 20]", [1, 2]),
        (f"least in [{-(2**63)}, {-(2**63) - 1}]", [0]),
        ("u > 4", [0, 2]),
        ("u >= 20 or u <= 20", [0, 1, 2, 3]),
        ("n >= 20 or n = 21", [0, 1, 2]),
    ):
        assert np.flatnonzero(columns.admit(parse_where(text))).tolist() == expected, text
