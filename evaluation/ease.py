"""EASE, an item-item model in closed form (Steck, WWW 2019), for the baseline and for `models`.

EASE predicts the row x_u of a user in the matrix X of users and items by x_u B. B minimises
|X - X B|^2 + lambda |B|^2 under a zero diagonal: no item predicts itself. With
P = (X'X + lambda I)^-1 the solution is B_ij = -P_ij / P_jj.

Letters: U users, N items, b users of one call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from evaluation.holdout import Events, Strength
from evaluation.ranking import ScoreRows, tiles
from serve.arrays import Floats, Ints

Real = TypeVar("Real", np.float32, np.float64)

# Rows of a matrix below which one core inverts it: the threads of OpenBLAS spin while they wait.
SMALL = 4096


def fit_ease(
    events: Events, regularisations: Sequence[float], strength: Strength
) -> Iterator[ScoreRows]:
    """Fit EASE once per lambda, by the smaller of the two Gram matrices.

    Args:
        events: events of U users with N items.
        regularisations: values of lambda.
        strength: maps the counts of a user's events with an item to the entries of X.

    Yields:
        The scorer of each lambda, (b,) user rows -> (b, N) float32. Users without events get the
        popularity of items.

    Source: Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019, equation 8.
    """
    matrix = events.matrix(strength)  # (U, N)
    is_stranger = np.diff(matrix.indptr) == 0  # (U,)
    popularity = events.popularity(np.asarray)  # (N,)

    def score_all(score: ScoreRows, users: Ints) -> Floats:
        return np.where(is_stranger[users, None], popularity, score(users))  # (b, N)

    fit = _fit_dual if events.n_users < events.n_items else _fit_primal

    for score in fit(matrix, regularisations):
        yield partial(score_all, score)


def _fit_primal(
    matrix: sparse.csr_array, regularisations: Sequence[float]
) -> Iterator[ScoreRows]:
    strengths = matrix.astype(np.float32)  # (U, N)
    gram = (strengths.T @ strengths).toarray()  # (N, N)

    def score(weights: Floats, users: Ints) -> Floats:
        scores: Floats = strengths[users] @ weights  # (b, N)
        return scores

    for regularisation in regularisations:
        yield partial(score, ease_weights(gram, regularisation))


def _fit_dual(
    matrix: sparse.csr_array, regularisations: Sequence[float]
) -> Iterator[ScoreRows]:
    """Yield X B = X - (X P) / diag(P) from A = (XX' + lambda I)^-1, (U, U).

    By the Woodbury identity X P = A X and diag(P) = (1 - diag(X' A X)) / lambda.
    """
    n_users, n_items = matrix.shape
    by_item = matrix.T.tocsr()  # (N, U)
    gram = (matrix @ by_item).toarray()  # (U, U)
    strengths = matrix.astype(np.float32)  # (U, N)

    def score(scaled_items: sparse.csr_array, inverse: Floats, users: Ints) -> Floats:
        predicted = scaled_items @ inverse[:, users]  # (N, b)
        scores: Floats = strengths[users].toarray() - predicted.T  # (b, N)
        return scores

    for regularisation in regularisations:
        inverse = invert_regularised(gram, regularisation)  # (U, U)
        explained = np.zeros(n_items)  # diag(X' A X), (N,)
        for rows in tiles(n_users, n_items):
            products = matrix[rows].multiply((by_item @ inverse[:, rows]).T)  # (b, N)
            explained += products.sum(axis=0)

        diagonal = (1 - explained) / regularisation  # (N,)
        scaled_items = by_item.multiply(1 / diagonal[:, None]).tocsr()  # (N, U)
        yield partial(
            score, scaled_items.astype(np.float32), inverse.astype(np.float32)
        )


def ease_weights(gram: NDArray[Real], regularisation: float) -> NDArray[Real]:
    """Return the item-item weights B of EASE.

    Args:
        gram: (N, N) products X'X of the columns of X.
        regularisation: lambda.

    Returns:
        (N, N) B_ij = -P_ij / P_jj, by which item i of a history adds to the score of item j; the
        diagonal is 0.
    """
    # The inverse is symmetric: its transpose lies in memory by rows, as users read it.
    weights = invert_regularised(gram, regularisation).T  # (N, N)
    weights /= -weights.diagonal()
    np.fill_diagonal(weights, 0)
    return weights


def invert_regularised(gram: NDArray[Real], regularisation: float) -> NDArray[Real]:
    """Invert gram + lambda I by a Cholesky factorisation.

    Args:
        gram: (n, n) symmetric matrix without negative eigenvalues.
        regularisation: lambda > 0.

    Returns:
        (n, n) inverse, exactly symmetric, in the precision of `gram`.
    """
    regularised = gram.T.copy(order="F")  # a plain copy, since the matrix is symmetric
    np.fill_diagonal(regularised, gram.diagonal() + regularisation)
    is_double = regularised.dtype == np.float64
    invert_factor = linalg.lapack.dpotri if is_double else linalg.lapack.spotri

    with threadpool_limits(1, "blas") if len(gram) < SMALL else nullcontext():
        factor = linalg.cholesky(
            regularised, lower=True, overwrite_a=True, check_finite=False
        )
        inverse: NDArray[Real] = invert_factor(factor, lower=1, overwrite_c=1)[0]

    # LAPACK fills the lower triangle only.
    inverse += np.tril(inverse, -1).T
    return inverse
