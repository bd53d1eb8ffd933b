from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve import coarse
from serve.coarse import MOST_REQUESTS, CoarseVectors, is_faster, is_sound, make_coarse, round_vectors, tells_apart
from serve.errors import BundleError
from serve.faiss_file import write_index
from serve.index import ItemIndex
from serve.item_vectors import bound_rounding, bound_scores

LONG = 1e18
"""Of an entry: `search` takes it, but no product of rounded vectors."""


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def make(vectors: np.ndarray) -> CoarseVectors:
    return CoarseVectors(round_vectors(vectors), float(np.linalg.norm(vectors.astype(np.float64), axis=1).max()))


def sort_all(vectors, user, k, left_out=()):
    exact = (vectors.astype(np.float64) @ user.astype(np.float64)).astype(np.float32)
    exact[list(left_out)] = -np.inf
    best = np.argsort(-exact, kind="stable")[:k]
    return np.where(np.isinf(exact[best]), -1, best).tolist()


@contextmanager
def whole_vectors_are_multiplied(times: int):
    with patch.object(np, "matmul", wraps=np.matmul) as product:
        yield
    assert product.call_count == times


@pytest.fixture
def anywhere(monkeypatch):
    """Let few items be rounded, however fast that is here."""
    monkeypatch.setattr(coarse, "FEWEST_ITEMS", 1)
    monkeypatch.setattr(coarse, "is_faster", lambda rounded, vectors: True)


