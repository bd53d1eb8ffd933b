"""EASE: a linear model of items on items in closed form (Steck, "Embarrassingly Shallow Autoencoders", 2019).

With X (U, N) the strengths of users' items, P = (X'X + lambda I)^-1 and B = I - P / diag(P), scores are X B.
X B = X - (X P) / diag(P) needs only X P and the diagonal of P, and P need not be made where users are fewer
than items. By the Woodbury identity, with A = (XX' + lambda I)^-1 of the users' Gram matrix, (U, U),

    X P     = A X
    diag(P) = (1 - diag(X' A X)) / lambda

A Cholesky factor per lambda is faster here than one eigendecomposition for all: reducing a matrix to
tridiagonal form waits for memory, and takes longer than seven inversions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from evaluation.events import Events, Strength, as_counts
from evaluation.lapack import invert_regularised
from evaluation.metrics import Floats
from evaluation.ranking import Scores, tiles
from evaluation.targets import Ints


@dataclass(frozen=True)
class PrimalEase:
    """EASE with its (N, N) weights."""

    strengths: sparse.csr_array
    """(U, N) X."""
    weights: Scores
    """(N, N) B: row = item owned, column = item scored; zero diagonal."""
    popularity: Scores
    """(N,) for users without any item."""

    def score(self, user_row: Ints) -> Scores:
        """Return (b, N) scores."""
        own = self.strengths[user_row]
        return _answer_strangers(own, own @ self.weights, self.popularity)


@dataclass(frozen=True)
class DualEase:
    """EASE without a matrix of items."""

    strengths: sparse.csr_array
    """(U, N) X."""
    scaled_items: sparse.csr_array
    """(N, U) X', each item divided by its place in diag(P)."""
    inverse: Scores
    """(U, U) A, symmetric."""
    popularity: Scores
    """(N,) for users without any item."""

    def score(self, user_row: Ints) -> Scores:
        """Return (b, N) scores."""
        own = self.strengths[user_row]
        projected = (self.scaled_items @ self.inverse[:, user_row]).T  # (b, N) = X P / diag(P)
        return _answer_strangers(own, own.toarray() - projected, self.popularity)


def fit_ease(
    events: Events, regularisations: Sequence[float], strength: Strength
) -> Iterator[PrimalEase] | Iterator[DualEase]:
    """Yield one model per lambda, in the form whose matrix is the smaller."""
    if events.n_users < events.n_items:
        return fit_dual_ease(events, regularisations, strength)
    return fit_primal_ease(events, regularisations, strength)


def estimate_ease_bytes(events: Events) -> int:
    """Estimate the peak of the fit: about five matrices, in float64 (dual) or float32 (primal)."""
    if events.n_users < events.n_items:
        return 5 * 8 * events.n_users**2
    return 5 * 4 * events.n_items**2


def fit_primal_ease(events: Events, regularisations: Sequence[float], strength: Strength) -> Iterator[PrimalEase]:
    """Yield one model per lambda from the items' Gram matrix."""
    matrix = events.matrix(strength).astype(np.float32)
    gram = (matrix.T @ matrix).toarray()  # (N, N)
    popularity = events.popularity(as_counts)
    for regularisation in regularisations:
        weights = invert_regularised(gram, regularisation).T  # symmetric; users read it by rows
        weights /= -weights.diagonal()
        np.fill_diagonal(weights, 0)
        yield PrimalEase(matrix, weights, popularity)


def fit_dual_ease(events: Events, regularisations: Sequence[float], strength: Strength) -> Iterator[DualEase]:
    """Yield one model per lambda from the users' Gram matrix."""
    matrix = events.matrix(strength)
    by_item = matrix.T.tocsr()  # (N, U)
    gram = (matrix @ by_item).toarray()  # (U, U)
    popularity = events.popularity(as_counts)
    strengths = matrix.astype(np.float32)
    for regularisation in regularisations:
        inverse = invert_regularised(gram, regularisation)
        diagonal = (1 - _explain_items(matrix, by_item, inverse)) / regularisation
        scaled_items = by_item.multiply(1 / diagonal[:, None]).tocsr().astype(np.float32)
        yield DualEase(strengths, scaled_items, inverse.astype(np.float32), popularity)


def _explain_items(matrix: sparse.csr_array, by_item: sparse.csr_array, inverse: Floats) -> Floats:
    """Return diag(X' A X), (N,), in tiles of users."""
    n_users, n_items = matrix.shape
    explained = np.zeros(n_items)
    for rows in tiles(n_users, n_items):
        projected = by_item @ inverse[:, rows]  # (N, b)
        explained += matrix[rows].multiply(projected.T).sum(axis=0)
    return explained


def _answer_strangers(own: sparse.csr_array, scores: Scores, popularity: Scores) -> Scores:
    """Give users without any item the popular ones."""
    is_stranger = np.diff(own.indptr) == 0
    return np.where(is_stranger[:, None], popularity, scores)
