from __future__ import annotations

import numpy as np
import pytest
import scipy

import evaluation.lapack
from evaluation.lapack import invert_regularised
from serve.threads import wheel_blas


def make(n: int, dtype) -> np.ndarray:
    rows = np.random.default_rng(n).standard_normal((n, 3)).astype(dtype)
    return rows @ rows.T


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "small"), [(1, 4096), (7, 4096), (7, 5), (11, 4096)])
def test_inverse_and_matrix_are_the_identity(dtype, n, small, monkeypatch):
    monkeypatch.setattr(evaluation.lapack, "SMALL", small)
    monkeypatch.setattr(evaluation.lapack, "_BLOCK", 4)
    gram = make(n, dtype)
    before = gram.copy()
    inverse = invert_regularised(gram, 0.5)
    assert inverse.dtype == dtype
    assert (gram == before).all()
    assert inverse @ (gram + 0.5 * np.eye(n, dtype=dtype)) == pytest.approx(np.eye(n), abs=1e-4)
    assert (inverse == inverse.T).all()


def test_threads_are_as_before():
    libraries = wheel_blas(scipy)
    before = [getattr(library, evaluation.lapack._GET)() for library in libraries]
    invert_regularised(make(7, np.float64), 3.0)
    assert [getattr(library, evaluation.lapack._GET)() for library in libraries] == before
