"""ItemKNN: cosine similarity of items, summed over what the user has (Sarwar et al., 2001)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from evaluation.events import Events, Strength, as_counts
from evaluation.ranking import Scores, tiles, top_k
from evaluation.targets import Ints

SHRINK = 10.0
"""Added to the product of norms: a cosine over few users counts less."""
NEAR_NOTHING = -1.0
"""Added to the popularity of what is near to nothing the user has: below every sum of cosines."""


@dataclass(frozen=True)
class ItemKNN:
    """Similarities of every item to its nearest neighbours."""

    strengths: sparse.csr_array
    """(U, N) of users' items."""
    similarity: sparse.csr_array
    """(N, N) row i holds i's neighbours, i among them: where repeats are allowed it can come again."""
    popularity: Scores
    """(N,) below 1; orders what is near to nothing the user has."""

    def score(self, user_row: Ints) -> Scores:
        """Return (b, N) scores: positive where near, below 0 elsewhere."""
        scores = (self.strengths[user_row] @ self.similarity).toarray()
        return np.where(scores > 0, scores, self.popularity + NEAR_NOTHING).astype(np.float32)


def fit_itemknn(events: Events, neighbours: Sequence[float], strength: Strength) -> Iterator[ItemKNN]:
    """Yield one model per number of neighbours; similarities are computed once, for the largest."""
    matrix = events.matrix(strength).astype(np.float32)
    item, cosine = _nearest(matrix, min(int(max(neighbours)), events.n_items))  # (N, K) each, nearest first
    popularity = events.popularity(as_counts)
    for k in map(int, neighbours):
        yield ItemKNN(matrix, _as_matrix(item[:, :k], cosine[:, :k]), popularity)


def estimate_itemknn_bytes(events: Events, neighbours: Sequence[float]) -> int:
    """Estimate the peak of the fit: neighbours as pairs and as a matrix."""
    return int(events.n_items * min(max(neighbours), events.n_items) * (8 + 4) * 3)


def _nearest(matrix: sparse.csr_array, k: int) -> tuple[Ints, Scores]:
    """Return every item's k nearest and their cosines, (N, k) each, in tiles of items."""
    n_items = matrix.shape[1]
    by_item = matrix.T.tocsr()  # (N, U), as full rows of it are faster to multiply than sparse ones
    norms = np.sqrt(np.asarray(matrix.power(2).sum(axis=0)).ravel())  # (N,)
    items = np.empty((n_items, k), np.int64)
    cosines = np.empty((n_items, k), np.float32)
    for rows in tiles(n_items, n_items):
        products = np.ascontiguousarray((by_item @ by_item[rows].toarray().T).T)  # (b, N)
        products /= norms[rows, None] * norms + SHRINK
        items[rows] = top_k(products, k)
        cosines[rows] = np.take_along_axis(products, items[rows], axis=1)
    return items, cosines


def _as_matrix(item: Ints, cosine: npt.NDArray[np.float32]) -> sparse.csr_array:
    """Lay neighbours (N, k) out as a sparse (N, N), pairs without a common user left out."""
    n_items, k = item.shape
    bounds = np.arange(n_items + 1) * k
    matrix = sparse.csr_array((cosine.ravel(), item.ravel(), bounds), shape=(n_items, n_items), copy=True)
    matrix.eliminate_zeros()
    return matrix
