"""Exact search among the items of a catalogue: inner products, additions by item-item weights, exclusions.

    score(u, i) = u . v_i + sum over the items j of the history of w_j B_ji / sqrt(sum of w_j) + m_u(i)

`items.faiss` holds the vectors. The products are BLAS's and the lists FAISS's heaps, since its flat search can neither
add to a score nor leave out items of one request; loading copies the vectors once, since the file format puts them at
an odd address, where BLAS takes eight times as long. An approximate index would be a class with the same `search`.
Letters: B requests, N items, W columns of a vector, L history positions, C terms of a sum.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from serve.durable import write_file

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Content = NDArray[np.uint8]
Pairs = tuple[Ints, Ints]
"""(requests, rows): pairs of a request and an item row, in any order."""
Terms = tuple[Ints, Ints, Floats]
"""(requests, rows, values): what is added to the score of an item for a request; pairs may be there several times."""

ENTRY = np.dtype([("neighbour", "<i4"), ("weight", "<f4")])
OFFSET = np.dtype("<i8")
MAX_TILE = 256
"""Requests that are searched at once: memory does not grow with a batch."""

_BLOCK_SCORES = 2**19  # 2 MiB of scores stay in the cache
_MAX_HEADER = 1024  # bytes of the header of an array file
_MAX_WEIGHT = 1e30  # sums of larger item-item weights would overflow


@dataclass(frozen=True, eq=False)
class Neighbours:
    """B, the item-item weights of a catalogue of N items, row by row."""

    offsets: Ints
    """(N + 1,): item j has the entries from offsets[j] to offsets[j + 1]."""
    rows: NDArray[np.integer]
    """Item to whose score an entry adds."""
    weights: Floats
    """Weight of each entry."""
    decay: float = 0.0
    """w_j is exp(-decay * events after j), so 1 in sets."""

    @property
    def n_items(self) -> int:
        return len(self.offsets) - 1

    def scaled(self, weight: float) -> Neighbours:
        """Return B times a weight."""
        return replace(self, weights=(weight * self.weights).astype(np.float32))

    @classmethod
    def none(cls, n_items: int) -> Neighbours:
        """Return the weights of a catalogue whose items add nothing."""
        return cls(np.zeros(n_items + 1, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))

    @classmethod
    def from_bytes(cls, offsets: Content, entries: Content, n_items: int, decay: float) -> Neighbours:
        """View the arrays that `to_bytes` wrote.

        Raises:
            ValueError: other arrays, offsets that do not divide the entries among the items, rows outside the
                catalogue, or a weight that is no number or would overflow.
        """
        starts, pairs = _view_array(offsets, OFFSET), _view_array(entries, ENTRY)
        ends = (starts[0], starts[-1]) if len(starts) == n_items + 1 else None
        if ends != (0, len(pairs)) or (starts[1:] < starts[:-1]).any():
            raise ValueError(f"{len(starts)} offsets do not divide {len(pairs)} entries among {n_items} items")
        rows, weights = pairs["neighbour"], pairs["weight"]
        if len(rows) and (rows.min() < 0 or rows.max() >= n_items):
            raise ValueError(f"a row of 'neighbour' is outside 0 to {n_items - 1}")
        if not (np.abs(weights) <= _MAX_WEIGHT).all():
            raise ValueError(f"a weight is not between -{_MAX_WEIGHT:g} and {_MAX_WEIGHT:g}")
        return cls(starts, rows, weights, decay)

    def to_bytes(self) -> tuple[bytes, bytes]:
        """Write offsets and entries in the format of `np.save`."""
        entries = np.empty(len(self.rows), ENTRY)
        entries["neighbour"], entries["weight"] = self.rows, self.weights
        return _save_array(self.offsets.astype(OFFSET)), _save_array(entries)

    def of_histories(self, history_rows: Ints, lengths: Ints) -> Terms | None:
        """Return the terms that histories add to scores; None where no item adds anything.

        Args:
            history_rows: (B, L) item rows, padded behind the first `lengths` of each. Items that came after the
                bundle have no weights.
            lengths: (B,).
        """
        if not len(self.rows):
            return None
        later = lengths[:, None] - 1 - np.arange(history_rows.shape[1])  # (B, L) events after each; below 0: padding
        decayed = np.exp(-self.decay * np.arange(history_rows.shape[1]))  # (L,) the last event first
        sums = np.concatenate([[1.0], decayed.cumsum()])[lengths]  # (B,)
        shares = decayed[np.maximum(later, 0)] / np.sqrt(sums)[:, None]  # (B, L)
        requests, places = ((later >= 0) & (history_rows < self.n_items)).nonzero()  # (E,) known events
        items = history_rows[requests, places]
        counts = self.offsets[items + 1] - self.offsets[items]
        ends = counts.cumsum()
        entries = np.arange(counts.sum()) + np.repeat(self.offsets[items] - ends + counts, counts)  # (C,)
        values = self.weights[entries] * np.repeat(shares[requests, places], counts).astype(np.float32)
        return np.repeat(requests, counts), self.rows[entries].astype(np.int64), values


@dataclass(frozen=True, eq=False)
class Query:
    """A search for B requests."""

    users: Floats
    """(B, W)."""
    left_out: Pairs | None = None
    """Items that are not listed."""
    added: Terms | None = None
    """Added to the inner products."""
    only: Pairs | None = None
    """If given, no other items are listed."""

    def __len__(self) -> int:
        return len(self.users)

    def take(self, requests: Ints) -> Query:
        """Return the query of some of the requests, in ascending order."""
        place = np.full(len(self), -1, dtype=np.int64)
        place[requests] = np.arange(len(requests))

        def pick(part: Any) -> Any:
            if part is None:
                return None
            is_kept = place[part[0]] >= 0
            return (place[part[0][is_kept]], *(column[is_kept] for column in part[1:]))

        return Query(self.users[requests], pick(self.left_out), pick(self.added), pick(self.only))


class ItemIndex:
    """Item vectors (N, W) and the search for the best of them."""

    def __init__(self, vectors: Floats, is_hidden: Mask | None = None) -> None:
        """Index vectors, which are not copied.

        Args:
            vectors: (N, W) float32 in C order.
            is_hidden: (N,) items that are never listed.

        Raises:
            ValueError: vectors of another kind, none, or one that is not finite.
        """
        check_vectors(vectors)
        self.vectors = vectors
        self.is_hidden = is_hidden if is_hidden is not None and is_hidden.any() else None
        """(N,) the items that are never listed, None if there are none; they count in `len`."""
        self._lengths: dict[int, Floats] = {}

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def from_bytes(cls, content: Content) -> ItemIndex:
        """Read the content of the file that `write_index` wrote.

        Raises:
            ValueError: no flat inner-product index of FAISS, or a vector that is not finite.
        """
        try:
            reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(content), content.size)  # type: ignore[attr-defined]
            stored = faiss.read_index(reader, faiss.IO_FLAG_MMAP_IFC)  # a view of the content
        except RuntimeError as error:
            raise ValueError(f"no FAISS index: {error}") from error
        if type(stored) is not faiss.IndexFlatIP:
            raise ValueError(f"an index of type {type(stored).__name__}; expected IndexFlatIP")
        if not stored.ntotal:
            raise ValueError("no vectors")
        vectors: Floats = faiss.rev_swig_ptr(stored.get_xb(), stored.ntotal * stored.d).copy()
        vectors.flags.writeable = False
        return cls(vectors.reshape(stored.ntotal, stored.d))

    def changed(self, vectors: Floats, rows: Ints, is_hidden: Mask) -> ItemIndex:
        """Return the index of a catalogue that has changed.

        Args:
            vectors: (M, W) of all items, not copied; M is at least N.
            rows: those that differ from the vectors here, all from N on among them.
            is_hidden: (M,) items that are never listed.
        """
        return ItemIndex(vectors, is_hidden)

    def search(self, query: Query, k: int, barred: Mask | None = None) -> tuple[Floats, Ints]:
        """Find the k items with the largest score among those that may be listed.

        Args:
            query: B requests.
            k: length of a list; more than the catalogue gives the catalogue.
            barred: (N,) items that may not be listed for any request.

        Returns:
            scores: (B, min(k, N)) float32, falling; equal scores order by row.
            rows: (B, min(k, N)) int64. Where fewer items are admissible, -inf and -1 fill the end.

        Raises:
            ValueError: user vectors of another width, or k below 1.
        """
        if query.users.ndim != 2 or query.users.shape[1] != self.vectors.shape[1]:
            raise ValueError(f"user vectors are {query.users.shape}; expected (B, {self.vectors.shape[1]})")
        if k < 1:
            raise ValueError(f"k is {k}; allowed: 1 or more")
        if self.is_hidden is not None:
            barred = self.is_hidden if barred is None else barred | self.is_hidden
        n, k = len(query), min(k, len(self))
        if n <= MAX_TILE:
            return self._search_tile(query, k, barred)
        tiles = (np.arange(start, min(start + MAX_TILE, n)) for start in range(0, n, MAX_TILE))
        found = [self._search_tile(query.take(tile), k, barred) for tile in tiles]
        return np.concatenate([scores for scores, _ in found]), np.concatenate([rows for _, rows in found])

    def _search_tile(self, query: Query, k: int, barred: Mask | None) -> tuple[Floats, Ints]:
        best = _TopItems(len(query), k)
        block = max(1, _BLOCK_SCORES // max(1, len(query)))
        added, left_out, only = (_split(part, block, len(self)) for part in (query.added, query.left_out, query.only))
        for start in range(0, len(self), block):
            scores: Floats = query.users @ self.vectors[start : start + block].T  # (B, block)
            if query.added is not None:
                add_terms(scores, next(added))
            if query.only is not None:
                kept = next(only)
                listed = scores[kept]
                scores.fill(-np.inf)
                scores[kept] = listed
            if query.left_out is not None:
                scores[next(left_out)] = -np.inf
            if barred is not None:
                scores[:, barred[start : start + block]] = -np.inf
            best.add(scores, start)
        return best.lists()

    def similar(self, row: int, k: int, n_dims: int) -> tuple[Floats, Ints]:
        """Find the k items nearest to an item by cosine over the first `n_dims` columns, itself excluded.

        An item whose columns are all 0 has cosine 0 to every other.

        Returns:
            scores: (min(k, N - 1),) float32, falling; equal scores order by row.
            rows: (min(k, N - 1),) int64; fewer where items are hidden.

        Raises:
            ValueError: k below 1.
        """
        if k < 1:
            raise ValueError(f"k is {k}; allowed: 1 or more")
        part, lengths = self.vectors[:, :n_dims], self._lengths_of(n_dims)
        cosines: Floats = (part @ (part[row] / lengths[row]) / lengths)[None]  # (1, N)
        cosines[0, row] = -np.inf
        if self.is_hidden is not None:
            cosines[0, self.is_hidden] = -np.inf
        best = _TopItems(1, min(k, len(self)))
        best.add(cosines, 0)
        scores, rows = best.lists()
        is_found = rows[0] >= 0
        return scores[0, is_found], rows[0, is_found]

    def _lengths_of(self, n_dims: int) -> Floats:
        """Return the lengths of the vectors' first columns, 1 in place of 0, (N,)."""
        if n_dims not in self._lengths:
            lengths: Floats = np.linalg.norm(self.vectors[:, :n_dims], axis=1)
            self._lengths[n_dims] = np.where(lengths == 0, np.float32(1), lengths)
        return self._lengths[n_dims]


