"""Texts and vectors as codes and values."""

import numpy as np
import pytest
from serve.cells import Vector
from serve.encode import (
    code_slices,
    encode_features,
    value_slices,
)
from serve.errors import SchemaError
from serve.kinds import Feature, to_vectors

TITLE = Feature("title", "text", "name", width=5, buckets=64)
IMAGE = Feature("image", "vector", "pixels", width=3, scale=2.0)
COLOUR = Feature("colour", "categorical", "farbe", ("red",))
PRICE = Feature("price", "numeric", "price", mean=10.0, scale=4.0)
SIDE = (PRICE, TITLE, IMAGE, COLOUR)
NAN = float("nan")


def test_slices_give_each_feature_its_width():
    assert code_slices(SIDE) == [(TITLE, slice(0, 5)), (COLOUR, slice(5, 6))]
    assert value_slices(SIDE) == [(PRICE, slice(0, 2)), (IMAGE, slice(2, 6))]
    assert (TITLE.n_codes, IMAGE.n_codes) == (66, 2)


def test_texts_are_coded_and_blank_ones_unknown():
    cells = [
        "a b",
        None,
        " ",
        "!",
        ["A", "b"],
        NAN,
        "a b",
        ["A", None, " b "],
        ("A", 7.0),
        [],
        ["", None],
    ]
    codes = encode_features((TITLE,), {"name": cells}, len(cells)).codes
    expected = TITLE.encode(
        ["a b", None, None, None, "a\nb", None, "a b", "a\nb", "a\n7", None, None],
    )
    assert codes.tolist() == expected.tolist()
    assert codes[1].tolist() == [1, 0, 0, 0, 0]
    assert set(codes[0]) != set(codes[4])  # no pair of words across the values of a list


def test_vectors_are_divided_by_one_scale_and_flagged():
    cells = [
        [2.0, -4, 0],
        None,
        "[1, 2, 3]",
        Vector(np.float32([0, 0, 0]).tobytes()),
        NAN,
        "",
        [1e30, -1e30, 1],
    ]
    values = encode_features((IMAGE, PRICE), {"pixels": cells}, len(cells)).values
    expected = [
        [1, -2, 0, 0],
        [0, 0, 0, 1],
        [0.5, 1, 1.5, 0],
        [0] * 4,
        [0, 0, 0, 1],
        [0, 0, 0, 1],
        [10, -10, 0.5, 0],
    ]
    assert values.dtype == np.float32
    assert values[:, :4].tolist() == expected
    assert encode_features((IMAGE,), {}, 2).values.tolist() == [[0, 0, 0, 1]] * 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_a_matrix_is_a_column_of_vectors(dtype):
    matrix = np.arange(12).reshape(4, 3).astype(dtype)
    rows = encode_features((IMAGE,), {"pixels": list(matrix)}, 4).values
    assert np.array_equal(encode_features((IMAGE,), {"pixels": matrix}, 4).values, rows)


def test_rows_of_nan_in_a_matrix_are_missing():
    matrix = np.array([[1.0, 2, 3], [NAN] * 3])
    assert encode_features((IMAGE,), {"pixels": matrix}, 2).values[:, 3].tolist() == [
        0,
        1,
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0, 2], None], "'image': a vector of 2 numbers; expected 3"),
        (["1 2 3 4"], "'image': a vector of 4 numbers; expected 3"),
        (np.ones((2, 4)), "'image': a vector of 4 numbers; expected 3"),
        ([[1, NAN, 2]], "'image': an entry is not finite"),
        (np.array([[1, NAN, 2]]), "'image': an entry is not finite"),
        (["a b c"], "'image': no list of numbers: 'a b c'"),
        ([5.0], r"'image': no list of numbers: 5\.0 \(float\)"),
    ],
)
def test_what_is_no_vector_of_this_width_is_named(values, message):
    with pytest.raises(SchemaError, match=message):
        to_vectors(IMAGE, values)
