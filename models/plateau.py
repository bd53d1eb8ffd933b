"""The plateau filter: item-item weights from the graph of users and items.

    B = D^-b (V diag(h(v)) V' + .3 V V' + rest) D^b

S is the binary interaction matrix, its rows and columns divided by the roots of their sums; V holds
its leading right singular vectors, v their squared singular values, D the sums of the columns. The
curve h rises to a plateau at a half, so that strong tastes do not drown the others.

Letters: U users, N items, E events, K singular vectors, c rows of a chunk.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from evaluation.ranking import multiply_items, tiles
from models.item_item import CHUNK, MAX_COMPARED, Interactions
from serve.arrays import Floats

# The plateau filter: weight of the ideal low-pass filter beside the curve; power of the sums of
# columns; value of phi times the weakest squared singular value, and the largest phi.
LOW_PASS = 0.3
SKEW = 0.3
BEND = 1 / 3
MAX_FLATNESS = 30.0

# Singular vectors that are iterated beside those that are kept, and iterations.
SPARE_VECTORS = 32
ITERATIONS = 6

# Of the squared singular values of S, whose largest is 1: smaller ones are rounding errors.
MIN_EIGENVALUE = 1e-5


def plateau_filter(
    interactions: Interactions,
    top_k: int,
    n_factors: int,
    seed: int,
    max_dense: int = MAX_COMPARED,
) -> sp.csr_array:
    """Return the weights of a filter of the graph of users and items whose curve has a plateau.

    A component of S'S with the squared singular value v is weighed by `bend(v)` where it is one of
    the K strongest, else by slope * v, the chord of the curve: no polynomial is needed.

    Args:
        interactions: E events of U users with N items.
        top_k: weights that are kept per row.
        n_factors: singular vectors that follow the curve.
        seed: of the start of the decomposition.
        max_dense: items of a catalogue above which only the linear filter S'S is left.

    Returns:
        (N, N) sparse weights: row j holds what an item j of a history adds to the other items.

    Source: Kim et al., "Graph Spectral Filtering with Chebyshev Interpolation for Recommendation",
    SIGIR 2025; the linear and the ideal filter are those of GF-CF (Shen et al., CIKM 2021).
    """
    n_items = interactions.n_items
    matrix = interactions.matrix  # (U, N)
    per_user = np.maximum(matrix.sum(axis=1), 1.0).astype(np.float32)  # (U,)
    per_item = np.maximum(matrix.sum(axis=0), 1.0).astype(np.float32)  # (N,)

    by_user = sp.diags_array(per_user**-0.5) @ matrix  # (U, N)
    scaled = (by_user @ sp.diags_array(per_item**-0.5)).tocsr()  # (U, N)
    if n_items > max_dense:
        return multiply_items(
            scaled,
            top_k,
            lambda weights, row, column: weights * (row != column),
            lambda tile, rows: interactions.cut(tile, rows, top_k),
        )

    squares, vectors = leading_vectors(scaled, n_factors, seed)  # (K,), (N, K)
    curve = bend(squares)  # (K,)
    slope = curve[0] / squares[0]
    gains = curve + LOW_PASS - slope * squares  # (K,)

    skew = per_item**SKEW  # (N,)
    targets = scaled @ sp.diags_array(skew)  # (U, N)
    sources = (sp.diags_array(slope / skew) @ scaled.T).tocsr()  # (N, U)
    rows = vectors * gains / skew[:, None]  # (N, K)
    columns = (vectors * skew[:, None]).T  # (K, N)
    parts = []
    for chunk in tiles(n_items, n_items, CHUNK):
        linear = (sources[chunk] @ targets).toarray()  # (c, N)
        weights = rows[chunk] @ columns + linear  # (c, N)
        weights[np.arange(len(chunk)), chunk] = 0
        parts.append(interactions.cut(weights, chunk, top_k))

    return sp.csr_array(sp.vstack(parts))


def bend(squares: Floats) -> Floats:
    """Return the curve h(x) = .5 - .5 sign(x) |x|^phi at x = 1 - 2 v of squared singular values v.

    The curve rises from 0 to a plateau at a half, and to 1 at the strongest component. By its phi
    the weakest of the components (K,), which rise, has come about half of the way to the plateau.
    """
    flatness = np.clip(BEND / squares[0], 1, MAX_FLATNESS)
    place = 1 - 2 * squares  # (K,)
    curve: Floats = 0.5 - 0.5 * np.sign(place) * np.abs(place) ** flatness  # (K,)
    return curve


def leading_vectors(
    matrix: sp.csr_array, n_factors: int, seed: int
) -> tuple[Floats, Floats]:
    """Find leading right singular vectors of a matrix (U, N) by subspace iteration.

    Returns:
        (K,) squared singular values, the smallest first, and (N, K) vectors: K is `n_factors` or
        the rank, whichever is lower.

    Source: Halko, Martinsson and Tropp, "Finding Structure with Randomness", SIAM Review 2011,
    algorithm 4.4.
    """
    width = min(n_factors + SPARE_VECTORS, matrix.shape[1])
    rng = np.random.default_rng(seed)
    basis = rng.standard_normal((matrix.shape[1], width), np.float32)  # (N, width)
    for _ in range(ITERATIONS):
        basis = np.linalg.qr(matrix.T @ (matrix @ basis))[0]  # (N, width)

    projected = matrix @ basis  # (U, width)
    squares, turns = np.linalg.eigh(projected.T @ projected)  # (width,) ascending
    n_kept = np.clip(np.count_nonzero(squares > MIN_EIGENVALUE), 1, n_factors)
    kept = np.maximum(squares[-n_kept:], MIN_EIGENVALUE)  # (K,)
    # multiplied once more, so that items without users have exact zeros
    vectors = matrix.T @ (matrix @ (basis @ turns[:, -n_kept:])) / kept  # (N, K)
    return kept, vectors
