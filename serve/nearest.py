"""The largest products of a user vector: the heaps of FAISS, and a coarse index of many items.

The coarse index is an inverted file: k-means puts the items into lists, and a search reads the
lists whose centroids have the largest products. Its products are of 8-bit codes, so its items are
candidates: exact scores are computed afterwards, of those few.

Letters: B requests, N items, W columns of a vector, S lists, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from serve.arrays import Content, Flags, Floats, Ints

TUNED_K = 100  # length of the lists whose recall is measured
_FETCHED = 2  # candidates per item of a list
_COLUMNS = 16  # FAISS decodes so many columns at once
_TRAINED = 32  # items per list that k-means looks at
_ROW_WORK = 8  # of the exact score of one item, in codes that are read


class TopItems:
    """The k largest scores of each of n rows, by FAISS's heaps."""

    def __init__(self, n: int, k: int) -> None:
        if k < 1:
            raise ValueError(f"k is {k}; allowed: 1 or more")

        self._scores = np.empty((n, k), np.float32)
        self._rows = np.empty((n, k), np.int64)
        self._heaps = faiss.float_minheap_array_t()
        self._heaps.nh = n
        self._heaps.k = k
        self._heaps.val = faiss.swig_ptr(self._scores)
        self._heaps.ids = faiss.swig_ptr(self._rows)
        self._heaps.heapify()

    def add(self, scores: Floats, first_row: int) -> None:
        """Add scores (n, m) of the items from `first_row` on; -inf never enters."""
        self._heaps.addn(scores.shape[1], faiss.swig_ptr(scores), first_row)  # type: ignore[call-arg]

    def lists(self) -> tuple[Floats, Ints]:
        """Return scores, falling, and rows, (n, k) each; -inf and -1 fill the end."""
        self._heaps.reorder()
        scores = self._scores
        rows = self._rows
        scores[rows < 0] = -np.inf
        if (scores[:, 1:] == scores[:, :-1]).any():
            order = np.lexsort((rows, -scores), axis=1)
            scores = np.take_along_axis(scores, order, axis=1)
            rows = np.take_along_axis(rows, order, axis=1)

        return scores, rows


# ---- pairs and terms, divided


def split_blocks(
    part: tuple[Any, ...] | None, block: int, n_items: int
) -> Iterator[tuple[Any, ...]]:
    """Yield the pairs or terms of each block of items, with columns of the block as rows."""
    if part is None or block >= n_items:
        yield part or ()
        return

    requests, rows, *values = part
    blocks = (rows // block).astype(np.uint16)  # 16 bits are sorted by radix
    order = blocks.argsort(kind="stable")
    n_blocks = -(-n_items // block)
    bounds = blocks[order].searchsorted(np.arange(n_blocks + 1))

    for number in range(n_blocks):
        here = order[bounds[number] : bounds[number + 1]]
        columns = rows[here] - number * block
        yield (requests[here], columns, *(value[here] for value in values))


# ---- the coarse index


@dataclass(frozen=True)
class IndexFacts:
    """Facts of a coarse index: shares of the exact lists of `TUNED_K` items that it finds."""

    kind: str  # as FAISS names it
    n_probes: int  # lists that a search reads
    target: float
    recall: float  # of the whole score, for users that it was not tuned on
    users: int  # their number
    # with vectors of items as users: measured again at each load
    recall_of_items: float


class CoarseIndex:
    """The first N items of a catalogue, by lists of 8-bit codes."""

    def __init__(self, index: Any, content: Content, n_probes: int) -> None:
        """Take FAISS's index, which is a view of its content, and how many lists to read."""
        self._index = index
        self.content = content
        self.n_probes = n_probes
        self.n_lists = int(faiss.extract_index_ivf(index).nlist)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @classmethod
    def build(cls, vectors: Floats, n_lists: int) -> CoarseIndex:
        """Put items (N, W) into lists; the same vectors give the same lists."""
        n_columns = math.ceil(vectors.shape[1] / _COLUMNS) * _COLUMNS
        kind = f"Pad{n_columns},IVF{n_lists},SQ8"
        # An item goes to the nearest centroid. To the one of the largest product, most would go
        # to a few long ones.
        index: Any = faiss.index_factory(vectors.shape[1], kind)
        lists: Any = faiss.extract_index_ivf(index)
        lists.cp.max_points_per_centroid = _TRAINED
        index.train(vectors)
        index.add(vectors)

        by_product = faiss.IndexFlatIP(n_columns)
        by_product.add(lists.quantizer.reconstruct_n(0, n_lists))
        lists.quantizer = by_product
        lists.metric_type = index.metric_type = faiss.METRIC_INNER_PRODUCT
        # What is read owns its parts; here, Python would free them.
        return cls.from_bytes(faiss.serialize_index(index), n_lists)

    @classmethod
    def from_bytes(cls, content: Content, n_probes: int) -> CoarseIndex:
        """Read an index as FAISS wrote it, without a copy.

        Raises:
            ValueError: if there are no lists in it.
        """
        try:
            reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(content), content.size)  # type: ignore[attr-defined]
            return cls(faiss.read_index(reader), content, n_probes)
        except RuntimeError as error:
            raise ValueError(f"no FAISS index of lists: {error}") from error

    def search(self, user: Floats, k: int, is_open: Flags) -> Ints:
        """Return candidates for the k largest products with a user vector.

        The fewer items may be listed, and the longer the list, the more lists are read.

        Args:
            user: (W,).
            k: number of items.
            is_open: (at least N,) which may be listed; those behind N are all candidates.

        Returns:
            (C,) rows, in any order: all items that may be listed if that is less work, or if
            the lists hold fewer than k.
        """
        n_open = int(np.count_nonzero(is_open))
        # Items that pass a filter may lie in lists that the user would not look at.
        widening = max(k / TUNED_K, 1) * (len(self) / max(n_open, 1)) ** 2
        n_probes = min(self.n_lists, math.ceil(self.n_probes * widening))
        if n_open * _ROW_WORK > len(self) * n_probes / self.n_lists:
            selector = faiss.IDSelectorBitmap(np.packbits(is_open, bitorder="little"))  # type: ignore[call-arg,arg-type]
            lists = faiss.SearchParametersIVF(nprobe=n_probes, sel=selector)  # type: ignore[call-arg]
            options = faiss.SearchParametersPreTransform(index_params=lists)  # type: ignore[call-arg]
            _, rows = self._index.search(user[None], _FETCHED * k, params=options)
            found = rows[rows >= 0]
            if len(found) >= k:
                later = is_open[len(self) :].nonzero()[0]
                return np.append(found, later + len(self))

        return is_open.nonzero()[0]
