"""Inverses through a Cholesky factor, on one core where a second would only wait."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import scipy
from scipy import linalg

from serve.threads import wheel_blas

Real = TypeVar("Real", np.float32, np.float64)

SMALL = 4096
"""Rows below which one core is used. At 2,500 a second core saves a tenth of a second while it is free, and
costs four to eight while another process holds it: OpenBLAS's threads wait for each other by spinning."""

_GET, _SET = "scipy_openblas_get_num_threads", "scipy_openblas_set_num_threads"
_BLOCK = 256


def invert_regularised(gram: npt.NDArray[Real], regularisation: float) -> npt.NDArray[Real]:
    """Return (gram + lambda I)^-1 of a symmetric matrix without negative eigenvalues, (n, n)."""
    regularised = gram.T.copy(order="F")  # symmetric: of a matrix in order of rows a plain copy
    np.fill_diagonal(regularised, gram.diagonal() + regularisation)
    if len(gram) >= SMALL:
        return _invert(regularised)
    with _one_thread():
        return _invert(regularised)


def _invert(matrix: npt.NDArray[Real]) -> npt.NDArray[Real]:
    """Invert in place: at this size fresh memory costs as much as the product."""
    factor = linalg.cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)
    invert_factor = linalg.lapack.dpotri if factor.dtype == np.float64 else linalg.lapack.spotri
    inverse: npt.NDArray[Real] = invert_factor(factor, lower=1, overwrite_c=1)[0]
    _mirror(inverse)
    return inverse


def _mirror(matrix: npt.NDArray[Real]) -> None:
    """Copy the triangle below the diagonal above it."""
    n = len(matrix)
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        square = matrix[start:stop, start:stop]
        square[:] = np.tril(square) + np.tril(square, -1).T
        matrix[start:stop, stop:] = matrix[stop:, start:stop].T


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep the OpenBLAS of scipy's wheel to one thread; another BLAS is left as it is."""
    libraries = [library for library in wheel_blas(scipy) if hasattr(library, _GET) and hasattr(library, _SET)]
    before = [getattr(library, _GET)() for library in libraries]
    try:
        for library in libraries:
            getattr(library, _SET)(ctypes.c_int(1))
        yield
    finally:
        for library, n_threads in zip(libraries, before, strict=True):
            getattr(library, _SET)(ctypes.c_int(n_threads))
