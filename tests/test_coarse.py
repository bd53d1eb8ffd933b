from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve import coarse
from serve.coarse import CoarseVectors, is_sound, make_coarse
from serve.errors import BundleError
from serve.index import ItemIndex


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def sort_all(vectors, user, k, left_out):
    exact = (vectors.astype(np.float64) @ user.astype(np.float64)).astype(np.float32)
    exact[left_out] = -np.inf
    best = np.argsort(-exact, kind="stable")[:k]
    return np.where(np.isinf(exact[best]), -1, best).tolist()


@pytest.fixture
def always(monkeypatch):
    """Round the vectors of every index, however few and however fast that is."""
    monkeypatch.setattr(coarse, "FEWEST_ITEMS", 1)
    monkeypatch.setattr(coarse, "is_faster", lambda rounded, vectors: True)


@given(st.integers(0, 2**32), st.integers(1, 80), st.sampled_from([0.0, 1.0, 6.0]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_score_is_further_from_the_exact_one_than_is_said(seed, width, spread, is_extreme):
    rng = np.random.default_rng(seed)
    vectors, users = rng.standard_normal((2, 150, width), dtype=np.float32)
    vectors *= 10 ** rng.uniform(-spread, spread, (150, 1)).astype(np.float32)
    if is_extreme:  # the largest sums that integers have to hold
        vectors, users = np.sign(vectors), np.abs(np.sign(users))
    vectors[rng.integers(150, size=3)] = 0
    users = users[:7]
    users[2] = 0
    scores, errors = CoarseVectors(vectors).score(users)
    exact = users.astype(np.float64) @ vectors.T.astype(np.float64)
    lengths = [np.linalg.norm(some.astype(np.float64), axis=1) for some in (users, vectors)]
    sums = 1e-5 * lengths[0][:, None] * lengths[1].max()
    assert (np.abs(scores - exact) <= errors[:, None] + sums).all()
    assert (errors <= 0.05 * lengths[0] * lengths[1].max()).all()  # a bound that says something


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 45))
@settings(max_examples=60, deadline=None)
def test_a_search_with_rounded_vectors_equals_a_sort_of_all_items(seed, n_users, k):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, size=(200, 3)).astype(np.float32)  # many scores are equal
    users = rng.standard_normal((n_users, 3), dtype=np.float32)
    left_out = [rng.integers(200, size=rng.integers(0, 190)) for _ in users]
    with patch.multiple(coarse, FEWEST_ITEMS=1, is_faster=lambda rounded, vectors: True):
        searched = ItemIndex.build(vectors)
    excluded = np.concatenate(left_out), np.cumsum([0, *map(len, left_out)])
    _, rows = searched.search(users, k, excluded)
    assert rows.tolist() == [sort_all(vectors, user, k, out) for user, out in zip(users, left_out, strict=True)]


def test_a_catalogue_that_changes_is_searched_as_it_is(always):
    vectors, users = draw(1, 400, 33), draw(2, 3, 33)
    before = ItemIndex.build(vectors)
    grown = np.concatenate([vectors, 3 * draw(3, 5, 33)])
    grown[[7, 250]] = 5 * draw(4, 2, 33)
    is_hidden = np.zeros(405, dtype=bool)
    is_hidden[[8, 401]] = True
    after = before.changed(grown, np.array([7, 250, 400, 401, 402, 403, 404]), is_hidden)
    again = after.changed(grown, np.array([7]), is_hidden)
    for one, items, hidden in ((before, vectors, []), (after, grown, [8, 401]), (again, grown, [8, 401])):
        with patch.object(np, "matmul", side_effect=AssertionError):  # the product of whole vectors
            _, rows = one.search(users, 30)
        assert rows.tolist() == [sort_all(items, user, 30, hidden) for user in users]


def test_rounded_vectors_are_given_up_where_too_much_has_changed(always):
    vectors = draw(1, 400, 33)
    changed = ItemIndex.build(vectors).changed(vectors[::-1].copy(), np.arange(400), np.zeros(400, dtype=bool))
    with patch.object(CoarseVectors, "score", side_effect=AssertionError):
        _, rows = changed.search(draw(2, 1, 33), 9)
    assert rows[0].tolist() == sort_all(vectors[::-1], draw(2, 1, 33)[0], 9, [])


def test_where_rounding_tells_nothing_apart_the_whole_vectors_do(always):
    vectors = draw(1, 5000, 16)
    vectors[17] *= 1e6  # one item so long that the bound of all says nothing of the others
    user = draw(2, 1, 16)
    _, rows = ItemIndex.build(vectors).search(user, 20)
    assert rows[0].tolist() == sort_all(vectors, user[0], 20, [])


def test_rounded_vectors_are_not_used_for_few_items_or_where_they_are_slow(monkeypatch):
    vectors = draw(1, 300, 16)
    assert make_coarse(vectors) is None
    monkeypatch.setattr(coarse, "FEWEST_ITEMS", 300)
    monkeypatch.setattr(coarse, "is_faster", lambda rounded, vectors: False)
    assert make_coarse(vectors) is None
    monkeypatch.setattr(coarse, "is_faster", lambda rounded, vectors: True)
    assert make_coarse(vectors) is not None


def test_a_wrong_product_is_found_out(always, monkeypatch):
    vectors, score = draw(1, 300, 16), CoarseVectors.score
    assert is_sound(CoarseVectors(vectors), vectors)

    def score_wrongly(self, users):
        scores, errors = score(self, users)
        return scores * 1.2, errors

    monkeypatch.setattr(CoarseVectors, "score", score_wrongly)
    assert make_coarse(vectors) is None


def test_a_runtime_without_such_a_product_searches_whole_vectors(always, monkeypatch):
    def refuse(name, content, n_threads):
        raise BundleError(f"{name} is no ONNX graph that runs here")

    monkeypatch.setattr(coarse, "start_session", refuse)
    user = draw(2, 1, 16)
    _, rows = ItemIndex.build(draw(1, 300, 16)).search(user, 20)
    assert rows[0].tolist() == sort_all(draw(1, 300, 16), user[0], 20, [])
