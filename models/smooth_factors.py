"""The tastes that many users share in part: leading singular vectors of who has what.

With X (U, N) who has what, and n the users of each item (N,) and the items of each user (U,), X is scaled to
X~ = diag(n_u^-1/2) X diag(n_i^-1/2). V (N, K) are its leading right singular vectors. What a filter makes of them (Shen
et al., "How Powerful is Graph Convolution for Recommendation?", CIKM 2021) joins vectors (`models.low_pass`) or the
numbers of single pairs (`models.pair_filter`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from models.eigenvectors import KRYLOV_BLOCK, leading_eigenvectors
from models.item_correlations import who_has_what

LEAST_EIGENVALUE = 1e-5
"""Of X~'X~, whose largest is 1: less is rounding."""


@dataclass(frozen=True)
class SmoothFactors:
    """X~ and V."""

    scaled: sp.csr_array
    """(U, N) float32, X~."""
    n_users: np.ndarray
    """(N,) float32, n of the items; 1 where nobody has one."""
    vectors: np.ndarray
    """(N, K) float32, V, the strongest first."""


class Gram:
    """X~'X~ of a sparse X~ (U, N), by its products."""

    def __init__(self, matrix: sp.csr_array) -> None:
        self.matrix, self.turned = matrix, matrix.T.tocsr()

    def __matmul__(self, columns: np.ndarray, /) -> np.ndarray:
        product = np.empty_like(columns)  # (N, K)
        for start in range(0, columns.shape[1], KRYLOV_BLOCK):  # users are many: all at once they take (U, K)
            block = slice(start, start + KRYLOV_BLOCK)
            product[:, block] = self.turned @ (self.matrix @ columns[:, block])  # (N, block)
        return product

    def __array__(self, dtype: None = None, /, *, copy: bool | None = None) -> np.ndarray:
        whole: np.ndarray = (self.turned @ self.matrix).toarray()  # (N, N)
        return whole


def find_smooth_factors(
    user: np.ndarray, item_row: np.ndarray, shape: tuple[int, int], factors: int, seed: int
) -> SmoothFactors:
    """Scale who has what, and find its leading factors; beyond the rank of X there are none.

    Args:
        user: (E,) user of each event.
        item_row: (E,) item of each event.
        shape: (U, N).
        factors: K, unless there are fewer.
        seed: of the first block of the search for them.
    """
    matrix = who_has_what(user, item_row, shape)  # (U, N)
    n_items, n_users = (np.maximum(matrix.sum(axis=axis), 1.0).astype(np.float32) for axis in (1, 0))  # (U,), (N,)
    scaled = (sp.diags_array(n_items**-0.5) @ matrix @ sp.diags_array(n_users**-0.5)).tocsr()  # (U, N)
    rank = max(1, min(factors, shape[0], shape[1] - 1))
    values, vectors = leading_eigenvectors(Gram(scaled), shape[1], rank, seed)  # (rank,), (N, rank)
    vectors = vectors[:, : max(1, np.count_nonzero(values > LEAST_EIGENVALUE))]  # (N, K)
    vectors[np.diff(matrix.tocsc().indptr) == 0] = 0  # but for rounding they are: nobody has these
    return SmoothFactors(scaled, n_users, vectors)
