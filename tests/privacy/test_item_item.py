"""No user changes a release by more than a length of 1, and noise alone makes no weights."""

import numpy as np
import pytest
import scipy.sparse as sp
from privacy.gaussian import Account
from privacy.item_item import (
    ITEM_POWER,
    RIDGE_SHARE,
    normalise_rows,
    release_statistics,
)

U, N = 300, 12


class Silent:
    """Noise of zero length, so that what is released can be compared."""

    def standard_normal(self, shape):
        return np.zeros(shape)


class Recorder(Account):
    """An account that keeps what it was given before the noise."""

    def release(self, name, values, share):
        self.__dict__.setdefault("given", {})[name] = values
        return super().release(name, values, share)


def draw_matrix(seed=0, n_users=U):
    rng = np.random.default_rng(seed)
    taste = rng.integers(2, size=n_users)
    shares = np.where(np.arange(N)[None] % 2 == taste[:, None], 0.7, 0.1)
    matrix = (rng.random((n_users, N)) < shares).astype(np.float64)
    matrix[:3] = [[1] * N, [0] * N, [1] + [0] * (N - 1)]  # everything, nothing, one item
    return sp.csr_array(matrix)


def make_silent(epsilon=8.0):
    return Recorder(epsilon, 1e-5, Silent())


def test_no_user_moves_popularity_by_more_than_1():
    matrix = draw_matrix()
    whole = normalise_rows(matrix).sum(axis=0)
    for user in range(20):
        others = np.delete(np.arange(U), user)
        without = normalise_rows(matrix[others]).sum(axis=0)
        assert np.linalg.norm(whole - without) <= 1 + 1e-9


def test_no_user_moves_the_gram_matrix_by_more_than_1():
    matrix = draw_matrix()
    rows = normalise_rows(sp.csr_array(matrix @ sp.diags_array(np.linspace(0.1, 2, N))))
    whole = (rows.T @ rows).toarray()
    lengths = []
    for user in range(20):
        others = rows[np.delete(np.arange(U), user)]
        lengths.append(np.linalg.norm(whole - (others.T @ others).toarray()))
    assert max(lengths) == pytest.approx(1)  # of somebody with any item
    assert min(lengths) == 0  # of somebody without


def test_what_is_noised_are_sums_over_rows_of_length_1():
    account = make_silent()
    statistics = release_statistics(draw_matrix(), account)
    rows = normalise_rows(draw_matrix())
    np.testing.assert_allclose(account.given["popularity"], rows.sum(axis=0))
    assert np.trace(account.given["Gram matrix"]) == pytest.approx(U - 1)  # one has nothing
    values = np.linalg.eigvalsh(account.given["Gram matrix"])[-len(statistics.values) :]
    np.testing.assert_allclose(statistics.values**2 + statistics.edge**2, values**2)


def test_noise_alone_stays_below_the_edge():
    account = Account(1.0, 1e-5, np.random.default_rng(0))
    statistics = release_statistics(sp.csr_array((40, 300)), account)
    assert len(statistics.items) == 200
    assert statistics.values.max(initial=0) < 0.4 * statistics.edge


def test_all_of_the_budget_is_spent():
    account = Account(3.0, 1e-6, np.random.default_rng(0))
    release_statistics(draw_matrix(), account)
    assert account.spent() == pytest.approx(3.0)
    assert [release.name for release in account.releases] == ["popularity", "Gram matrix"]


def test_weights_are_those_of_ease_where_there_is_no_noise():
    matrix = draw_matrix(n_users=20_000)
    account = Account(100.0, 1e-5, np.random.default_rng(0))
    statistics = release_statistics(matrix, account)
    assert len(statistics.items) == N
    sums = normalise_rows(matrix).sum(axis=0)
    scaled = matrix.toarray() * sums**ITEM_POWER
    rows = scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-9)
    inverse = np.linalg.inv(rows.T @ rows + RIDGE_SHARE * statistics.edge * np.eye(N))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    expected *= sums[:, None] ** ITEM_POWER
    np.testing.assert_allclose(statistics.weigh(N).toarray(), expected, atol=2e-3)


def test_weights_join_items_of_one_taste():
    statistics = release_statistics(
        draw_matrix(n_users=3_000), Account(4.0, 1e-5, np.random.default_rng(1))
    )
    weights = statistics.weigh(N).toarray()
    is_alike = np.arange(N)[:, None] % 2 == np.arange(N) % 2
    np.fill_diagonal(is_alike, False)
    assert weights[is_alike].mean() > 0.01
    assert weights[~is_alike].mean() < weights[is_alike].mean() / 2


def test_nobody_gives_no_weights():
    account = Account(1.0, 1e-5, np.random.default_rng(0))
    statistics = release_statistics(sp.csr_array((40, N)), account)
    assert abs(statistics.weigh(N)).max() < 0.1
    assert statistics.find_factors(4).shape == (N, 4)
