import numpy as np
import pyarrow as pa
import pytest

from serve.catalogue import ItemIds
from serve.errors import SchemaError
from serve.index import ItemIndex
from serve.live.rows import RoomyMatrix, put_rows, put_table_rows

D = 7
RNG = np.random.default_rng(0)


def draw(n):
    return RNG.standard_normal((n, D), dtype=np.float32)


def test_rows_are_put_in_place_and_behind():
    before = np.arange(5)
    after = put_rows(before, np.array([3, 5, 6]), np.array([30, 50, 60]))
    assert after.tolist() == [0, 1, 2, 30, 4, 50, 60]
    assert before.tolist() == [0, 1, 2, 3, 4]
    assert put_rows(before, np.empty(0, np.int64), np.empty(0, np.int64)).tolist() == before.tolist()


@pytest.mark.parametrize("rows", [[2], [5], [0, 5], [4, 1, 6, 5]])
def test_table_rows_are_put_in_place_and_behind(rows):
    table = pa.table({"name": list("abcde"), "price": [1.0, None, 3.0, 4.0, 5.0]})
    values = pa.table({"name": [f"new {row}" for row in rows], "price": [None, *map(float, rows[1:])]}, table.schema)
    expected = dict(enumerate(table.to_pylist())) | dict(zip(rows, values.to_pylist(), strict=True))
    assert put_table_rows(table, np.array(rows), values).to_pylist() == [expected[row] for row in sorted(expected)]


def test_a_table_that_is_changed_often_stays_in_few_chunks():
    expected = list(range(900))
    table = pa.table({"n": expected})
    for number in range(1000):
        row = int(RNG.integers(table.num_rows + 1))
        table = put_table_rows(table, np.array([row]), pa.table({"n": [number]}))
        expected[row : row + 1] = [number]
    assert table.column("n").to_pylist() == expected
    assert table.column("n").num_chunks <= 256


def test_views_of_a_matrix_with_room_never_change():
    first = draw(5)
    first.flags.writeable = False
    matrix, views = RoomyMatrix(first), [first]
    copies = [first.copy()]
    for _ in range(200):
        n_before, n = len(views[-1]), int(RNG.integers(1, 4))
        rows = n_before + np.arange(n) if RNG.random() < 0.7 else RNG.choice(n_before, n, replace=False)
        values = draw(n)
        views.append(matrix.put(views[-1], rows, values))
        copies.append(put_rows(copies[-1], rows, values))
    for view, copy in zip(views, copies, strict=True):
        np.testing.assert_array_equal(view, copy)
        assert view.flags.c_contiguous
        assert not view.flags.writeable


def test_the_first_matrix_is_not_written_to():
    first, values = draw(5), draw(1)
    copy = first.copy()
    changed = RoomyMatrix(first).put(first, np.array([2]), values)
    np.testing.assert_array_equal(changed, put_rows(copy, np.array([2]), values))
    np.testing.assert_array_equal(first, copy)


def test_a_view_that_was_not_used_does_not_count():
    matrix = RoomyMatrix(draw(5))
    first = matrix.put(draw(5), np.array([5]), draw(1))
    lost, kept = matrix.put(first, np.array([6]), draw(1)), draw(1)
    lost_copy = lost.copy()
    used = matrix.put(first, np.array([6]), kept)
    changed = matrix.put(first, np.array([2]), kept)
    np.testing.assert_array_equal(used, np.concatenate([first, kept]))
    np.testing.assert_array_equal(changed, put_rows(first, np.array([2]), kept))
    np.testing.assert_array_equal(lost, lost_copy)


@pytest.mark.parametrize("ids", [np.array([40, -3, 12, 7]), np.array(["d", "a", "c", "7"], dtype=object)])
def test_ids_that_come_later_are_found_behind(ids):
    more = [9, 100, -50] if ids.dtype != object else ["9", "z", "A"]
    first = ItemIds(ids)
    extended = first.extended(more[:2]).extended(more[2:])
    assert extended.find([*ids.tolist(), *more]).tolist() == list(range(7))
    assert extended.ids.tolist() == [*ids.tolist(), *more]
    assert first.find([*ids.tolist(), *more]).tolist() == [0, 1, 2, 3, -1, -1, -1]
    assert extended.find([8 if ids.dtype != object else "8"]).tolist() == [-1]
    assert len(first) == 4
    with pytest.raises(SchemaError, match=r"11.* is unknown; allowed: the 7 ids of the catalogue"):
        extended.require([11])


def test_a_changed_index_answers_as_one_built_anew():
    index, users = ItemIndex.build(draw(23)), draw(5)
    index.similar(3, 4, D - 2)  # what it measured is carried along
    rows = np.array([2, 23, 24])
    vectors = put_rows(index.vectors, rows, 9 * draw(3))
    is_hidden = np.zeros(25, dtype=bool)
    is_hidden[[0, 7, 23]] = True
    changed, anew = index.changed(vectors, rows, is_hidden), ItemIndex.build(vectors)
    hidden = np.flatnonzero(is_hidden)
    masked = (np.tile(hidden, 5), np.arange(6) * len(hidden))
    for k in (1, 4, 25):
        for got, expected in zip(changed.search(users, k), anew.search(users, k, masked), strict=True):
            np.testing.assert_array_equal(got, expected)
    scores, found = anew.similar(3, 24, D - 2)
    is_shown = ~is_hidden[found]
    for k in (1, 5, 24):
        got_scores, got = changed.similar(3, k, D - 2)
        np.testing.assert_array_equal(got, found[is_shown][:k])
        np.testing.assert_array_equal(got_scores, scores[is_shown][:k])
    assert index.is_hidden is None
    longest = put_rows(vectors, rows, np.full((3, D), 1e30, np.float32))
    with pytest.raises(ValueError, match="user vector 0 is too long"):
        index.changed(longest, rows, is_hidden).search(np.full((1, D), 1e9, np.float32), 1)
    with pytest.raises(ValueError, match="not finite"):
        index.changed(put_rows(vectors, rows, np.full((3, D), np.nan, np.float32)), rows, is_hidden)
