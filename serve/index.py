"""The item index: exact scores of all items, inner products and what is added to them, exclusions inside the search.

The search is a matrix product in tiles over the one memory-mapped copy of the vectors, not FAISS's flat index, which
would be a second copy; a few requests among many items are searched with a rounded copy (`serve.coarse`). Median ms of
CPU time with 1 thread, k = 20:

    items x dims                              12.5k x 67       100k x 64
    requests                                   1     256       1     256
    100 masked: this search                  .18      11     .86      89
                IndexFlatIP, selectors       .15      46     1.3     278    (a selector is per call: one by one)
    none masked: this search                 .17     9.6     .75      71
                 IndexFlatIP                 .09      23     1.0     198
                 IndexFlatIP told to use BLAS        8.1              56

FAISS chooses the slower of its two ways for a batch of this size; where nothing is masked the other one is a little
faster than this search. (`python tests/benchmarks/search.py` repeats it with ratios.)

`items.faiss` is the same vectors for whoever reads the bundle with FAISS; loading checks that it agrees. An
approximate index would be another class with these methods: `load`, `search`, `similar`. What is added to products
(`serve.neighbours`) lies in no vector: FAISS does not know it.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve.coarse import MOST_CONTENDERS, MOST_REQUESTS, CoarseVectors, make_coarse
from serve.faiss_file import check_file
from serve.item_vectors import (
    bound_addition,
    bound_rounding,
    bound_scores,
    check_vectors,
    extend_divisors,
    measure_divisors,
    measure_lengths,
)
from serve.neighbours import Added
from serve.top_k import Floats, Ints, dot_pairs, find_contenders, rank_contenders

Ragged = tuple[Ints, Ints]
"""(item_rows, offsets): request i has item_rows[offsets[i] : offsets[i + 1]]."""

_MOST_REQUESTS = 32  # of a tile: fewer make the product slow, more leave the cache
_TILE_SCORES = 2**25  # 128 MiB: among a million items, where a tile of few requests waits for the vectors
_MOST_FRESH = 0.02  # of the items, that rounded vectors do not know: they are scored by themselves


class ItemIndex:
    """Item vectors (N, D) float32 and the search for the best of them."""

    def __init__(self, vectors: Floats, coarse: CoarseVectors | None = None) -> None:
        """Keep `vectors` without copying; `build` and `load` check them first. `coarse` are the same, rounded."""
        self.vectors = vectors
        self._coarse = coarse
        self._fresh_rows: Ints = np.empty(0, dtype=np.int64)
        """Items that `_coarse` does not have, or not as they are."""
        self._fresh_vectors = vectors[:0]
        self.is_hidden: NDArray[np.bool_] | None = None
        """(N,) the items that are never listed, None if there are none; they count in `len`."""
        self._hidden_rows: Ints = np.empty(0, dtype=np.int64)
        self._longest = float(measure_lengths(vectors).max())
        self._lengths: dict[int, NDArray[np.float64]] = {}

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def build(cls, vectors: Floats) -> ItemIndex:
        """Index item vectors, which are not copied.

        Raises:
            ValueError: not (N, D) float32 in C order, empty, or not finite.
        """
        check_vectors(vectors)
        return cls(vectors)

    @classmethod
    def load(cls, path: Path, vectors: Floats) -> ItemIndex:
        """Read what `serve.faiss_file.write_index` wrote and search `vectors`, if the file holds just these.

        Raises:
            BundleError: the file is no flat inner-product index of these vectors.
        """
        return cls.from_bytes(np.fromfile(path, dtype=np.uint8), vectors)

    @classmethod
    def from_bytes(cls, content: NDArray[np.uint8], vectors: Floats) -> ItemIndex:
        """Do as `load` with the content of the file, (size,) uint8."""
        check_vectors(vectors)
        check_file(content, vectors)
        return cls(vectors, make_coarse(vectors))

    def changed(self, vectors: Floats, rows: Ints, is_hidden: NDArray[np.bool_]) -> ItemIndex:
        """Return the index of a catalogue that has changed, at the cost of what changed.

        Args:
            vectors: (M, D) of all items, not copied; M is at least N.
            rows: those that differ from the vectors here, all from N on among them.
            is_hidden: (M,) items that are never listed.

        Raises:
            ValueError: a vector that differs is not finite.
        """
        if len(rows):
            check_vectors(vectors[rows])
        index = copy(self)
        index.vectors = vectors
        index.is_hidden = is_hidden if is_hidden.any() else None
        index._hidden_rows = np.flatnonzero(is_hidden)
        index._keep_fresh(rows)
        index._longest = max(self._longest, float(measure_lengths(vectors[rows]).max(initial=0)))
        lengths = {n: extend_divisors(self._lengths_of(n), vectors, rows, n) for n in self._lengths}
        index._lengths = lengths
        return index

    def _keep_fresh(self, rows: Ints) -> None:
        """Take in rows that rounded vectors do not have as they are; without these where there are too many."""
        if self._coarse is None:
            return
        self._fresh_rows = np.union1d(self._fresh_rows, rows)
        self._fresh_vectors = self.vectors[self._fresh_rows]
        if len(self._fresh_rows) > _MOST_FRESH * len(self):
            self._coarse = None

    def search(
        self,
        users: Floats,
        k: int,
        excluded: Ragged | None = None,
        barred: NDArray[np.bool_] | None = None,
        added: Added | None = None,
    ) -> tuple[Floats, Ints]:
        """Find the k items with the largest score among those neither excluded nor barred.

        Args:
            users: (B, D) user vectors.
            k: length of a list; more than the catalogue gives the catalogue.
            excluded: item rows that may not be listed, per request.
            barred: (N,) items that may not be listed for any request.
            added: to the inner product of users and items.

        Returns:
            scores: (B, min(k, N)) float32, falling; equal scores order by row.
            rows: (B, min(k, N)) int64. Where fewer items are admissible, -inf and -1 fill the end.

        Raises:
            ValueError: vectors of another width or not finite, k below 1, or rows outside the catalogue.
        """
        users = self._check_users(users)
        k = min(_check_k(k), len(self))
        rows, offsets = _check_excluded(excluded, len(users), len(self))
        tile = max(1, min(len(users), _MOST_REQUESTS, _TILE_SCORES // len(self)))
        # one buffer for all tiles: fresh pages cost more than the product
        product = np.empty(len(self) * tile, dtype=np.float32)
        best_scores = np.empty((len(users), k), dtype=np.float32)
        best_rows = np.empty((len(users), k), dtype=np.int64)
        slack = self._slack(users)
        for start in range(0, len(users), tile):
            part = slice(start, min(start + tile, len(users)))
            bounds = offsets[start : part.stop + 1]
            masked = (rows[bounds[0] : bounds[-1]], bounds - bounds[0])
            more = None if added is None else added.spread(part, len(self))
            best = self._search_tile(users[part], k, masked, barred, more, slack[part], product)
            best_scores[part], best_rows[part] = best
        return best_scores, best_rows

    def similar(self, row: int, k: int, n_dims: int) -> tuple[Floats, Ints]:
        """Find the k items nearest to an item by cosine over the first `n_dims` columns, itself excluded.

        An item whose columns are all 0 has cosine 0 to every other.

        Returns:
            scores: (min(k, N - 1),) float32, falling; equal scores order by row.
            rows: (min(k, N - 1),) int64; fewer where items are hidden.

        Raises:
            ValueError: a row outside the catalogue, k below 1, or more columns than there are.
        """
        k = min(_check_k(k), len(self) - 1)
        if not 0 <= row < len(self):
            raise ValueError(f"item row is {row}; allowed: 0 to {len(self) - 1}")
        if not 1 <= n_dims <= self.vectors.shape[1]:
            raise ValueError(f"n_dims is {n_dims}; allowed: 1 to {self.vectors.shape[1]}")
        if k == 0:
            return np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64)
        part, lengths = self.vectors[:, :n_dims], self._lengths_of(n_dims)
        direction = (part[row] / lengths[row]).astype(np.float32)
        approximate = ((part @ direction) / lengths).astype(np.float32)[:, None]  # (N, 1)
        approximate[row] = -np.inf
        approximate[self._hidden_rows] = -np.inf
        slack = np.array([2.0**-22 * (n_dims + 8)], dtype=np.float32)
        found = find_contenders(approximate, k, slack)
        dots = dot_pairs(part[row][None], part, *found)
        cosines = (dots / (lengths[row] * lengths[found[1]])).astype(np.float32)
        scores, rows = rank_contenders(*found, cosines, 1, k)
        is_found = rows[0] >= 0
        return scores[0][is_found], rows[0][is_found]

    def _search_tile(
        self,
        users: Floats,
        k: int,
        excluded: Ragged,
        barred: NDArray[np.bool_] | None,
        more: NDArray[np.float64] | None,
        slack: Floats,
        product: Floats,
    ) -> tuple[Floats, Ints]:
        """Search for T users; `more` (N, T) is added, `product`, of N T entries or more, is written over."""
        if more is not None:
            slack = slack + bound_addition(more)
        rows, offsets = excluded
        cells = (rows, np.repeat(np.arange(len(users)), np.diff(offsets)))

        def complete(approximate: Floats) -> None:
            if more is not None:
                approximate += more
            approximate[cells] = -np.inf
            approximate[self._hidden_rows] = -np.inf
            if barred is not None:
                approximate[barred] = -np.inf

        contenders = self._contend_coarsely(users, k, slack, complete)
        if contenders is None:
            # items first: the other way round BLAS copies all vectors before it multiplies, long for a few requests
            approximate = product[: len(self) * len(users)].reshape(len(self), len(users))
            np.matmul(self.vectors, users.T, out=approximate)  # (N, T)
            complete(approximate)
            contenders = find_contenders(approximate, k, slack)
        scores = dot_pairs(users, self.vectors, *contenders)
        if more is not None:
            scores += more[contenders[1], contenders[0]]
        return rank_contenders(*contenders, scores.astype(np.float32), len(users), k)

    def _contend_coarsely(
        self, users: Floats, k: int, slack: Floats, complete: Callable[[Floats], None]
    ) -> tuple[Ints, Ints] | None:
        """Find contenders by rounded vectors; None where that is not possible, takes longer or leaves too many."""
        if self._coarse is None or len(users) > MOST_REQUESTS:
            return None
        scored = self._coarse.score(users)
        if scored is None:
            return None
        scores, errors = scored  # (T, items of these), (T,)
        added = np.empty((len(users), len(self) - scores.shape[1]), np.float32)
        approximate = np.append(scores, added, axis=1) if added.size else scores  # (T, N)
        approximate[:, self._fresh_rows] = users @ self._fresh_vectors.T
        complete(approximate.T)
        wide = slack + (2 * errors).astype(np.float32)
        found = [find_contenders(one[:, None], k, wide[[place]])[1] for place, one in enumerate(approximate)]
        if max(map(len, found)) > max(MOST_CONTENDERS, 4 * k):
            return None
        return np.repeat(np.arange(len(users)), [len(rows) for rows in found]), np.concatenate(found)

    def _lengths_of(self, n_dims: int) -> NDArray[np.float64]:
        """Return the lengths of the vectors' first columns, 1 in place of 0, (N,)."""
        if n_dims not in self._lengths:
            self._lengths[n_dims] = measure_divisors(self.vectors[:, :n_dims])
        return self._lengths[n_dims]

    def _check_users(self, users: Floats) -> Floats:
        width = self.vectors.shape[1]
        if users.ndim != 2 or users.shape[1] != width or users.dtype != np.float32:
            raise ValueError(f"user vectors are {users.dtype} {users.shape}; expected float32 (B, {width})")
        if not np.isfinite(users).all():
            raise ValueError(f"user vector {int(np.argmin(np.isfinite(users).all(axis=1)))} is not finite")
        return np.ascontiguousarray(users)

    def _slack(self, users: Floats) -> Floats:
        """Return more than twice the largest rounding error of a float32 score of each user, (B,)."""
        largest = bound_scores(users, self._longest)
        if largest.max(initial=0.0) > np.finfo(np.float32).max / 4:
            raise ValueError(f"user vector {int(largest.argmax())} is too long: its scores overflow float32")
        slack: Floats = (2 * bound_rounding(largest, users.shape[1])).astype(np.float32)
        return slack


