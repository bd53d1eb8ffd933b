"""The largest products of a user vector: the heaps of FAISS, and a coarse index of many items.

The coarse index is an inverted file: k-means puts the items into lists, and a search reads the
lists whose centroids have the largest products. Its products are of 8-bit codes, so its items are
candidates: the exact scores are computed afterwards, of those few.

Users look in few directions. So items are clustered by V M and lists are chosen by U M^-1, where
M M is the mean of u u' over users: products stay, and the squared distance of two items becomes the
mean squared difference of their products with users.

Letters: B requests, N items, W columns of a vector, Q padded columns, S lists, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from serve.arrays import Content, Flags, Floats, Ints

Bits = NDArray[np.uint8]  # a bit per item, little endian

_COLUMNS = 16  # FAISS decodes so many columns at once
_MIN_VARIANCE = 1e-4  # of a direction, as a share of that of the largest
_TRAINED = 32  # items per centroid that k-means looks at
_ROUNDS = 8  # of k-means
_BLOCK = 2**16  # items that are coded at once
_SEED = 1
_ROW_WORK = 8  # of the exact score of one item, in codes that are read
TUNED_K = 100  # length of the lists whose recall is measured


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


def find_best(scores: Floats, rows: Ints, k: int) -> Ints:
    """Return where the k largest scores are, falling, equal ones by row."""
    best = np.arange(len(scores))
    if len(scores) > k:
        kth = np.partition(scores, -k)[-k]
        best = (scores >= kth).nonzero()[0]
    order = np.lexsort((rows[best], -scores[best]))
    return best[order[:k]]


def share_found(expected: Iterable[Ints], found: Iterable[Ints]) -> float:
    """Return the share of the rows of lists (B, K) that other lists have, too; -1 is no row."""
    n_found = 0
    n_rows = 0
    for wanted, listed in zip(expected, found, strict=True):
        for rows, others in zip(wanted, listed, strict=True):
            n_found += int(np.isin(rows[rows >= 0], others).sum())
        n_rows += int(np.count_nonzero(wanted >= 0))

    return n_found / max(n_rows, 1)


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


def split_requests(part: tuple[Any, ...] | None, n_requests: int) -> Iterator[Any]:
    """Yield the pairs or terms of each request."""
    if part is None or n_requests == 1:
        yield from [part] * n_requests
        return

    order = part[0].argsort(kind="stable")
    bounds = part[0][order].searchsorted(np.arange(n_requests + 1))
    for request in range(n_requests):
        here = order[bounds[request] : bounds[request + 1]]
        yield (part[0][here] - request, *(column[here] for column in part[1:]))


# ---- which items may be listed


def pack_bits(is_open: Flags) -> Bits:
    """Return flags (n,) as bits."""
    return np.packbits(is_open, bitorder="little")


def has_bits(bits: Bits, rows: Ints) -> Flags:
    """Tell which rows have their bit set."""
    return np.asarray(bits[rows >> 3] >> (rows & 7) & 1, np.bool_)


def clear_bits(bits: Bits, rows: Ints) -> None:
    """Clear the bits of distinct rows."""
    rows = rows[has_bits(bits, rows)]
    # a set bit of a byte is taken away as a number
    np.subtract.at(bits, rows >> 3, (1 << (rows & 7)).astype(np.uint8))


# ---- the coarse index


@dataclass(frozen=True)
class Effort:
    """How much a search reads.

    Attributes:
        n_probes: lists that are read where all items may be listed.
        n_fetched: candidates per item of a list, whose scores are computed exactly.
    """

    n_probes: int
    n_fetched: float


@dataclass(frozen=True)
class IndexFacts:
    """Facts of a coarse index: shares of the exact lists of `TUNED_K` items that it finds."""

    kind: str  # as FAISS names it
    n_probes: int  # lists that a search reads
    n_fetched: float  # candidates per item of a list
    target: float
    recall: float  # of the whole score, for users that it was not tuned on
    users: int  # their number
    drawn_recall: (
        float  # of products with drawn vectors: measured again whenever it is loaded
    )


class CoarseIndex:
    """The first N items of a catalogue by lists of 8-bit codes."""

    def __init__(self, index: Any, content: Content, effort: Effort) -> None:
        """Take FAISS's index, a matrix for users before an inverted file: a view of a content."""
        self._index = index
        self.content = content
        lists: Any = faiss.downcast_index(index.index)
        self.n_lists = int(lists.nlist)
        self.effort = effort

    def with_effort(self, effort: Effort) -> CoarseIndex:
        """Return the same lists, searched with another effort."""
        return CoarseIndex(self._index, self.content, effort)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @classmethod
    def build(cls, vectors: Floats, users: Floats, n_lists: int) -> CoarseIndex:
        """Put items into lists; the same input gives the same lists.

        Args:
            vectors: (N, W) of the items.
            users: (U, W) vectors of users, by whose directions items are clustered.
            n_lists: S, at most N.
        """
        of_items, of_users = _whiten(users)
        width = of_items.shape[1]
        n_trained = min(len(vectors), _TRAINED * n_lists)
        drawn = np.random.default_rng(_SEED).permutation(len(vectors))[:n_trained]
        trained = vectors[np.sort(drawn)] @ of_items  # (n, Q)

        means: Any = faiss.Kmeans(
            width, n_lists, niter=_ROUNDS, seed=_SEED, min_points_per_centroid=1
        )
        means.train(trained)
        # Items go to the nearest centroid. To the one of the largest product, most would go to a
        # few long ones.
        nearest = faiss.IndexFlatL2(width)
        nearest.add(means.centroids)
        lists = faiss.IndexIVFScalarQuantizer(
            nearest,
            width,
            n_lists,
            faiss.ScalarQuantizer.QT_8bit,
            faiss.METRIC_INNER_PRODUCT,
            True,  # a code is that of the difference from the centroid
        )
        lists.train(trained)
        for start in range(0, len(vectors), _BLOCK):
            lists.add(vectors[start : start + _BLOCK] @ of_items)

        largest = faiss.IndexFlatIP(width)
        largest.add(means.centroids)
        lists.quantizer = largest
        matrix = faiss.LinearTransform(vectors.shape[1], width)
        faiss.copy_array_to_vector(of_users.T.ravel(), matrix.A)
        matrix.is_trained = True
        content = faiss.serialize_index(faiss.IndexPreTransform(matrix, lists))
        # What is read owns its parts; here, Python would free them.
        return cls.from_bytes(content, Effort(n_lists, 1.0), *vectors.shape)

    @classmethod
    def from_bytes(
        cls, content: Content, effort: Effort, n_items: int, width: int
    ) -> CoarseIndex:
        """Read an index as FAISS wrote it, without a copy, for searches of an effort.

        Raises:
            ValueError: if it is no such index of `n_items` vectors of `width` columns.
        """
        try:
            reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(content), content.size)  # type: ignore[attr-defined]
            index = faiss.read_index(reader)
        except RuntimeError as error:
            raise ValueError(f"no FAISS index: {error}") from error

        kinds = [type(index).__name__]
        if isinstance(index, faiss.IndexPreTransform):
            kinds.append(type(faiss.downcast_index(index.index)).__name__)
        if kinds != ["IndexPreTransform", "IndexIVFScalarQuantizer"]:
            raise ValueError(f"it holds a {kinds[-1]}; expected lists of 8-bit codes")
        if (index.ntotal, index.d) != (n_items, width):
            raise ValueError(
                f"it holds {index.ntotal} vectors of {index.d} columns; "
                f"expected {n_items} of {width}"
            )

        return cls(index, content, effort)

    def draw_users(self, n: int) -> Floats:
        """Draw vectors (n, W) that look in the same directions as users do; none is of a person."""
        matrix: Any = faiss.downcast_VectorTransform(self._index.chain.at(0))
        of_users = faiss.vector_to_array(matrix.A).reshape(matrix.d_out, matrix.d_in)
        drawn = np.random.default_rng(_SEED).standard_normal((n, matrix.d_out))
        return np.asarray(drawn @ np.linalg.pinv(of_users).T, np.float32)

    def search(self, user: Floats, k: int, bits: Bits, n_open: int) -> Ints | None:
        """Return the rows of about the k largest products with a user vector, and more.

        The fewer items may be listed, and the longer the list, the more lists are read.

        Args:
            user: (W,).
            k: number of rows.
            bits: the items that may be listed.
            n_open: about their number.

        Returns:
            (C,) candidates. None if it is less work to look at all `n_open` items, or if there are
            fewer than k candidates.
        """
        widening = max(1.0, k / TUNED_K) * len(self) / max(n_open, 1)
        n_probes = min(self.n_lists, math.ceil(self.effort.n_probes * widening))
        n_read = self.n_lists + len(self) * n_probes / self.n_lists
        if n_open * _ROW_WORK <= n_read:
            return None

        selector = faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg,arg-type]
        probing = faiss.SearchParametersIVF(nprobe=n_probes, sel=selector)  # type: ignore[call-arg]
        options = faiss.SearchParametersPreTransform(index_params=probing)  # type: ignore[call-arg]
        n_fetched = math.ceil(k * self.effort.n_fetched)
        _, rows = self._index.search(user[None], n_fetched, params=options)
        candidates = rows[0][rows[0] >= 0]
        return candidates if len(candidates) >= k else None


def _whiten(users: Floats) -> tuple[Floats, Floats]:
    """Return M for items and M^-1 for users, (W, Q) each; the columns behind W are 0."""
    users = users.astype(np.float64)
    variances, directions = np.linalg.eigh(users.T @ users / len(users))
    lengths = np.sqrt(np.maximum(variances, _MIN_VARIANCE * variances.max()))
    n_columns = len(lengths)
    matrices = np.zeros((2, n_columns, -(-n_columns // _COLUMNS) * _COLUMNS))
    matrices[0, :, :n_columns] = directions * lengths
    matrices[1, :, :n_columns] = directions / lengths
    of_items, of_users = matrices.astype(np.float32)
    return of_items, of_users
