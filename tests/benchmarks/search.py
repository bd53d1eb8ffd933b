"""The bundle's exact search against FAISS's flat index with the same exclusions, as ratios of medians in one run.

python tests/benchmarks/search.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from serve.index import ItemIndex
from serve.threads import set_search_threads

K, N_EXCLUDED, SECONDS = 20, 100, 3.0


def main() -> None:
    set_search_threads(1)
    for n_items, dim in ((12_500, 67), (100_000, 64)):
        for n_requests in (1, 256):
            ours, theirs = compare(n_items, dim, n_requests)
            ratio = theirs / ours
            print(
                f"{n_items:7d} x {dim}, {n_requests:3d} requests: {ours:8.2f} ms, FAISS {theirs:8.2f} ms, x {ratio:.2f}"
            )


def compare(n_items: int, dim: int, n_requests: int) -> tuple[float, float]:
    """Return the median milliseconds of both; they must find the same items."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(n_items, dim)).astype(np.float32)
    users = rng.normal(size=(n_requests, dim)).astype(np.float32)
    rows = [rng.choice(n_items, N_EXCLUDED, replace=False) for _ in range(n_requests)]
    index, flat = ItemIndex.build(vectors), faiss.IndexFlatIP(dim)
    flat.add(vectors)
    excluded = (np.concatenate(rows), np.arange(n_requests + 1) * N_EXCLUDED)

    def search_flat() -> np.ndarray:
        found = []
        for user, owned in zip(users, rows, strict=True):
            allowed = faiss.IDSelectorNot(faiss.IDSelectorBatch(owned))
            found.append(flat.search(user[None], K, params=faiss.SearchParameters(sel=allowed))[1])
        return np.concatenate(found)

    if not np.array_equal(index.search(users, K, excluded)[1], search_flat()):
        raise SystemExit("the two searches found different items")
    return median_ms(lambda: index.search(users, K, excluded)), median_ms(search_flat)


def median_ms(call: Callable[[], object]) -> float:
    seconds = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds))


if __name__ == "__main__":
    main()
