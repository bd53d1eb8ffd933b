import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.encode import (
    Vector,
    is_missing_row,
    read_vector,
    stack_vectors,
    vectors_from_arrow,
    vectors_to_arrow,
)

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "cell",
    [
        [0.5, -2, 3e5],
        (0.5, -2, 3e5),
        np.array([0.5, -2, 3e5]),
        np.array([0.5, -2, 3e5], dtype=object),
        ["0.5", "-2", "3e5"],
        "0.5 -2 3e5",
        " [0.5, -2,3e5] ",
        "[0.5 -2\n 3e5]",
        "(0.5, -2, 3e5)",
        Vector.pack(np.float32([0.5, -2, 3e5])),
    ],
)
def test_forms_of_a_vector(cell):
    entries = read_vector(cell)
    assert entries.dtype == np.float32
    assert entries.tolist() == [0.5, -2, 3e5]


@pytest.mark.parametrize("cell", ["", "  ", "[]", [], (), np.array([])])
def test_an_empty_one_is_missing(cell):
    assert read_vector(cell) is None


@pytest.mark.parametrize(
    "cell",
    ["0.1,,2", "[1", "a b", [1, {}], {"1": 2}, {1.0}, 5, True, b"abcd", [[1.0]], [True], [1, [2]], [10**400], ["x"]],
)
def test_what_is_no_vector(cell):
    with pytest.raises(ValueError, match="no list of numbers"):
        read_vector(cell)


@pytest.mark.parametrize("cell", [[1, float("nan")], "1 inf", np.array([np.inf]), [1, None], [1e39], ["-1e39", 1.0]])
def test_entries_are_finite_as_float32(cell):
    with pytest.raises(ValueError, match="not finite"):
        read_vector(cell)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_text_list_and_cell_are_the_same_vector(entries):
    expected = np.float32(entries).tobytes()
    for cell in (entries, str(entries), " ".join(map(repr, entries)), Vector.pack(np.float32(entries))):
        assert read_vector(cell).tobytes() == expected


def test_cells_compare_by_their_entries():
    first, same, other = (Vector.pack(np.float32(entries)) for entries in ([1, 2], [1, 2], [1, 2, 3]))
    assert first == same != other
    assert len({first, same, other}) == 2
    assert (len(first), len(other)) == (2, 3)


@pytest.mark.parametrize("n", [0, 1, 11])
@pytest.mark.parametrize("missing", [[], [0], [0, 3, 10]])
def test_arrow_columns_come_back_from_parquet(tmp_path, n, missing):
    vectors = [None if row in missing else np.arange(7, dtype=np.float32) * row - 5 for row in range(11)]
    matrix = stack_vectors(vectors, 7)
    assert np.flatnonzero(is_missing_row(matrix)).tolist() == missing
    array = vectors_to_arrow(matrix[:n])
    array.validate(full=True)
    assert array.type == pa.list_(pa.float32(), 7)
    assert array.to_pylist() == [None if vector is None else vector.tolist() for vector in vectors[:n]]
    pq.write_table(pa.Table.from_arrays([array], names=["v"]), tmp_path / "v.parquet")
    column = pq.read_table(tmp_path / "v.parquet").column("v")
    np.testing.assert_array_equal(vectors_from_arrow(column), matrix[:n])
    np.testing.assert_array_equal(vectors_from_arrow(column.slice(1, 4)), matrix[:n][1:5])


def test_nothing_of_it_imports_pandas():
    code = (
        "import sys, numpy as np; from serve.vectors import *; import pyarrow as pa\n"
        "column = pa.chunked_array([vectors_to_arrow(np.float32([[1, 2], [np.nan, np.nan]]))])\n"
        "print(vectors_from_arrow(column).tolist(), 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[[1.0, 2.0], [nan, nan]] False"
