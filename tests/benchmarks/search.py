"""The bundle's exact search against FAISS's flat index, as ratios in one run, both on one thread.

    OMP_NUM_THREADS=1 python tests/benchmarks/search.py [--size ITEMS DIMS]

Masked: 100 items are left out of each request, in FAISS by a selector, which is per call: one request after another.
Unmasked: FAISS as it is installed, and once more told to use BLAS for these sizes, which it does not by default. How
many items they find otherwise is said. The sides alternate call by call; milliseconds are medians of the CPU time of
this thread, which does all the work: what else the machine does hardly counts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import faiss
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from serve.coarse import make_coarse

from serve.index import ItemIndex
from serve.tower import set_search_threads

N_EXCLUDED, SECONDS = 100, 6.0
MOST_OTHER = 1e-3  # share of places
SIZES = ((12_500, 67), (100_000, 64))

Search = Callable[[], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, metavar=("ITEMS", "DIMS"), help="in place of the usual two")
    size = parser.parse_args().size
    set_search_threads(1)
    for n_items, dim in SIZES if size is None else (size,):
        for n_requests, k in ((1, 20), (4, 20), (256, 10), (256, 20), (256, 100)):
            for name, searches in make_searches(n_items, dim, n_requests, k).items():
                other, ms = count_other(searches), median_ms(searches)
                ours = ms.pop("ours")
                shown = "; ".join(
                    f"{side} {theirs:8.2f} (x {theirs / ours:.2f}, {other[side]} other items)"
                    for side, theirs in ms.items()
                )
                print(f"{n_items:7d} x {dim}, {n_requests:3d} requests, k {k:3d}, {name:8s} {ours:8.2f} ms; {shown}")


def make_searches(n_items: int, dim: int, n_requests: int, k: int) -> dict[str, dict[str, Search]]:
    """Return the searches to compare, ours first."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(n_items, dim)).astype(np.float32)
    users = rng.normal(size=(n_requests, dim)).astype(np.float32)
    rows = [rng.choice(n_items, N_EXCLUDED, replace=False) for _ in range(n_requests)]
    index, flat = ItemIndex(vectors, make_coarse(vectors)), faiss.IndexFlatIP(dim)  # as a bundle is loaded
    flat.add(vectors)
    excluded = (np.concatenate(rows), np.arange(n_requests + 1) * N_EXCLUDED)

    def search_selected() -> np.ndarray:
        found = []
        for user, owned in zip(users, rows, strict=True):
            allowed = faiss.IDSelectorNot(faiss.IDSelectorBatch(owned))
            found.append(flat.search(user[None], k, params=faiss.SearchParameters(sel=allowed))[1])
        return np.concatenate(found)

    masked = {"ours": lambda: index.search(users, k, excluded)[1], "FAISS": search_selected}
    unmasked = {"ours": lambda: index.search(users, k)[1], "FAISS": lambda: flat.search(users, k)[1]}
    if n_requests > 1:
        unmasked["FAISS with BLAS"] = lambda: search_by_blas(flat, users, k)
    return {"masked": masked, "unmasked": unmasked}


def search_by_blas(flat: faiss.IndexFlatIP, users: np.ndarray, k: int) -> np.ndarray:
    threshold = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = 1
    try:
        return flat.search(users, k)[1]
    finally:
        faiss.cvar.distance_compute_blas_threshold = threshold


def count_other(searches: Mapping[str, Search]) -> dict[str, int]:
    """Count the places where each finds another item than ours; a few have scores that float32 rounds equal."""
    found = {name: search() for name, search in searches.items()}
    other = {name: int((rows != found["ours"]).sum()) for name, rows in found.items()}
    for name, n_other in other.items():
        if n_other > MOST_OTHER * found[name].size:
            raise SystemExit(f"{name} finds {n_other} other items")
    return other


def median_ms(searches: Mapping[str, Search]) -> dict[str, float]:
    """Return the median milliseconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for name, search in searches.items():
            start = time.thread_time()
            search()
            seconds[name].append(time.thread_time() - start)
    return {name: 1000 * float(np.median(some)) for name, some in seconds.items()}


if __name__ == "__main__":
    main()