class _TopItems:
    """The k largest scores of each of n rows, by FAISS's heaps."""

    def __init__(self, n: int, k: int) -> None:
        self._scores, self._rows = np.empty((n, k), np.float32), np.empty((n, k), np.int64)
        self._heaps = faiss.float_minheap_array_t()
        self._heaps.nh, self._heaps.k = n, k
        self._heaps.val, self._heaps.ids = faiss.swig_ptr(self._scores), faiss.swig_ptr(self._rows)
        self._heaps.heapify()

    def add(self, scores: Floats, first_row: int) -> None:
        """Add scores (n, m) of the items from `first_row` on; -inf never enters."""
        self._heaps.addn(scores.shape[1], faiss.swig_ptr(scores), first_row)  # type: ignore[call-arg]

    def lists(self) -> tuple[Floats, Ints]:
        """Return scores, falling, and rows, (n, k) each; -inf and -1 fill the end."""
        self._heaps.reorder()
        scores, rows = self._scores, self._rows
        scores[rows < 0] = -np.inf
        if (scores[:, 1:] == scores[:, :-1]).any():
            order = np.lexsort((rows, -scores), axis=1)
            return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
        return scores, rows


def add_terms(scores: Floats, terms: Terms) -> None:
    """Add terms to scores (B, n) in C order, whose columns the rows of the terms are."""
    requests, columns, values = terms
    np.add.at(scores.reshape(-1), requests * scores.shape[1] + columns, values)


