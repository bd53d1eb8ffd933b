"""Item vectors rounded to 8 bits: scores of known error, for a quarter of the memory that a search reads.

For a few requests a search takes as long as the vectors take to be read. Users u and items v are rounded block by block
to 255 levels, and the product is one of integers; with u', v' for what is left of them

    |u v - u' v'| <= |u - u'| |v| + |u'| |v - v'|.

Both distances are measured, not assumed, the second by what the product makes of unit vectors. Whoever adds the error
to his slack (`serve.top_k.find_contenders`) and scores contenders exactly finds what an exact product would find.
Median ms of one product, 1 thread, 100,000 x 64: 1.04 in float32, .20 here (`tests/benchmarks/search.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from serve.coarse_graph import PRODUCTS, USERS, product_graph
from serve.errors import BundleError
from serve.item_vectors import bound_rounding, measure_lengths
from serve.session import start_session
from serve.top_k import Floats

FEWEST_ITEMS = 2**15
"""Of fewer, the float32 vectors are read from a cache and as fast."""
_MOST_BYTES = 2**30  # of the codes: a graph holds less than 2 GiB
_BLOCK = 32
_LEVELS, _ZERO = 127, 128
_PROBES, _TRIALS = 4, 5
_COLUMNS = 8  # that are measured at once
_ROUNDED_UP = 1 + 2.0**-20  # whoever rounds the error to float32 does not make it smaller


class CoarseVectors:
    """Rounded item vectors (N, D) and the product with them."""

    def __init__(self, vectors: Floats) -> None:
        """Round vectors and measure what that changes.

        Raises:
            BundleError: this ONNX Runtime has no such product.
        """
        codes, scales = _round(vectors)
        graph = product_graph((codes + _ZERO).astype(np.uint8), scales, vectors.shape[1])
        self._session = start_session("product of rounded vectors", graph, 1)
        self.longest = float(measure_lengths(vectors).max())
        """Length of the longest vector."""
        self._farthest = self._measure(vectors)

    def score(self, users: Floats) -> tuple[Floats, NDArray[np.float64]]:
        """Score all items for each user (T, D).

        Returns:
            scores: (T, N) float32.
            errors: (T,) the most by which one differs from the exact score, but for the rounding of float32 sums.
        """
        codes, scales = _round(users)
        rounded = (codes * scales[:, :, None]).reshape(len(users), -1)[:, : users.shape[1]]  # taken as it is
        (scores,) = self._session.run([PRODUCTS], {USERS: rounded})
        errors = measure_lengths(users - rounded) * self.longest + measure_lengths(rounded) * self._farthest
        return scores, errors * _ROUNDED_UP

    def _measure(self, vectors: Floats) -> float:
        """Return the length of the longest v - v'."""
        squares, units = np.zeros(len(vectors)), np.eye(vectors.shape[1], dtype=np.float32)
        for start in range(0, len(units), _COLUMNS):
            part = slice(start, start + _COLUMNS)
            (columns,) = self._session.run([PRODUCTS], {USERS: units[part]})  # (columns, N) of v'
            left = vectors[:, part].astype(np.float64) - columns.T
            squares += np.einsum("nd,nd->n", left, left)
        return float(np.sqrt(squares.max()))


def make_coarse(vectors: Floats) -> CoarseVectors | None:
    """Round item vectors; None where that is of no use: few items, or a machine without a fast product of integers."""
    if len(vectors) < FEWEST_ITEMS or vectors.size > _MOST_BYTES:
        return None
    try:
        coarse = CoarseVectors(vectors)
    except BundleError:
        return None
    return coarse if is_sound(coarse, vectors) and is_faster(coarse, vectors) else None


def is_sound(coarse: CoarseVectors, vectors: Floats) -> bool:
    """Compare some scores with float32 ones: the product is as good as its kernel for this processor."""
    users = vectors[:: max(1, len(vectors) // _PROBES)]
    scores, errors = coarse.score(users)
    most = errors + bound_rounding(users, coarse.longest)  # (T,)
    return bool((np.abs(scores.T - vectors @ users.T) <= most).all())  # what is not a number is not sound


def is_faster(coarse: CoarseVectors, vectors: Floats) -> bool:
    """Compare with the product in float32, as fast as each can be: processors differ."""
    user, product = vectors[:1], np.empty((len(vectors), 1), dtype=np.float32)
    return _least(lambda: coarse.score(user)) < _least(lambda: np.matmul(vectors, user.T, out=product))


def _least(compute: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_TRIALS):
        started = time.perf_counter()
        compute()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _round(vectors: Floats) -> tuple[NDArray[np.int16], Floats]:
    """Round vectors (n, D) to multiples of a scale for each block.

    Returns:
        multiples: (n, blocks, entries of a block), from -127 to 127, 0 beyond D.
        scales: (n, blocks) float32.
    """
    n_vectors, width = vectors.shape
    filled = np.zeros((n_vectors, -(-width // _BLOCK), _BLOCK), dtype=np.float32)
    filled.reshape(n_vectors, -1)[:, :width] = vectors
    scales = np.abs(filled).max(axis=2) / _LEVELS  # (n, blocks)
    scales[scales == 0] = 1.0
    filled /= scales[:, :, None]
    return np.rint(filled, out=filled).clip(-_LEVELS, _LEVELS, out=filled).astype(np.int16), scales
