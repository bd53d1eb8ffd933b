"""The leading eigenvectors of large symmetric matrices, which may be known by their products alone."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy import linalg

KRYLOV_BLOCK, KRYLOV_COLUMNS = 128, 640
"""Columns that are multiplied at once, and those of the space beyond three times as many as eigenvectors."""
LEAST_KRYLOV_RATIO = 2
"""Rows for each column of that space: with fewer the whole matrix is reduced, in hardly more time."""


class Symmetric(Protocol):
    """A symmetric matrix (N, N)."""

    def __matmul__(self, columns: np.ndarray, /) -> np.ndarray:
        """Multiply columns (N, K)."""
        ...

    def __array__(self, dtype: None = None, /, *, copy: bool | None = None) -> np.ndarray:
        """Return all of it, (N, N)."""
        ...


def leading_eigenvectors(symmetric: Symmetric, n: int, rank: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest eigenvalues (rank,), descending, and their vectors (n, rank) float32.

    Where there are fewer than `rank`, zeros follow. Each vector's largest entry is positive. They are taken from a
    block Krylov space, or, where that would span much of the whole, from the matrix itself.

    Args:
        symmetric: (n, n).
        n: its rows.
        rank: how many.
        seed: of the first block.
    """
    values, vectors = np.zeros(rank, np.float32), np.zeros((n, rank), np.float32)  # (rank,), (n, rank)
    n_found, n_columns = min(rank, n - 1), KRYLOV_COLUMNS + 3 * rank
    if n_found < 1:
        return values, vectors
    if n_columns * LEAST_KRYLOV_RATIO > n:
        found, columns = _reduce(np.asarray(symmetric), n_found)  # (f,), (n, f)
    else:
        found, columns = _krylov_eigen(symmetric, n, n_found, n_columns, seed)  # (f,), (n, f)
    columns = columns * np.sign(columns[np.abs(columns).argmax(axis=0), np.arange(n_found)])  # (n, f)
    values[:n_found], vectors[:, :n_found] = found[::-1], columns[:, ::-1]
    return values, vectors


def _reduce(symmetric: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the leading eigenvalues, ascending, and their vectors (n, rank)."""
    n = len(symmetric)
    try:
        values, columns = linalg.eigh(symmetric, subset_by_index=(n - rank, n - 1))  # (at most rank,), (n, the same)
    except linalg.LinAlgError:
        columns = np.empty((n, 0))
    if columns.shape[1] < rank:  # LAPACK may miss some of many equal values, or fail; "evd" is slower and finds all
        values, columns = linalg.eigh(symmetric, driver="evd")  # (n,), (n, n)
    return values[-rank:], columns[:, -rank:]


def _krylov_eigen(symmetric: Symmetric, n: int, rank: int, n_columns: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the leading eigenvalues, ascending, and their vectors (n, rank).

    From a block Krylov space (Musco and Musco 2015, arXiv 1504.05477): products with blocks of columns read the matrix
    some ten times, where Lanczos, a column at a time, read it 660 times (128 factors of 2,000 and 6,000 items).
    """
    basis = _krylov_basis(symmetric, n, n_columns, np.random.default_rng(seed))  # (n, K)
    small = basis.T @ (symmetric @ basis)  # (K, K)
    values, turned = np.linalg.eigh((small + small.T) / 2)  # ascending
    return values[-rank:], basis @ turned[:, -rank:]


def _krylov_basis(symmetric: Symmetric, n: int, n_columns: int, rng: np.random.Generator) -> np.ndarray:
    """Return orthonormal columns that span a random block and its products with powers of the matrix, (n, K).

    Each block is made orthogonal to all before it: else rounding leads later ones back into the same space (of 768
    factors the last ones had a fifth less).
    """
    n_columns = min(n_columns, n)
    basis = np.empty((n, n_columns), np.float32)
    block = rng.standard_normal((n, min(KRYLOV_BLOCK, n_columns))).astype(np.float32)  # (n, block)
    for start in range(0, n_columns, KRYLOV_BLOCK):
        before, width = basis[:, :start], min(KRYLOV_BLOCK, n_columns - start)
        for _ in range(2):  # once leaves what rounding left
            block = block - before @ (before.T @ block)  # (n, block)
            block = np.linalg.qr(block)[0]  # (n, block)
        basis[:, start : start + width] = block[:, :width]
        block = symmetric @ block  # (n, block)
    return basis