def _split(part: tuple[Any, ...] | None, block: int, n_items: int) -> Iterator[tuple[Any, ...]]:
    """Yield the pairs or terms of each block of items, with columns of the block in place of rows."""
    if part is None:
        return
    if block >= n_items:
        yield part
        return
    requests, rows, *values = part
    blocks = (rows // block).astype(np.uint16)  # 16 bits are sorted by radix
    order = blocks.argsort(kind="stable")
    bounds = blocks[order].searchsorted(np.arange(-(-n_items // block) + 1))
    for number in range(len(bounds) - 1):
        here = order[bounds[number] : bounds[number + 1]]
        yield requests[here], rows[here] - number * block, *(value[here] for value in values)


def check_vectors(vectors: Floats) -> None:
    """Refuse item vectors that cannot be searched.

    Raises:
        ValueError: not (N, W) float32 in C order, empty, or not finite.
    """
    if vectors.ndim != 2 or vectors.dtype != np.float32 or vectors.size == 0:
        raise ValueError(f"item vectors are {vectors.dtype} {vectors.shape}; expected float32 (N, W), not empty")
    if not vectors.flags.c_contiguous:
        raise ValueError("item vectors are not in C order: pass np.ascontiguousarray of them")
    is_finite = np.isfinite(vectors).all(axis=1)
    if not is_finite.all():
        raise ValueError(f"item vector {int(is_finite.argmin())} is not finite")


def write_index(path: Path, vectors: Floats) -> None:
    """Write vectors (N, W) as FAISS's `IndexFlatIP`.

    Raises:
        ValueError: not (N, W) float32 in C order, empty, or not finite.
        OSError: the disk is full or fails.
    """
    check_vectors(vectors)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    write_file(path, faiss.serialize_index(index).data)  # the writer of FAISS names no error of the disk


def measure_recall(index: ItemIndex, users: Floats, k: int) -> float:
    """Return the share of the k best items, by a sort of all float64 products, that the index finds."""
    _, found = index.search(Query(users), k)
    items, hits = index.vectors.astype(np.float64), 0
    for user, rows in zip(users.astype(np.float64), found, strict=True):
        scores = (items @ user).astype(np.float32)
        kth = np.sort(scores)[-found.shape[1]]
        hits += int((scores[rows] >= kth).sum())
    return hits / found.size


def _view_array(content: Content, dtype: np.dtype[Any]) -> NDArray[Any]:
    """View the array of one axis in the bytes of a file of `np.save`; nothing is copied, nothing unpickled."""
    head = io.BytesIO(content[:_MAX_HEADER].tobytes())
    np.lib.format.read_magic(head)
    shape, _, found = np.lib.format.read_array_header_1_0(head)
    body = content[head.tell() :]
    if found != dtype or len(shape) != 1 or len(body) != shape[0] * dtype.itemsize:
        raise ValueError(f"it holds {len(body)} bytes for {found} {shape}; expected an array of {dtype}")
    return body.view(dtype)


def _save_array(values: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, values, (1, 0), allow_pickle=False)
    return file.getvalue()
