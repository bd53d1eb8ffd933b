"""The search by a coarse index against a sort of all scores, and a coarse index that has become worse."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve import nearest
from serve.index import ItemIndex, Query, measure_drawn
from serve.nearest import CoarseIndex, Effort, share_found
from tests.core.test_index import naive_scores

N, W, LISTS = 230, 5, 16
RNG = np.random.default_rng(7)
VECTORS = RNG.integers(-3, 4, (N, W)).astype(np.float32)  # few different values: many scores tie
USERS = RNG.standard_normal((60, W), np.float32) * [3, 1, 1, 0.5, 0.1]
COARSE = CoarseIndex.build(VECTORS, USERS.astype(np.float32), LISTS)
# Users look along the direction in which items differ least.
SPREAD = np.append(0.3, np.full(15, 2.0))
MANY = (RNG.standard_normal((4000, 16)) * SPREAD).astype(np.float32)
SEEN_USERS, OTHER_USERS = (RNG.standard_normal((2, 100, 16)) / SPREAD**2).astype(np.float32)
OF_MANY = CoarseIndex.build(MANY, SEEN_USERS, 64)
EVERYTHING = Effort(LISTS, 1 + N)  # all lists, all candidates


def draw_query(rng, n_items, n_requests):
    """Draw users, terms of both signs, and items that are left out, and barred for all."""

    def pairs(n):
        return rng.integers(n_requests, size=n), rng.integers(n_items, size=n)

    users = rng.integers(-2, 3, (n_requests, W)).astype(np.float32)
    added = (
        (*pairs(90), rng.integers(-9, 10, 90).astype(np.float32)) if rng.random() < 0.8 else None
    )
    left_out = pairs(70) if rng.random() < 0.8 else None
    only = pairs(80) if rng.random() < 0.2 else None
    barred = rng.random(n_items) < rng.choice([0.05, 0.5, 0.99]) if rng.random() < 0.7 else None
    return Query(users, left_out, added, only), barred


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.integers(1, N + 40),
    st.sampled_from([0, 1, 25]),
    st.sampled_from([0, 8, 10**9]),  # never all passing items, as it is, always
)
@settings(max_examples=150, deadline=None)
def test_with_all_lists_the_answers_are_those_of_a_sort(seed, n_requests, k, n_live, row_work):
    rng = np.random.default_rng(seed)
    live = rng.integers(-3, 4, (n_live, W)).astype(np.float32)  # items behind those of the index
    vectors = np.concatenate([VECTORS, live])
    n_items = len(vectors)
    is_hidden = rng.random(n_items) < 0.1
    query, barred = draw_query(rng, n_items, n_requests)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "_ROW_WORK", row_work)
        index = ItemIndex(vectors, is_hidden, COARSE.with_effort(EVERYTHING))
        found, rows = index.search(query, k, barred)
    never = is_hidden if barred is None else is_hidden | barred
    scores = naive_scores(query.users, vectors, query.added, query.left_out, query.only, never)
    assert found.shape == rows.shape == (n_requests, min(k, n_items))
    for request, line in enumerate(scores):
        order = np.lexsort((np.arange(n_items), -line))
        expected = order[np.isfinite(line[order])][:k]
        n_listed = len(expected)
        assert rows[request][:n_listed].tolist() == expected.tolist()
        np.testing.assert_allclose(found[request][:n_listed], line[expected], atol=2e-5)
        assert (rows[request][n_listed:] == -1).all()
        assert (found[request][n_listed:] == -np.inf).all()


@pytest.mark.parametrize("n_probes", [1, 3])
def test_a_list_is_full_however_few_lists_are_read(n_probes):
    index = ItemIndex(VECTORS, None, COARSE.with_effort(Effort(n_probes, 1.0)))
    left_out = np.zeros(60, np.int64), np.arange(60)
    for k in (1, 20, 150):
        _, rows = index.search(Query(USERS[:3].astype(np.float32), left_out), k)
        for row in rows:
            assert len(set(row.tolist()) - {-1}) == k
        assert rows[0].min() >= 60


def test_an_item_with_a_term_is_listed_though_no_list_is_read_for_it():
    index = ItemIndex(VECTORS, None, COARSE.with_effort(Effort(1, 1.0)))
    user = USERS[:1].astype(np.float32)
    worst = (VECTORS @ user[0]).argsort()[:4]
    added = np.zeros(4, np.int64), worst, np.array([90, 80, 70, 60], np.float32)
    scores, rows = index.search(Query(user, added=added), 6)
    assert rows[0, :4].tolist() == worst.tolist()
    np.testing.assert_allclose(scores[0, :4], VECTORS[worst] @ user[0] + added[2], atol=2e-5)


def test_the_recall_is_the_share_of_the_exact_rows():
    expected = [np.array([[3, 1], [2, -1]]), np.array([[0, 5]])]
    found = [np.array([[1, 9], [-1, 2]]), np.array([[7, 8]])]
    assert share_found(expected, found) == 2 / 5
    index = ItemIndex(MANY, None, OF_MANY.with_effort(Effort(6, 1.0)))
    query = Query(OTHER_USERS)
    _, rows = index.search(query, 100)
    exact = (-(OTHER_USERS.astype(np.float64) @ MANY.T)).argsort(axis=1)[:, :100]
    n_found = sum(
        len({*best} & {*row}) for best, row in zip(exact.tolist(), rows.tolist(), strict=True)
    )
    assert index.measure_recall([query]) == pytest.approx(n_found / exact.size, abs=1e-3)
    assert 0.5 < n_found / exact.size < 0.99


def test_a_matrix_that_follows_users_finds_more_than_none():
    recall = []
    for seen in (SEEN_USERS, np.eye(16, dtype=np.float32)):
        coarse = CoarseIndex.build(MANY, seen, 64).with_effort(Effort(6, 2.0))
        recall.append(ItemIndex(MANY, None, coarse).measure_recall([Query(OTHER_USERS)]))
    assert recall[0] > recall[1] + 0.05


def test_drawn_vectors_vary_as_those_of_users():
    drawn = COARSE.draw_users(20_000).astype(np.float64)
    expected = USERS.T @ USERS / len(USERS)
    np.testing.assert_allclose(drawn.T @ drawn / len(drawn), expected, atol=0.3)
    assert (drawn == COARSE.draw_users(20_000)).all()


def test_the_same_vectors_give_the_same_bytes_and_come_back():
    again = CoarseIndex.build(VECTORS, USERS.astype(np.float32), LISTS)
    assert again.content.tobytes() == COARSE.content.tobytes()
    read = CoarseIndex.from_bytes(COARSE.content.copy(), Effort(2, 1.5), N, W)
    kept = COARSE.with_effort(Effort(2, 1.5))
    assert measure_drawn(VECTORS, read) == measure_drawn(VECTORS, kept)


def flat():
    return faiss.serialize_index(faiss.IndexFlatIP(W))


@pytest.mark.parametrize("content", [flat(), np.arange(90, dtype=np.uint8), COARSE.content[:-9]])
def test_another_file_is_refused(content):
    with pytest.raises(ValueError, match=r"expected|no FAISS index"):
        CoarseIndex.from_bytes(content.copy(), EVERYTHING, N, W)


@pytest.mark.parametrize(("n_items", "width"), [(N + 1, W), (N, W - 1)])
def test_an_index_of_other_vectors_is_refused(n_items, width):
    with pytest.raises(ValueError, match="expected"):
        CoarseIndex.from_bytes(COARSE.content, EVERYTHING, n_items, width)


def test_an_index_of_moved_items_or_of_fewer_lists_finds_less():
    effort = Effort(12, 1.5)
    recall = measure_drawn(MANY, OF_MANY.with_effort(effort))
    others = MANY[np.random.default_rng(1).permutation(len(MANY))]
    worse = CoarseIndex.build(others, SEEN_USERS, 64).with_effort(effort)
    assert measure_drawn(MANY, worse) < recall - 0.1
    assert measure_drawn(MANY, OF_MANY.with_effort(Effort(6, 1.5))) < recall - 0.01
