"""What live items may say, by the types of columns."""

from dataclasses import replace
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from serve.encode import vectors_to_arrow
from serve.errors import SchemaError
from serve.live.columns import ItemColumns
from serve.schema import Feature
from tests.linear_bundle import SHOP

FEATURES = (
    Feature("kinds", "multi_categorical", "genres", ("Drama", "War"), width=3),
    Feature("plot", "text", "about", width=5, buckets=16),
    Feature("image", "vector", "shape", width=3),
)
TABLE = pa.table(
    {
        "item_id": ["a", "b"],
        "genres": pa.array(["Drama|War", None], pa.large_string()),
        "about": ["one", "two"],
        "shape": vectors_to_arrow(np.float32([[1, 2, 3], [np.nan] * 3])),
        "year": pa.array([1999, 2001], pa.int64()),
        "weight": pa.array([1.5, None], pa.float32()),
        "is_new": [True, None],
        "is_kept": ["true", "False"],
        "since": pa.array([0, 1], pa.timestamp("s")),
        "frame": vectors_to_arrow(np.float32([[1, 2], [3, 4]])),
    }
)
COLUMNS = ItemColumns(TABLE, replace(SHOP, item_features=FEATURES), ["item_id"])


@pytest.mark.parametrize(
    ("name", "value", "parsed", "written"),
    [
        ("genres", "War", "War", "War"),
        ("genres", ["War", None, " Drama "], ["War", None, " Drama "], "War|Drama"),
        ("about", ["a line", 7], ["a line", 7], "a line\n7"),
        ("about", 1984, 1984, "1984"),
        ("about", Decimal("7.0"), "7", "7"),
        ("genres", ["War", Decimal("1.50")], ["War", "1.50"], "War|1.50"),
        ("shape", [1, 2.5, -1], [1.0, 2.5, -1.0], [1.0, 2.5, -1.0]),
        ("shape", np.float32([4, 5, 6]), [4.0, 5.0, 6.0], [4.0, 5.0, 6.0]),
        ("shape", [], None, None),
        ("genres", [" ", None], None, None),
        ("about", "  ", None, None),
        ("year", 2**60 + 1, 2**60 + 1, 2**60 + 1),
        ("year", 2**63 - 1, 2**63 - 1, 2**63 - 1),
        ("year", -(2**63), -(2**63), -(2**63)),
        ("year", Decimal(2**63 - 1), 2**63 - 1, 2**63 - 1),
        ("year", 1984.0, 1984, 1984),
        ("weight", 7, 7.0, 7.0),
        ("is_new", np.bool_(False), False, False),
        ("is_kept", True, True, "true"),
        ("is_kept", "FALSE", "FALSE", "FALSE"),
        ("is_kept", " ", None, None),
        ("genres", None, None, None),
        ("is_new", None, None, None),
    ],
)
def test_a_value_is_checked_and_written(name, value, parsed, written):
    got = COLUMNS.parse({name: value})
    assert got == {name: parsed}
    table = COLUMNS.overlay(TABLE, [{}, got])
    assert table.schema == TABLE.schema
    assert table.to_pylist() == [TABLE.to_pylist()[0], TABLE.to_pylist()[1] | {name: written}]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("genres", {"War": 1}, "column 'genres' is "),
        ("about", ["a", {}], r"column 'about'\[1\] is \{\}"),
        ("shape", [1, 2], "column 'shape' has 2 numbers; expected 3"),
        ("shape", "no", "column 'shape' is 'no' .*: no list of numbers"),
        ("year", 2.5, r"column 'year' is 2\.5 \(float\); expected a whole number of 64 bits, or null"),
        ("year", -(2**63) - 1, "column 'year' is an integer of more than 64 bits"),
        ("year", 2.0**63, r"column 'year' is 9\.22\d*e\+18 \(float\); expected a whole number of 64 bits"),
        ("year", 2**63, "column 'year' is an integer of more than 64 bits"),
        ("weight", 1e39, r"column 'weight' is 1e\+39 \(float\); expected a number of 32 bits"),
        ("weight", -1e39, r"column 'weight' is -1e\+39 \(float\); expected a number of 32 bits"),
        ("weight", "heavy", "column 'weight' is 'heavy'"),
        ("is_new", "yes", r"column 'is_new' is 'yes' \(str\); expected true or false"),
        ("is_kept", "yes", r"column 'is_kept' is 'yes' \(str\); expected true or false, or null"),
        ("since", 5, r"column 'since' is timestamp\[s\]; only a new bundle can change it"),
        ("since", None, "column 'since' is timestamp"),
        ("frame", [1, 2], r"column 'frame' is fixed_size_list.*; only a new bundle can change it"),
        ("item_id", "c", r"unknown column 'item_id' \(str\); allowed: about, frame, genres, is_kept, is_new, shape"),
        (7, "c", "unknown column 7"),
    ],
)
def test_another_value_is_refused_with_its_column(name, value, message):
    with pytest.raises(SchemaError, match=message):
        COLUMNS.parse({name: value})


@pytest.mark.parametrize(("last", "is_flags"), [("FALSE", True), ("maybe", False)])
def test_a_column_is_of_true_and_false_only_where_its_last_text_is_too(last, is_flags):
    table = pa.table({"is_kept": ["true"] * 300 + [None, last]})
    columns = ItemColumns(table, replace(SHOP, item_features=()), [])
    assert columns.holds_flags("is_kept") == is_flags
    if not is_flags:
        assert columns.parse({"is_kept": "perhaps"}) == {"is_kept": "perhaps"}
