"""Item vectors (N, D) as they may be searched, and their lengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from serve.top_k import Floats, Ints


def check_vectors(vectors: Floats) -> None:
    """Refuse item vectors that cannot be searched.

    Raises:
        ValueError: not (N, D) float32 in C order, empty, or not finite.
    """
    if vectors.ndim != 2 or vectors.dtype != np.float32 or vectors.size == 0:
        raise ValueError(f"item vectors are {vectors.dtype} {vectors.shape}; expected float32 (N, D), not empty")
    if not vectors.flags.c_contiguous:
        raise ValueError("item vectors are not in C order: pass np.ascontiguousarray of them")
    is_finite = np.isfinite(vectors).all(axis=1)
    if not is_finite.all():
        raise ValueError(f"item vector {int(is_finite.argmin())} is not finite")


def measure_lengths(vectors: Floats) -> NDArray[np.float64]:
    """Return the length of each vector."""
    lengths: NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    return lengths


def measure_divisors(vectors: Floats) -> NDArray[np.float64]:
    """Return the length of each vector, 1 in place of 0."""
    lengths = measure_lengths(vectors)
    return np.where(lengths == 0, 1.0, lengths)


def bound_scores(users: Floats, longest: float) -> NDArray[np.float64]:
    """Return the most that a score of users (B, D) can be, (B,): Cauchy-Schwarz.

    Args:
        users: (B, D).
        longest: length of the longest item vector.
    """
    bound: NDArray[np.float64] = np.linalg.norm(users.astype(np.float64), axis=1) * longest
    return bound


def bound_rounding(largest: NDArray[np.float64], n_dims: int) -> NDArray[np.float64]:
    """Return the most by which scores of `n_dims` products are off when they are summed in float32, (B,).

    Args:
        largest: (B,) what they can be, see `bound_scores`.
        n_dims: D.
    """
    bound: NDArray[np.float64] = 2.0**-23 * (n_dims + 4) * largest + n_dims * float(np.finfo(np.float32).tiny)
    return bound


def bound_addition(added: NDArray[np.float64]) -> Floats:
    """Return more than twice the most by which float32 scores are off for having (N, T) added to them, (T,).

    The sum is rounded once where it is approximate and once where it is exact, each time by at most 2^-24 of itself;
    what of it is a product is in `bound_rounding`.
    """
    bound: Floats = (2.0**-21 * np.abs(added).max(axis=0)).astype(np.float32)
    return bound


def extend_divisors(lengths: NDArray[np.float64], vectors: Floats, rows: Ints, n_dims: int) -> NDArray[np.float64]:
    """Return the lengths of the first columns of all vectors, of which `rows` are measured and the others known."""
    extended = np.concatenate([lengths, np.ones(len(vectors) - len(lengths))])
    extended[rows] = measure_divisors(vectors[rows, :n_dims])
    return extended