def measure_recall(index: ItemIndex, users: Floats, k: int) -> float:
    """Return the share of the k best items, by a sort of all float64 products, that the index finds."""
    _, found = index.search(users, k)
    items = index.vectors.astype(np.float64)
    hits = 0
    for user, rows in zip(users.astype(np.float64), found, strict=True):
        scores = (items @ user).astype(np.float32)
        kth = np.sort(scores)[-found.shape[1]]
        hits += int((scores[rows] >= kth).sum())
    return hits / found.size


def _check_k(k: int) -> int:
    if k < 1:
        raise ValueError(f"k is {k}; allowed: 1 or more")
    return k


def _check_excluded(excluded: Ragged | None, n_requests: int, n_items: int) -> Ragged:
    """Return exclusions whose every row may serve as an array index."""
    if excluded is None:
        return np.empty(0, dtype=np.int64), np.zeros(n_requests + 1, dtype=np.int64)
    rows, offsets = excluded
    if len(offsets) != n_requests + 1 or offsets[0] != 0 or offsets[-1] != len(rows):
        got = f"{len(offsets)} offsets and {len(rows)} rows"
        raise ValueError(f"excluded has {got}; expected {n_requests + 1} offsets, from 0 to the number of rows")
    if len(rows) and (rows.min() < 0 or rows.max() >= n_items):
        wrong = rows[(rows < 0) | (rows >= n_items)][0]
        raise ValueError(f"excluded item row is {wrong}; allowed: 0 to {n_items - 1}")
    return rows, offsets
