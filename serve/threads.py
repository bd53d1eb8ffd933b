"""Threads of a search, set explicitly: a pool as large as the host oversubscribes a container's quota."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from types import ModuleType

import faiss
import numpy as np

_SYMBOLS = ("scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads", "openblas_set_num_threads")


def set_search_threads(n_threads: int) -> None:
    """Let numpy's matrix products and FAISS use `n_threads`, in the whole process.

    numpy offers no call for this, so it goes to the OpenBLAS of numpy's wheel. A numpy built on another BLAS
    is left as it is: there `OMP_NUM_THREADS`, set before the start, decides.

    Raises:
        ValueError: fewer than one thread.
    """
    if n_threads < 1:
        raise ValueError(f"threads is {n_threads}; allowed: 1 or more")
    faiss.omp_set_num_threads(n_threads)
    for library in wheel_blas(np):
        for symbol in _SYMBOLS:
            if hasattr(library, symbol):
                getattr(library, symbol)(ctypes.c_int(n_threads))


def count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def wheel_blas(package: ModuleType) -> tuple[ctypes.CDLL, ...]:
    """Return the OpenBLAS that numpy or scipy has loaded already, none if it is not the wheel's own."""
    beside = Path(str(package.__file__)).parent.parent / f"{package.__name__}.libs"
    return tuple(ctypes.CDLL(str(path)) for path in sorted(beside.glob("lib*openblas*")))
