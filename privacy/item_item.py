"""Item-item weights that no single user decides: EASE of a noised Gram matrix.

The row of a user in the interaction matrix is divided by its length, so that X'X changes by a
matrix of Frobenius norm 1 at most if a user comes or goes. Two statistics are released:

    popularity   the sum of all rows, (N,); it also says which items have enough users to compare
    Gram         X'X between these n items, of rows divided by their length among them, after
                 columns were scaled by released popularity

X'X is symmetric, so the mean of its noised entries (i, j) and (j, i) is taken: their noise then has
the deviation s / sqrt 2.

All that follows is computed from these two alone. The eigenvalues of symmetric noise lie within
s sqrt(2 n) (Wigner, 1955). Eigenvectors below this edge are left out, eigenvalues w above it shrink
to sqrt(w^2 - edge^2), and the edge is the ridge of EASE, too.

Letters: U users, N items, n of them that are compared, D entries of taste.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from evaluation.ease import ease_weights
from models.item_item import Interactions, keep_largest
from privacy.gaussian import Account
from serve.arrays import Doubles, Floats, Ints

POPULARITY_SHARE = 0.1  # of the budget; the Gram matrix has the rest
# Deviations of the Gram matrix's noise by which the popularity of a compared item is larger.
MIN_SIGNAL = 25.0
MIN_COMPARED = 200  # items that are compared even so
MAX_COMPARED = 4_000  # items whose Gram matrix is factorised
RIDGE_SHARE = 2.0  # of the edge
# power of its popularity by which the column of an item is scaled: rare ones say more
ITEM_POWER = -0.25


@dataclass(frozen=True, eq=False)
class Statistics:
    """What is released of the interaction matrix, with noise."""

    popularity: Doubles  # (N,) at least 0
    items: Ints  # (n,) rows of the compared items
    scales: Doubles  # (n,) of their columns
    vectors: Doubles  # (n, r) eigenvectors of their Gram matrix above its noise
    values: Doubles  # (r,) their eigenvalues, shrunk
    edge: float  # largest eigenvalue of noise alone

    def weigh(self, top_k: int) -> sp.csr_array:
        """Return the weights of EASE, (N, N): the `top_k` largest of each row."""
        n_items = len(self.popularity)
        if not len(self.values):
            return sp.csr_array((n_items, n_items))
        gram = (self.vectors * self.values) @ self.vectors.T  # (n, n)
        weights = ease_weights(gram, RIDGE_SHARE * self.edge)  # (n, n)
        weights *= self.scales[:, None]
        none = np.zeros(0, np.int64)
        nothing = Interactions(none, none, none, none > 0, 0, n_items)
        return keep_largest(weights, self.items, nothing, top_k)

    def find_factors(self, dim: int) -> Floats:
        """Return the leading eigenvectors as tastes of items, (N, dim), zeros where unknown."""
        factors = np.zeros((len(self.popularity), dim), np.float32)
        order = np.argsort(-self.values)[:dim]
        factors[self.items[:, None], np.arange(len(order))] = self.vectors[:, order]
        return factors * math.sqrt(len(factors) / dim)


def release_statistics(matrix: sp.csr_array, account: Account) -> Statistics:
    """Release popularity and Gram matrix.

    Args:
        matrix: (U, N) binary interactions.
        account: adds the noise; all of its budget is spent.
    """
    sums = np.asarray(normalise_rows(matrix).sum(axis=0), np.float64)  # (N,)
    released = account.release("popularity", sums, POPULARITY_SHARE)  # (N,)
    popularity = np.maximum(released, 0)  # (N,)

    gram_share = 1 - POPULARITY_SHARE
    deviation = account.find_share(gram_share)
    order = np.argsort(-popularity)[:MAX_COMPARED]
    n_clear = np.count_nonzero(popularity[order] >= MIN_SIGNAL * deviation)
    items = order[: max(n_clear, MIN_COMPARED)]  # (n,)

    scales = np.maximum(popularity[items], deviation) ** ITEM_POWER  # (n,)
    scaled = sp.csr_array(matrix[:, items] @ sp.diags_array(scales))  # (U, n)
    rows = normalise_rows(scaled)  # (U, n)
    noised = account.release("Gram matrix", (rows.T @ rows).toarray(), gram_share)
    gram = (noised + noised.T) / 2  # (n, n)
    edge = deviation * math.sqrt(2 * len(items))
    values, vectors = np.linalg.eigh(gram)
    is_signal = values > edge  # (n,)
    shrunk = np.sqrt(values[is_signal] ** 2 - edge**2)  # (r,)
    signal = vectors[:, is_signal]  # (n, r)
    return Statistics(popularity, items, scales, signal, shrunk, edge)


def normalise_rows(matrix: sp.csr_array) -> sp.csr_array:
    """Divide the rows (U, n) of a matrix by their lengths; those without entries stay."""
    squares = matrix.multiply(matrix).sum(axis=1)  # (U,)
    scales = 1 / np.sqrt(np.maximum(squares, 1e-12))  # (U,)
    return sp.csr_array(sp.diags_array(scales) @ matrix)
