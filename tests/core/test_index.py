"""The search against a sort of all scores, and what cannot be searched."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve import index as index_module
from serve.bundle import write_index
from serve.catalogue import ItemIds
from serve.index import ItemIndex, Neighbours, Query, add_terms

N, W = 37, 5


def naive_scores(users, vectors, added, left_out, only, barred):
    """Return (B, N) float64 scores, -inf where an item may not be listed."""
    scores = users.astype(np.float64) @ vectors.astype(np.float64).T
    for request, row, value in zip(*(added or ([], [], [])), strict=True):
        scores[request, row] += float(value)
    for request in range(len(users)):
        if only is not None:
            others = set(range(len(vectors))) - {
                r for q, r in zip(*only, strict=True) if q == request
            }
            scores[request, sorted(others)] = -np.inf
        scores[
            request,
            [r for q, r in zip(*(left_out or ([], [])), strict=True) if q == request],
        ] = -np.inf
    if barred is not None:
        scores[:, barred] = -np.inf
    return scores


def draw_pairs(rng, n_requests, n_pairs):
    return rng.integers(n_requests, size=n_pairs), rng.integers(N, size=n_pairs)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 9),
    st.integers(1, N + 3),
    st.sampled_from([7, 64, 2**19]),
)
@settings(max_examples=120, deadline=None)
def test_lists_are_those_of_a_sort_of_all_scores(seed, n_requests, k, block_scores):
    rng = np.random.default_rng(seed)
    vectors, users = (
        rng.standard_normal((N, W), np.float32),
        rng.standard_normal((n_requests, W), np.float32),
    )
    n_pairs = int(rng.integers(0, 60))
    values = rng.standard_normal(n_pairs).astype(np.float32)
    added = (*draw_pairs(rng, n_requests, n_pairs), values) if seed % 2 else None
    left_out = draw_pairs(rng, n_requests, n_pairs) if seed % 3 else None
    only = draw_pairs(rng, n_requests, 40) if seed % 5 == 0 else None
    barred = rng.random(N) < 0.3 if seed % 7 else None
    is_hidden = rng.random(N) < 0.1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "_BLOCK_SCORES", block_scores)
        found, rows = ItemIndex(vectors, is_hidden).search(
            Query(users, left_out, added, only), k, barred
        )
    never = is_hidden if barred is None else is_hidden | barred
    expected = naive_scores(users, vectors, added, left_out, only, never)
    assert found.shape == rows.shape == (n_requests, min(k, N))
    for request, line in enumerate(expected):
        best = -np.sort(-line)[: min(k, N)]
        np.testing.assert_allclose(found[request], best, rtol=1e-5, atol=1e-5)
        listed = rows[request][rows[request] >= 0]
        assert len(set(listed.tolist())) == len(listed) == np.isfinite(best).sum()
        np.testing.assert_allclose(
            line[listed], found[request][: len(listed)], rtol=1e-5, atol=1e-5
        )


def test_equal_scores_are_ordered_by_row():
    vectors = np.ones((9, 2), np.float32)
    _, rows = ItemIndex(vectors).search(Query(np.ones((1, 2), np.float32)), 9)
    assert rows.tolist() == [list(range(9))]


def test_similar_items_are_nearest_by_cosine_over_the_first_columns():
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((N, W), np.float32)
    vectors[4, :3] = 0
    is_hidden = np.arange(N) == 7
    directions = ItemIndex(vectors, is_hidden).directions(3)
    itself = np.array([0]), np.array([2])
    found, listed = directions.search(Query(directions.vectors[2:3], left_out=itself), N)
    scores, rows = found[listed >= 0], listed[listed >= 0]
    part = vectors[:, :3].astype(np.float64)
    lengths = np.maximum(np.linalg.norm(part, axis=1), 1e-30)
    cosines = part @ part[2] / lengths / lengths[2]
    assert sorted(rows.tolist()) == sorted(set(range(N)) - {2, 7})
    np.testing.assert_allclose(scores, cosines[rows], atol=1e-6)
    assert (np.diff(scores) <= 0).all()
    assert scores[rows == 4] == 0


def test_an_item_vector_is_finite():
    with pytest.raises(ValueError, match="not finite"):
        ItemIndex(np.array([[1.0, np.nan]], np.float32))


@pytest.mark.parametrize(("width", "k"), [(W + 1, 3), (W, 0)])
def test_other_queries_are_refused(width, k):
    index = ItemIndex(np.ones((N, W), np.float32))
    with pytest.raises(ValueError, match=r"mismatch|allowed"):
        index.search(Query(np.ones((1, width), np.float32)), k)


def test_the_file_is_an_index_of_faiss_and_comes_back_aligned_and_read_only(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((N, W), np.float32)
    write_index(tmp_path / "items.faiss", vectors)
    stored = faiss.read_index(str(tmp_path / "items.faiss"))
    assert (stored.ntotal, stored.d, stored.metric_type) == (
        N,
        W,
        faiss.METRIC_INNER_PRODUCT,
    )
    read = ItemIndex.from_bytes(np.fromfile(tmp_path / "items.faiss", np.uint8)).vectors
    np.testing.assert_array_equal(read, vectors)
    assert read.flags.aligned
    assert not read.flags.writeable


@pytest.mark.parametrize("make", [lambda: faiss.IndexFlatL2(W), lambda: faiss.IndexFlatIP(W)])
def test_another_index_or_an_empty_one_is_refused(make):
    index = make()
    if isinstance(index, faiss.IndexFlatL2):
        index.add(np.ones((3, W), np.float32))
    for content in (faiss.serialize_index(index), np.arange(100, dtype=np.uint8)):
        with pytest.raises(ValueError, match=r"expected some in an IndexFlatIP|no FAISS index"):
            ItemIndex.from_bytes(content)


def draw_neighbours(rng, decay=0.4, gain=0.0):
    counts = rng.integers(0, 5, size=N)
    rows = np.concatenate([rng.choice(N, n, replace=False) for n in counts]).astype(np.int32)
    return Neighbours(
        np.cumsum([0, *counts]),
        rows,
        rng.standard_normal(len(rows)).astype(np.float32),
        decay,
        gain,
    )


@pytest.mark.parametrize("gain", [0.0, 3.0])
def test_histories_add_by_the_formula(gain):
    rng = np.random.default_rng(5)
    neighbours, lengths = draw_neighbours(rng, gain=gain), np.array([4, 0, 1, 3])
    matches = rng.integers(0, 2, (4, 4)).astype(
        np.float32
    )  # whether an event has the context of the request
    history = rng.integers(N, size=(4, 4))
    history[3, 1] = N + 2  # an item that came after the bundle
    scores = np.zeros((4, N + 3), np.float32)
    add_terms(scores, neighbours.of_histories(history, lengths, matches=matches))
    expected = np.zeros_like(scores, dtype=np.float64)
    for request, length in enumerate(lengths):
        weights = [
            np.exp(-0.4 * (length - 1 - place)) * (1 + gain * matches[request, place])
            for place in range(length)
        ]
        for weight, item in zip(weights, history[request], strict=False):
            for entry in range(*neighbours.offsets[item : item + 2]) if item < N else ():
                expected[request, neighbours.rows[entry]] += (
                    weight * neighbours.weights[entry] / sum(weights) ** 0.5
                )
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_entries_after_the_last_item_are_added_for_everybody_and_to_no_history():
    drawn = draw_neighbours(np.random.default_rng(6))
    rows, weights = (
        np.append(drawn.rows, [2, 0]),
        np.append(drawn.weights, [0.5, 0.25]).astype(np.float32),
    )
    both = Neighbours(drawn.offsets, rows, weights, drawn.decay)
    scores, history = np.zeros((3, N), np.float32), np.arange(6).reshape(3, 2) % N
    add_terms(scores, both.of_all(3))
    np.testing.assert_array_equal(scores, np.tile([0.25, 0, 0.5] + [0] * (N - 3), (3, 1)))
    for one, other in zip(
        *(each.of_histories(history, np.full(3, 2)) for each in (both, drawn)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    contents = (np.frombuffer(content, np.uint8) for content in both.to_bytes())
    np.testing.assert_array_equal(
        Neighbours.from_bytes(*contents, N, 0.4).of_all(1)[2], [0.5, 0.25]
    )


def test_neighbours_come_back_from_their_files():
    neighbours = draw_neighbours(np.random.default_rng(7))
    offsets, entries = (np.frombuffer(content, np.uint8) for content in neighbours.to_bytes())
    read = Neighbours.from_bytes(offsets, entries, N, 0.4)
    for name in ("offsets", "rows", "weights"):
        np.testing.assert_array_equal(getattr(read, name), getattr(neighbours, name))
    with pytest.raises(ValueError, match="among"):
        Neighbours.from_bytes(offsets, entries, N + 1, 0.4)


@pytest.mark.parametrize(("row", "weight"), [(N, 1.0), (-1, 1.0), (0, np.nan)])
def test_neighbours_outside_the_catalogue_or_not_finite_are_refused(row, weight):
    offsets = np.array([0] + [1] * N)
    wrong = Neighbours(offsets, np.array([row], np.int32), np.array([weight], np.float32))
    contents = (np.frombuffer(content, np.uint8) for content in wrong.to_bytes())
    with pytest.raises(ValueError, match="outside"):
        Neighbours.from_bytes(*contents, N, 0.0)


@pytest.mark.parametrize("ids", [np.array([30, 10, 20]), np.array(["c", "a", "b"], object)])
def test_ids_and_rows(ids):
    known = ItemIds(ids)
    more = known.extended([99] if known.id_type == "integer" else ["z"])
    assert known.find(ids[::-1]).tolist() == [2, 1, 0]
    assert more.find([*ids.tolist(), *more.ids[3:].tolist()]).tolist() == [0, 1, 2, 3]
    assert known.find(more.ids[3:]).tolist() == [-1]
    assert more.ids[3] not in known
    other = known.extended([77, 99] if known.id_type == "integer" else ["y", "z"])
    assert other.find(other.ids).tolist() == [0, 1, 2, 3, 4]
    assert more.find(other.ids[3:]).tolist() == [-1, 3]
    with pytest.raises(ValueError, match="unknown; allowed: the 3 ids"):
        known.require(more.ids[3:])