@given(
    st.integers(0, 2**32),
    st.integers(1, 80),
    st.integers(1, MOST_REQUESTS),
    st.sampled_from([0.0, 1.0, 6.0]),
    st.sampled_from([1.0, 1e-37, 1e-20, 1e12]),
    st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_no_score_is_further_from_the_exact_one_than_is_said(seed, width, n_users, spread, scale, is_extreme):
    rng = np.random.default_rng(seed)
    vectors, users = rng.standard_normal((2, 150, width), dtype=np.float32)
    vectors *= 10 ** rng.uniform(-spread, spread, (150, 1)).astype(np.float32)
    if is_extreme:  # the largest sums that integers have to hold
        vectors, users = np.sign(vectors), np.abs(np.sign(users))
    vectors[rng.integers(150, size=3)] = 0
    users = users[:n_users] * np.float32(scale)
    users[n_users - 1] *= rng.integers(2)  # some ask for nothing
    rounded = make(vectors)
    scores, errors = rounded.score(users)
    exact = users.astype(np.float64) @ vectors.T.astype(np.float64)
    sums = bound_rounding(bound_scores(users, rounded.longest), width)
    assert (np.abs(scores - exact) <= (errors + sums)[:, None]).all()
    if scale == 1.0:
        lengths = np.linalg.norm(users.astype(np.float64), axis=1)
        assert (errors <= 0.05 * lengths * rounded.longest).all()  # a bound that says something


@pytest.mark.parametrize("longest", [0, 17_000, 39_999])
def test_the_error_of_every_item_counts_however_many_there_are(longest):
    vectors, users = draw(1, 40_000, 7), draw(2, 3, 7)
    vectors[longest] *= 1000
    rounded = make(vectors)
    scores, errors = rounded.score(users)
    exact = users.astype(np.float64) @ vectors.T.astype(np.float64)
    sums = bound_rounding(bound_scores(users, rounded.longest), 7)
    assert (np.abs(scores - exact) <= (errors + sums)[:, None]).all()
    assert round_vectors(vectors).farthest > 1
    assert round_vectors(draw(1, 40_000, 7)).farthest < 0.1


@given(st.integers(0, 2**32), st.integers(1, MOST_REQUESTS), st.integers(1, 45), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_search_with_rounded_vectors_equals_a_sort_of_all_items(seed, n_users, k, is_barred):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, size=(200, 3)).astype(np.float32)  # many scores are equal
    users = rng.standard_normal((n_users, 3), dtype=np.float32)
    left_out = [rng.integers(200, size=rng.integers(0, 190)) for _ in users]
    barred = rng.random(200) < 0.2 if is_barred else np.zeros(200, dtype=bool)
    excluded = np.concatenate(left_out), np.cumsum([0, *map(len, left_out)])
    with whole_vectors_are_multiplied(0):
        _, rows = ItemIndex(vectors, make(vectors)).search(users, k, excluded, barred if is_barred else None)
    expected = [
        sort_all(vectors, user, k, {*out, *np.flatnonzero(barred)}) for user, out in zip(users, left_out, strict=True)
    ]
    assert rows.tolist() == expected


def test_a_catalogue_that_changes_is_searched_as_it_is():
    vectors, users = draw(1, 400, 33), draw(2, 3, 33)
    before = ItemIndex(vectors, make(vectors))
    grown = np.concatenate([vectors, 3 * draw(3, 4, 33)])
    grown[[7, 250]] = 5 * draw(4, 2, 33)
    is_hidden = np.zeros(404, dtype=bool)
    is_hidden[[8, 401]] = True
    after = before.changed(grown, np.array([7, 250, 400, 401, 402, 403]), is_hidden)
    more = np.concatenate([grown, 4 * draw(5, 1, 33)])
    more[250] = -more[250]
    again = after.changed(more, np.array([250, 404]), np.append(is_hidden, False))
    for one, items, hidden in ((before, vectors, []), (after, grown, [8, 401]), (again, more, [8, 401])):
        with whole_vectors_are_multiplied(0):
            _, rows = one.search(users, 30)
        assert rows.tolist() == [sort_all(items, user, 30, hidden) for user in users]


def test_rounded_vectors_are_given_up_where_too_much_has_changed():
    vectors, users = draw(1, 400, 33), draw(2, 1, 33)
    index = ItemIndex(vectors, make(vectors))
    for n_changed, times in ((8, 0), (9, 1)):
        other = vectors.copy()
        other[:n_changed] *= -1
        changed = index.changed(other, np.arange(n_changed), np.zeros(400, dtype=bool))
        with whole_vectors_are_multiplied(times):
            _, rows = changed.search(users, 9)
        assert rows[0].tolist() == sort_all(other, users[0], 9)


def test_more_requests_than_rounding_is_good_for_are_searched_with_whole_vectors():
    vectors, users = draw(1, 400, 33), draw(2, MOST_REQUESTS + 1, 33)
    with whole_vectors_are_multiplied(1):
        _, rows = ItemIndex(vectors, make(vectors)).search(users, 9)
    assert rows.tolist() == [sort_all(vectors, user, 9) for user in users]


@pytest.mark.parametrize(
    ("users", "lengthen"),
    [
        (draw(2, 1, 16), 1e6),  # one item so long that the error of all says nothing of the others
        (LONG * draw(2, 2, 16), 1),
        (2e37 * np.ones((1, 16), dtype=np.float32), 1),
        (2e-37 * draw(2, 3, 16), 1),
        (np.zeros((1, 16), dtype=np.float32), 1),
    ],
    ids=["unlike lengths", "long user", "longest user", "tiny users", "a user of nothing"],
)
def test_where_rounding_tells_nothing_apart_the_whole_vectors_do(users, lengthen):
    vectors = draw(1, 5000, 16) * np.float32(0.01)
    vectors[17] *= lengthen
    with whole_vectors_are_multiplied(1):
        _, rows = ItemIndex(vectors, make(vectors)).search(users, 20)
    assert rows.tolist() == [sort_all(vectors, user, 20) for user in users]


def test_rounded_vectors_are_not_used_where_they_are_of_no_use(monkeypatch):
    vectors = draw(1, 5000, 16)
    assert make_coarse(vectors) is None  # too few
    monkeypatch.setattr(coarse, "FEWEST_ITEMS", 5000)
    monkeypatch.setattr(coarse, "is_faster", lambda rounded, vectors: False)
    assert make_coarse(vectors) is None
    monkeypatch.setattr(coarse, "is_faster", lambda rounded, vectors: True)
    assert make_coarse(vectors) is not None
    assert make_coarse(vectors * np.float32(1e20)) is None
    monkeypatch.setattr(coarse, "_MOST_BYTES", 5000 * 31)  # a block is 32
    assert make_coarse(vectors) is None


@pytest.mark.parametrize(("owner", "name", "is_used"), [(CoarseVectors, "multiply", False), (np, "matmul", True)])
def test_the_slower_product_is_not_used(monkeypatch, owner, name, is_used):
    vectors, compute = draw(1, 300, 16), getattr(owner, name)

    def compute_slowly(*args, **options):
        time.sleep(0.02)  # a thousand times what either takes
        return compute(*args, **options)

    monkeypatch.setattr(owner, name, compute_slowly)
    assert is_faster(make(vectors), vectors) == is_used


def test_lengths_so_unlike_that_the_error_says_nothing_are_seen_at_once(anywhere):
    vectors = draw(1, 5000, 16)
    assert tells_apart(make(vectors), vectors)
    vectors[17] *= 1e6
    assert not tells_apart(make(vectors), vectors)
    assert make_coarse(vectors) is None


@pytest.mark.parametrize("number", range(1, MOST_REQUESTS + 1))
@pytest.mark.parametrize(
    "spoil",
    [
        lambda scores: scores * np.float32(1.0001),
        lambda scores: scores[:, ::-1],
        lambda scores: np.where(np.arange(scores.shape[1]) == 5, np.nan, scores),
    ],
    ids=["a ten thousandth off", "reversed", "not a number"],
)
def test_a_product_that_is_wrong_for_some_number_of_users_is_found_out(anywhere, monkeypatch, caplog, spoil, number):
    vectors, multiply = draw(1, 300, 40), CoarseVectors.multiply
    assert is_sound(make(vectors), round_vectors(vectors), vectors)

    def multiply_wrongly(self, users):
        scores = multiply(self, users)
        return spoil(scores) if len(users) == number else scores

    monkeypatch.setattr(CoarseVectors, "multiply", multiply_wrongly)
    with caplog.at_level(logging.WARNING):
        assert make_coarse(vectors) is None
    assert "is wrong on this processor" in caplog.text


@pytest.mark.parametrize("where", ["start_session", "multiply"])
def test_a_runtime_without_such_a_product_searches_whole_vectors(anywhere, monkeypatch, tmp_path, where):
    def refuse(*args):
        raise BundleError("does not run here")

    vectors, user = draw(1, 300, 16), draw(2, 1, 16)
    write_index(tmp_path / "items.faiss", vectors)
    with whole_vectors_are_multiplied(0):
        ItemIndex.load(tmp_path / "items.faiss", vectors).search(user, 20)
    owner = coarse if where == "start_session" else CoarseVectors
    monkeypatch.setattr(owner, where, refuse)
    with whole_vectors_are_multiplied(1):
        _, rows = ItemIndex.load(tmp_path / "items.faiss", vectors).search(user, 20)
    assert rows[0].tolist() == sort_all(vectors, user[0], 20)
